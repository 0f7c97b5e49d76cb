"""A picture's JSON -> checked boxes and what its annotators looked for: M boxes in pixels of the picture.

A box that cannot be used is left out and reported by reason; only JSON that says nothing usable about the
whole picture makes a bad sample.
Source: federated annotations as in LVIS (arXiv:1908.03195) section 3.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.data.pixels import BadSample

Note = Callable[[BadSample], None]
_FAR = 1e9  # pixels; no picture is as large, and whole numbers in JSON may be of any length
_OTHER = re.compile(r"[^a-z0-9-]+")


@dataclass(slots=True)
class Annotations:
    """What is known of the objects in one picture; labels are in their `canonical` form.

    Attributes:
        boxes: (M,4) float64 xyxy, pixels of the upright picture, inside it and not empty.
        labels: the M boxes' labels.
        negatives: labels that were looked for and are not there.
        unsure: labels that may be there without a box: not exhaustively annotated, or of boxes left out.
        fixed: labels that no prompt template fits, such as free text.
        exhaustive: every label of the source that has no box is not there.
    """

    boxes: Tensor
    labels: list[str]
    negatives: list[str]
    unsure: list[str]
    fixed: list[str]
    exhaustive: bool


def canonical(label: str) -> str:
    """A label as it is compared and asked: lower case, [a-z0-9- ], accents off, single spaces.

    Scripts in which nothing is left keep their letters, lower-cased.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", label.lower()) if not unicodedata.combining(c))
    return _OTHER.sub(" ", plain).strip() or " ".join(label.casefold().split())


def read_annotations(meta: Mapping[str, Any], size: tuple[int, int], note: Note) -> Annotations:
    """The objects that a sample's JSON lists, for a picture of `size` (height, width) pixels.

    Boxes count in the frame "width" x "height" of the JSON (the picture's own where it is not given); a
    picture that was resized since, with its aspect ratio, gets its boxes scaled.

    Args:
        meta: the JSON: "objects" and, where known, width, height, negatives, not_exhaustive, exhaustive.
        size: of the upright picture.
        note: is told of every box that is left out: box-unreadable, box-not-finite, box-empty, box-outside,
            box-crowd.

    Raises:
        BadSample: boxes-missing (no "objects"), boxes-unreadable, boxes-frame (another aspect ratio).
    """
    objects = objects_of(meta)
    frame = frame_of(meta, size)
    scale = torch.tensor([size[1] / frame[1], size[0] / frame[0]] * 2, dtype=torch.float64)
    boxes: list[list[float]] = []
    labels: list[str] = []
    unsure = _names(meta, "not_exhaustive")
    for number, thing in enumerate(objects):
        label = thing.get("label")
        try:
            if not isinstance(label, str) or not canonical(label):
                raise BadSample("box-unreadable", f"object {number} has the label {str(label)[:40]!r}")
            if thing.get("crowd"):
                raise BadSample("box-crowd", f"object {number}, {label[:40]!r}")
            boxes.append(check_box(thing.get("box"), frame, f"object {number}, {label[:40]!r}"))
            labels.append(canonical(label))
        except BadSample as bad:
            note(bad)
            if isinstance(label, str):
                unsure.append(canonical(label))
    return Annotations(
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) * scale,
        labels=labels,
        negatives=_names(meta, "negatives"),
        unsure=unsure,
        fixed=fixed_labels(objects),
        exhaustive=meta.get("exhaustive") is True,
    )


def usable_objects(meta: Mapping[str, Any], size: tuple[int, int], note: Note) -> dict[str, Any]:
    """A sample's JSON with its usable objects, stated in the frame of the picture of `size` (height, width).

    Raises:
        BadSample: boxes-missing, boxes-unreadable, boxes-frame.
    """
    frame = frame_of(meta, size)
    sx, sy = size[1] / frame[1], size[0] / frame[0]
    for name in ("negatives", "not_exhaustive"):
        _names(meta, name)
    kept = []
    for number, thing in enumerate(objects_of(meta)):
        try:
            if not isinstance(thing.get("label"), str):
                raise BadSample("box-unreadable", f"object {number} has no label")
            check_box(thing.get("box"), frame, f"object {number}, {thing['label'][:40]!r}")
        except BadSample as bad:
            note(bad)
            continue
        x0, y0, x1, y1 = thing["box"]
        rest = {name: value for name, value in thing.items() if name not in ("box", "area")}
        area = thing.get("area")
        if isinstance(area, int | float) and not isinstance(area, bool) and 0 < area < _FAR**2:
            rest["area"] = area * sx * sy
        scaled = [x0 * sx, y0 * sy, x1 * sx, y1 * sy] if (sx, sy) != (1, 1) else thing["box"]
        kept.append({**rest, "box": scaled})
    usable = {**meta, "width": size[1], "height": size[0], "objects": kept}
    if "exhaustive" in meta:
        usable["exhaustive"] = meta["exhaustive"] is True
    return usable


def objects_of(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the JSON lists as objects, not yet looked at.

    Raises:
        BadSample: boxes-missing, boxes-unreadable.
    """
    objects = meta.get("objects")
    if objects is None:
        raise BadSample("boxes-missing", 'the JSON has no "objects"; an empty list means that there are none')
    if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
        raise BadSample("boxes-unreadable", '"objects" must be a list of objects')
    return objects


def check_box(values: Any, frame: tuple[float, float], where: str) -> list[float]:
    """The four numbers of a box, xyxy, cut at the picture's border.

    Args:
        values: what the JSON says.
        frame: (height, width) that the numbers count in.
        where: for the reason's detail.

    Raises:
        BadSample: box-unreadable, box-not-finite, box-empty, box-outside.
    """
    plain = isinstance(values, list) and all(type(v) in (int, float) for v in values)
    if not plain or len(values) != 4:
        raise BadSample("box-unreadable", f"{where}: {str(values)[:60]} is not [x0, y0, x1, y1]")
    if not all(abs(v) < _FAR for v in values):
        raise BadSample("box-not-finite", f"{where}: {str(values)[:60]}")
    x0, y0, x1, y1 = (float(v) for v in values)
    if x1 <= x0 or y1 <= y0:
        raise BadSample("box-empty", f"{where}: {values}")
    height, width = frame
    cut = [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        raise BadSample("box-outside", f"{where}: {values}, the picture has {width:g} x {height:g} pixels")
    return cut


def frame_of(meta: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, float]:
    """(height, width) that the JSON's boxes count in, by default the picture's own `size`.

    Raises:
        BadSample: boxes-frame: its aspect ratio is not the picture's, to within a pixel.
    """
    stated = meta.get("height"), meta.get("width")
    if stated == (None, None) or stated == size:
        return float(size[0]), float(size[1])
    sides = [float(v) for v in stated if isinstance(v, int | float) and 0 < v < _FAR]
    if len(sides) == 2:
        height, width = sides
        if abs(width * size[0] - height * size[1]) <= max(width, height, *size):
            return height, width
    raise BadSample(
        "boxes-frame",
        f"boxes are stated for {stated[1]} x {stated[0]} pixels, the picture has {size[1]} x {size[0]} "
        "(EXIF orientation applied)",
    )


def fixed_labels(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Canonical labels of objects that say `"promptable": false`."""
    labels = (o.get("label") for o in objects if o.get("promptable") is False)
    return [canonical(label) for label in labels if isinstance(label, str)]


def _names(meta: Mapping[str, Any], field: str) -> list[str]:
    names = meta.get(field) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadSample("boxes-unreadable", f'"{field}" must be a list of labels')
    return [canonical(name) for name in names if canonical(name)]
