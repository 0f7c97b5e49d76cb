"""Candidates and a bank of queries -> what was found in each picture, in the picture's own pixels.

Shape letters: B pictures, N candidates, C queries, K results.
Source: OWL-ViT (arXiv:2205.06230): the best pairs over all tokens and queries, nothing suppressed by default.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.boxes import Placement, area, clip, to_xyxy
from mmvit.detector.bank import QueryBank
from mmvit.detector.images import EncodedImages, rows_of
from mmvit.errors import need
from mmvit.models.find import Found, find
from mmvit.types import Candidates, Detections

_BLOCK = 1 << 24  # logits at once: 64 MB of float32
_GROWTH = 4


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which pairs of a candidate and a query become detections.

    Attributes:
        threshold: only scores above it, 0..1; None = all.
        top_k: at most so many in each picture; None = all.
        nms: boxes of the same query that overlap a better one by more than this IoU, 0..1, are left out;
            None = none are.
        per_token_argmax: keep only each candidate's best query, as transformers does.
        objectness_topk: look at so many candidates with the highest objectness only; None = at all.
        block: logits at once; bounds memory only.

    Raises:
        ValueError: a number out of its range.
    """

    threshold: float | None = 0.1
    top_k: int | None = 100
    nms: float | None = None
    per_token_argmax: bool = False
    objectness_topk: int | None = None
    block: int = _BLOCK

    def __post_init__(self) -> None:
        for name in ("threshold", "nms"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:  # a NaN is out of range too
                raise ValueError(f"{name}={value} must lie in 0..1, or be None")
        for name in ("top_k", "objectness_topk", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"{name}={value} must be at least 1{'' if name == 'block' else ', or None for all'}"
                )


def select(
    images: EncodedImages, bank: QueryBank, rules: Selection, device: torch.device
) -> list[Detections]:
    """What the bank's queries find in each picture; labels are rows of the bank.

    Args:
        images: B pictures.
        bank: C queries.
        rules: what counts.
        device: where to compute.
    """
    pairs = images.candidates.shift.shape[1] * len(bank)
    if not pairs:
        return [_detections(*_none(), bank) for _ in range(len(images))]
    rows = bank.embeddings.flatten(0, 1).to(device)
    together = max(1, rules.block // (pairs * bank.prompts))
    results = []
    for start in range(0, len(images), together):
        part = images[start : start + together].to(device)
        candidates = _objects(part.candidates, rules.objectness_topk)
        first = (rules.top_k or pairs) * (1 if rules.nms is None else _GROWTH)
        found = _find(candidates, rows, bank, rules, min(first, pairs))
        for i, place in enumerate(part.placements):
            row = Found(*(value[i] for value in found))
            results.append(_one(rows_of(candidates, [i]), place, row, rows, bank, rules))
    return results


def _one(
    candidates: Candidates, place: Placement, found: Found, rows: Tensor, bank: QueryBank, rules: Selection
) -> Detections:
    """The detections of one picture.

    What is suppressed or lies on padding makes room for the next best pairs. The best K of all pairs, thinned
    out, are the beginning of all pairs, thinned out: more are asked for until there are enough.
    """
    pairs = candidates.shift.shape[1] * (1 if rules.per_token_argmax else len(bank))
    wanted = min(rules.top_k or pairs, pairs)
    while True:
        scores, labels, boxes = _thinned(found, place, rules)
        if len(scores) >= wanted or len(found.scores) >= pairs or (found.labels < 0).any():
            break
        again = _find(candidates, rows, bank, rules, min(len(found.scores) * _GROWTH, pairs))
        found = Found(*(value[0] for value in again))
    return _detections(scores[:wanted], labels[:wanted], boxes[:wanted], bank)


def _find(candidates: Candidates, rows: Tensor, bank: QueryBank, rules: Selection, top_k: int) -> Found:
    """The best pairs of each picture, on the CPU."""
    found = find(
        candidates,
        rows,
        top_k=top_k,
        threshold=rules.threshold or 0.0,
        per_token=rules.per_token_argmax,
        prompts=bank.prompts,
        ensemble="prob" if bank.ensemble == "prob" else "logit",
        block=rules.block,
    )
    return Found(*(value.cpu() for value in found))


def _thinned(found: Found, place: Placement, rules: Selection) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and boxes xyxy in pixels, best first, of the results that are in the picture."""
    scores, labels, fractions = found
    order = labels.argsort(stable=True)  # equal scores come in the order of the queries
    order = order[scores[order].argsort(descending=True, stable=True)]
    order = order[labels[order] >= 0]
    boxes = clip(place.to_pixels(to_xyxy(fractions[order].double())), place.picture)
    inside = area(boxes) > 0
    scores, labels, boxes = scores[order][inside], labels[order][inside], boxes[inside]
    if rules.nms is not None and len(boxes):
        ops = need("torchvision.ops")
        keep = ops.batched_nms(boxes, scores.double(), labels, rules.nms).sort().values
        scores, labels, boxes = scores[keep], labels[keep], boxes[keep]
    return scores, labels, boxes.float()


def _objects(candidates: Candidates, count: int | None) -> Candidates:
    """The candidates with all but the `count` most object-like ones of each picture hidden."""
    if count is None:
        return candidates
    if candidates.objectness is None:
        raise ValueError(f"objectness_topk={count} needs a detector with an objectness head: leave it out")
    objectness = candidates.objectness
    if candidates.mask is not None:
        objectness = objectness.masked_fill(~candidates.mask, -math.inf)
    best = objectness.topk(min(count, objectness.shape[1]), dim=1).indices
    mask = torch.zeros_like(objectness, dtype=torch.bool).scatter_(1, best, True)
    return dataclasses.replace(candidates, mask=mask & objectness.isfinite())


def _none() -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)


def _detections(scores: Tensor, labels: Tensor, boxes: Tensor, bank: QueryBank) -> Detections:
    query: list[Any] = list(bank.names)
    return Detections(boxes=boxes, scores=scores, labels=labels, query=query)
