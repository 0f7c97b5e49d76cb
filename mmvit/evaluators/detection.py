"""Detection metrics: found boxes and true boxes -> average precision by the rules of COCO or of LVIS.

Frames: boxes are xyxy in pixels of the original picture. Letters: I pictures, N detections of one picture,
C categories, T IoU thresholds, R recall points, A area ranges.
Source: pycocotools (COCO), LVIS (arXiv:1908.03195, section 2), AP_fixed (arXiv:2102.01066); counted by
faster-coco-eval. Differs: the means are taken here, so that they can run over any set of categories.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmvit.errors import need
from mmvit.evaluators.detection_truth import Truth
from mmvit.types import Detections

Protocol = Literal["coco", "lvis", "lvis_fixed"]
LVIS_PER_IMAGE, FIXED_PER_CLASS = 300, 10_000
_PAIRS = 200_000  # (picture, category) pairs at once: the counting library holds all of them in memory
_AREAS = ("", "s", "m", "l")


@dataclass
class Measured:
    """What `evaluate` counted.

    Attributes:
        metrics: name -> value; precision and recall in 0..1. What nothing could be measured for is left out.
        classes: category -> {"AP", "AP50", "boxes", "images"}, for those that have a true box.
    """

    metrics: dict[str, float]
    classes: dict[str, dict[str, float]]


def evaluate(
    predictions: Sequence[Detections],
    truths: Sequence[Truth],
    categories: Sequence[str],
    *,
    protocol: Protocol = "coco",
    frequency: Sequence[str] | None = None,
    seen: Collection[str] | None = None,
) -> Measured:
    """Average precision (AP over IoU .50:.95, AP50, AP75, APs/APm/APl by area) and recall, classes alike.

    "coco" adds AR1, AR10, AR100 (and ARs/ARm/ARl): what a picture does not show is absent, 100 detections a
    picture and category. "lvis" counts at most 300 detections a picture, drops those of categories that are
    neither present nor verified absent there, ignores unmatched ones of not exhaustive categories, and adds
    AR300. "lvis_fixed" keeps the 10,000 best detections of each category instead of 300 a picture.

    Args:
        predictions: I pictures' detections; labels are category numbers.
        truths: of the same pictures.
        categories: C names.
        protocol: whose rules.
        frequency: C letters r, c or f; adds APr, APc and APf.
        seen: names that occur in training; adds AP_seen, AP50_seen, AP_unseen and AP50_unseen.

    Raises:
        ValueError: lengths that disagree, a label outside 0..C-1, a box or score that is not finite, an
            unknown protocol, or no true box at all.
    """
    _check(predictions, truths, categories, protocol, frequency)
    rows = _rows(predictions, truths, protocol)
    precision, recall = _count(rows, truths, categories, protocol)
    boxes, images = _occurrences(truths, len(categories))
    if not boxes.any():
        raise ValueError(
            f"none of the {len(truths)} pictures has a true box of the {len(categories)} categories"
        )
    metrics = _summary(precision, recall, protocol)
    if frequency is not None:
        for letter in "rcf":
            _put(metrics, f"AP{letter}", precision[:, :, np.array(frequency) == letter, 0])
    if seen is not None:
        known = np.array([name in seen for name in categories])
        for name, members in (("seen", known), ("unseen", ~known)):
            _put(metrics, f"AP_{name}", precision[:, :, members, 0])
            _put(metrics, f"AP50_{name}", precision[0][:, members, 0])
            metrics[f"classes_{name}"] = int((members & (boxes > 0)).sum())
    metrics |= {"n": len(truths), "classes": int((boxes > 0).sum()), "boxes": int(boxes.sum())}
    metrics |= {"detections": len(rows), "without_boxes": sum(not len(t.boxes) for t in truths)}
    return Measured(metrics, _per_class(precision, boxes, images, categories))


def confused(predictions: Sequence[Detections], classes: int, seed: int = 0) -> list[Detections]:
    """The same boxes and scores under wrong names: every category takes another's, drawn with a seed.

    What `evaluate` makes of them is chance: how far boxes alone come that are placed well and named badly.
    """
    order = np.random.default_rng(seed).permutation(classes)
    other = np.empty(classes, np.int64)
    other[order] = np.roll(order, 1)
    swap = torch.from_numpy(other)
    return [Detections(found.boxes, found.scores, swap[found.labels], found.query) for found in predictions]


def _check(
    predictions: Sequence[Detections],
    truths: Sequence[Truth],
    categories: Sequence[str],
    protocol: str,
    frequency: Sequence[str] | None,
) -> None:
    if protocol not in ("coco", "lvis", "lvis_fixed"):
        raise ValueError(f"protocol={protocol!r} must be coco, lvis or lvis_fixed")
    if len(predictions) != len(truths):
        raise ValueError(
            f"{len(predictions)} predictions for {len(truths)} pictures: one for each, maybe empty"
        )
    if len(set(categories)) != len(categories):
        raise ValueError(f"the {len(categories)} categories are not distinct")
    if frequency is not None and (len(frequency) != len(categories) or set(frequency) - set("rcf")):
        raise ValueError(f"frequency must be r, c or f for each of the {len(categories)} categories")
    for picture, (found, truth) in enumerate(zip(predictions, truths, strict=True)):
        where = truth.key or f"picture {picture}"
        if not len(found.boxes) == len(found.scores) == len(found.labels):
            raise ValueError(f"{where}: boxes, scores and labels of its detections differ in number")
        if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
            raise ValueError(f"{where}: a detection has a box or a score that is not finite")
        for labels in (found.labels.tolist(), truth.labels.tolist()):
            if labels and not 0 <= min(labels) <= max(labels) < len(categories):
                raise ValueError(
                    f"{where}: labels must lie in 0..{len(categories) - 1}, got {min(labels)}..{max(labels)}"
                )


def _rows(
    predictions: Sequence[Detections], truths: Sequence[Truth], protocol: Protocol
) -> NDArray[np.float64]:
    """(n,7) rows of picture number, x, y, width, height, score, category number, both counted from 1."""
    parts = []
    for number, (found, truth) in enumerate(zip(predictions, truths, strict=True), start=1):
        label, score = found.labels.cpu().numpy(), found.scores.double().cpu().numpy()
        box = found.boxes.double().cpu().numpy().reshape(-1, 4)
        rows = np.column_stack(
            [np.full(len(box), number), box[:, :2], box[:, 2:] - box[:, :2], score, label + 1]
        )
        if protocol == "lvis":  # before categories are dropped: 300 of everything that was found
            rows = rows[np.argsort(-score, kind="stable")[:LVIS_PER_IMAGE]]
        if protocol != "coco" and not truth.exhaustive:
            judged = [*truth.labels, *truth.negatives]
            rows = rows[np.isin(rows[:, 6] - 1, judged)]
        parts.append(rows)
    rows = np.concatenate(parts) if parts else np.zeros((0, 7))
    return _best_of_each(rows) if protocol == "lvis_fixed" else rows


def _best_of_each(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The FIXED_PER_CLASS best rows of each category, in their old order."""
    order = np.lexsort((-rows[:, 5], rows[:, 6]))
    group = rows[order, 6]
    place = np.arange(len(rows)) - np.searchsorted(group, group)
    return rows[np.sort(order[place < FIXED_PER_CLASS])]


