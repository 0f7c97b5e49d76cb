"""What pictures really show: JSON of shards -> boxes, category numbers and what else a protocol must know.

Frames: boxes are xyxy in pixels of the original picture. Letters: M boxes of one picture, C categories.
Source: the annotation rules of COCO and of LVIS (arXiv:1908.03195, section 2): positive, negative and not
exhaustively annotated categories of each picture.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvit.data.annotations import canonical, check_box
from mmvit.data.pixels import BadSample

RARE, COMMON = 10, 100  # a category seen in so many training pictures, or fewer


@dataclass(frozen=True)
class Truth:
    """The annotations of one picture.

    Attributes:
        boxes: (M,4) float64 xyxy, pixels of the original picture.
        labels: (M,) int64 category numbers.
        crowd: (M,) bool: one box around many; what is found in it counts neither way. COCO only.
        area: (M,) float64 pixels: of the mask where the JSON has one ("area"), else of the box.
        negatives: category numbers that are verified absent.
        not_exhaustive: category numbers of which not every instance has a box.
        exhaustive: every instance of every category has a box, so that absent categories are negatives.
        key: of the sample.
        size: (height, width) in pixels.
        left_out: annotations that were not used, by reason.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    negatives: Collection[int] = ()
    not_exhaustive: Collection[int] = ()
    exhaustive: bool = False
    key: str = ""
    size: tuple[int, int] = (0, 0)
    left_out: Mapping[str, int] = field(default_factory=dict)


def make_truth(
    boxes: Any,
    labels: Any,
    *,
    crowd: Any = None,
    area: Any = None,
    **facts: Any,
) -> Truth:
    """A `Truth` from anything that becomes arrays.

    Args:
        boxes: (M,4) xyxy, pixels.
        labels: (M,) category numbers.
        crowd: (M,) bool, None = no crowds.
        area: (M,) pixels, None = of the boxes.
        **facts: the other attributes of `Truth`.

    Raises:
        ValueError: shapes that disagree, or a box that is not finite.
    """
    box = np.asarray(boxes, np.float64).reshape(-1, 4)
    label = np.asarray(labels, np.int64).reshape(-1)
    crowds = np.zeros(len(box), bool) if crowd is None else np.asarray(crowd, bool).reshape(-1)
    covered = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    areas = covered if area is None else np.asarray(area, np.float64).reshape(-1)
    if not len(box) == len(label) == len(crowds) == len(areas):
        raise ValueError(
            f"{facts.get('key', '')}: {len(box)} boxes, {len(label)} labels, {len(crowds)} crowd marks and "
            f"{len(areas)} areas: there must be one of each for every box"
        )
    if not np.isfinite(box).all():
        raise ValueError(f"{facts.get('key', '')}: a true box is not finite: {box.tolist()}")
    return Truth(box, label, crowds, areas, **facts)


def read_truth(meta: Mapping[str, Any], categories: Mapping[str, int], key: str = "") -> Truth:
    """The annotations in a sample's JSON.

    Objects of other categories, and those with a box that nothing could match (not four finite numbers, no
    area, none of it inside the picture), are left out and counted.

    Args:
        meta: {"objects": [{"label", "box": [x0,y0,x1,y1] pixels, "area"?, "crowd"?}], "negatives"?,
            "not_exhaustive"?, "exhaustive"?, "width"?, "height"?}.
        categories: canonical name -> number.
        key: of the sample.
    """
    size = int(meta.get("height", 0)), int(meta.get("width", 0))
    boxes: list[list[float]] = []
    labels, crowd, area = [], [], []
    left_out: Counter[str] = Counter()
    for thing in meta.get("objects") or ():
        label, box = categories.get(label_of(thing)), thing.get("box")
        reason = "other category" if label is None else _problem(box, size)
        if reason:
            left_out[reason] += 1
            continue
        boxes.append(box)
        labels.append(label)
        crowd.append(bool(thing.get("crowd")))
        area.append(float(thing.get("area") or (box[2] - box[0]) * (box[3] - box[1])))
    return make_truth(
        boxes,
        labels,
        crowd=crowd,
        area=area,
        negatives=_numbers(meta.get("negatives"), categories),
        not_exhaustive=_numbers(meta.get("not_exhaustive"), categories),
        exhaustive=meta.get("exhaustive") is True,
        key=key,
        size=size,
        left_out=dict(left_out),
    )


def label_of(thing: Any) -> str:
    """The canonical label of an object in a sample's JSON, empty where it has none."""
    label = thing.get("label") if isinstance(thing, dict) else None
    return canonical(label) if isinstance(label, str) else ""


def label_counts(metas: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Canonical label -> in how many pictures it has a box of its own (crowds are none), labels sorted."""
    found: Counter[str] = Counter()
    for meta in metas:
        single = (t for t in meta.get("objects") or () if not (isinstance(t, dict) and t.get("crowd")))
        found.update({label_of(thing) for thing in single} - {""})
    return dict(sorted(found.items()))


def frequencies(categories: Sequence[str], training: Mapping[str, int]) -> list[str]:
    """For each category "r" (rare: in at most 10 training pictures), "c" (at most 100) or "f".

    Args:
        categories: C names.
        training: label -> training pictures with it; what is missing occurs in none and is rare.
    """
    counts = (training.get(name, 0) for name in categories)
    return ["r" if n <= RARE else "c" if n <= COMMON else "f" for n in counts]


def _problem(box: Any, size: tuple[int, int]) -> str:
    """Why a box cannot be used, "" = it can. Of an unknown size the picture is as large as you like."""
    height, width = size
    try:
        check_box(box, (height or math.inf, width or math.inf), "")
    except BadSample as bad:
        return bad.reason
    return ""


def _numbers(names: Iterable[str] | None, categories: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sorted({categories[canonical(n)] for n in names or () if canonical(n) in categories}))