def _count(
    rows: NDArray[np.float64], truths: Sequence[Truth], categories: Sequence[str], protocol: Protocol
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (T,R,C,A) at most detections and recall (T,C,A,limits); -1 where a category has no box."""
    api = need("faster_coco_eval.core.faster_eval_api")
    truth = need("faster_coco_eval").COCO(_annotations(truths, categories, protocol))
    where = np.array([(i, c + 1) for i, t in enumerate(truths, start=1) for c in t.labels]).reshape(-1, 2)
    step = max(1, _PAIRS // max(1, len(truths)))
    precision, recall = [], []
    for first in range(0, len(categories), step):
        numbers = list(range(first + 1, min(first + step, len(categories)) + 1))
        part = rows[(rows[:, 6] >= numbers[0]) & (rows[:, 6] <= numbers[-1])]
        counter = api.COCOeval_faster(truth, truth.loadRes(part), "bbox", lvis_style=protocol != "coco")
        counter.params.catIds = numbers
        shown = where[(where[:, 1] >= numbers[0]) & (where[:, 1] <= numbers[-1]), 0]
        # The others add nothing but time; an empty list would mean all.
        counter.params.imgIds = sorted({int(i) for i in (*shown, *part[:, 0])}) or [1]
        if protocol != "coco":
            counter.params.maxDets = [LVIS_PER_IMAGE if protocol == "lvis" else FIXED_PER_CLASS]
        counter.evaluate()
        counter.accumulate()
        precision.append(counter.eval["precision"][..., -1])
        recall.append(counter.eval["recall"])
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


def _annotations(truths: Sequence[Truth], categories: Sequence[str], protocol: str) -> dict[str, Any]:
    """The truth in COCO's form: xywh, numbers from 1, crowds only where the protocol knows them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, truth in enumerate(truths, start=1):
        image: dict[str, Any] = {"id": number, "height": truth.size[0], "width": truth.size[1]}
        if protocol != "coco":
            absent = range(len(categories)) if truth.exhaustive else truth.negatives
            image["neg_category_ids"] = [int(c) + 1 for c in absent]
            image["not_exhaustive_category_ids"] = [int(c) + 1 for c in truth.not_exhaustive]
        images.append(image)
        for box, label, crowd, area in zip(truth.boxes, truth.labels, truth.crowd, truth.area, strict=True):
            x0, y0, x1, y1 = box.tolist()
            if crowd and protocol != "coco":
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    names = [{"id": i, "name": name, "frequency": "f"} for i, name in enumerate(categories, start=1)]
    return {"images": images, "annotations": annotations, "categories": names}


def _summary(
    precision: NDArray[np.float64], recall: NDArray[np.float64], protocol: Protocol
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    _put(metrics, "AP", precision[..., 0])
    _put(metrics, "AP50", precision[0, ..., 0])
    _put(metrics, "AP75", precision[5, ..., 0])
    for a in (1, 2, 3):
        _put(metrics, f"AP{_AREAS[a]}", precision[..., a])
    if protocol == "lvis":
        _put(metrics, f"AR{LVIS_PER_IMAGE}", recall[:, :, 0, -1])
    if protocol == "coco":
        for i, limit in enumerate((1, 10, 100)):
            _put(metrics, f"AR{limit}", recall[:, :, 0, i])
        for a in (1, 2, 3):
            _put(metrics, f"AR{_AREAS[a]}", recall[:, :, a, -1])
    return metrics


def _put(metrics: dict[str, float], name: str, values: NDArray[np.float64]) -> None:
    """Nothing; the mean of those values that were measured becomes a metric, if there are any."""
    real = values[values > -1]
    if real.size:
        metrics[name] = float(real.mean())


def _occurrences(truths: Sequence[Truth], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each category its true boxes without crowds, and the pictures that have one."""
    boxes, images = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for truth in truths:
        labels = truth.labels[~truth.crowd]
        np.add.at(boxes, labels, 1)
        images[np.unique(labels)] += 1
    return boxes, images


def _per_class(
    precision: NDArray[np.float64],
    boxes: NDArray[np.int64],
    images: NDArray[np.int64],
    categories: Sequence[str],
) -> dict[str, dict[str, float]]:
    found = {}
    for k in np.flatnonzero(boxes).tolist():
        ap = precision[:, :, k, 0]
        found[categories[k]] = {
            "AP": float(ap.mean()),
            "AP50": float(ap[0].mean()),
            "boxes": int(boxes[k]),
            "images": int(images[k]),
        }
    return found
