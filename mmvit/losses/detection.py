"""Set prediction for open-vocabulary detection: focal sigmoid of all logits, L1 and GIoU of matched pairs.

Place in the path: logits and boxes of all tokens + annotated boxes -> one number, exact over all ranks.
Shape letters: B pictures of this rank, N tokens, Q queries, M targets, K matched pairs, W ranks.
Source: OWL-ViT (arXiv:2205.06230); DETR (arXiv:2005.12872); focal loss
(arXiv:1708.02002); OWLv2 (arXiv:2306.09683) for the objectness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mmvit.boxes import giou_pairs, iou_pairs, to_xyxy
from mmvit.losses.focal import focal_sums
from mmvit.losses.gather import Group, world
from mmvit.losses.match import Matches, full, match
from mmvit.losses.targets import Targets, pad_targets

Normalization = Literal["global", "per_example"]


@dataclass(frozen=True)
class DetectionTerms:
    """One rank's loss, its parts, and what was matched.

    Attributes:
        loss: scalar, the weighted sum of the parts; its mean over the ranks is the loss of the global batch.
        loss_class, loss_box, loss_giou: scalars, normalised, not yet weighted.
        loss_objectness: the same, None without objectness.
        matches: the K pairs.
        iou: (K,) of every pair's boxes, 0..1.
        hits: (K,) bool: the token's best query is one that its target answers.
        share: scalar or (K,); what the sum over this rank's pairs of a value times it has as its mean over
            ranks: "global": the value's mean over the pairs of the global batch; "per_example": the mean over
            its pictures of the mean over a picture's pairs, 0 for a picture without any.
    """

    loss: Tensor
    loss_class: Tensor
    loss_box: Tensor
    loss_giou: Tensor
    loss_objectness: Tensor | None
    matches: Matches
    iou: Tensor
    hits: Tensor
    share: Tensor


def detection_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    *,
    query_mask: Tensor | None = None,
    token_mask: Tensor | None = None,
    normalization: Normalization = "global",
    alpha: float = 0.3,
    gamma: float = 2.0,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    objectness: Tensor | None = None,
    objectness_weight: float = 0.0,
    group: Group = None,
) -> dict[str, Tensor]:
    """Scalars "loss", "loss_class", "loss_box", "loss_giou" (and "loss_objectness") of B pictures.

    Targets are matched one-to-one to tokens (`match.match`). A matched token's targets are its target's
    labels, every other token's are zeros; the class term sums over all real tokens and queries, the box terms
    over the pairs: L1 of corners and 1 - GIoU. When torch.distributed runs, every rank must call this with
    the same B; the mean over ranks of "loss" is the loss of the global batch, and DDP's mean gradients are
    those of one process with the whole batch.

    Args:
        logits: (B,N,Q), any float type; computed in float32 at least.
        boxes: (B,N,4) cxcywh, fractions of the tensor's width and height.
        targets: B mappings: "labels" (M,Q) bool or float, which queries a box answers, and "boxes" (M,4)
            xyxy, fractions. M may be 0 and differ from picture to picture.
        query_mask: (B,Q) bool, True = real query, None = all real. Missing ones weigh nothing.
        token_mask: (B,N) bool, True = the token sees the picture, None = all do. Others never match and weigh
            nothing.
        normalization: what sums are divided by. "global": the class term by the positive labels of all pairs
            of all ranks, the box terms by these pairs. "per_example": every picture by its own labels and
            pairs, then the mean over pictures; the papers' form, which goes with gradients clipped for each
            example (`TrainConfig.per_example_clip`). No divisor is below 1.
        alpha: of the focal loss.
        gamma: likewise.
        weights: of the class, L1 and GIoU terms.
        objectness: (B,N) logits, or None.
        objectness_weight: of their binary cross entropy against the best score that the token itself reached,
            taken as a constant: mean over a picture's real tokens, then over pictures.
        group: process group; None = all ranks.

    Raises:
        ValueError: shapes that do not match, an unknown normalization, a target box that is not finite.

    Source: scenic's owl_vit losses; focal equals torchvision.ops.sigmoid_focal_loss.
    Differs: missing queries are masked instead of being an empty string's; the papers do not spell the
    objectness term out, this is our reading.
    """
    terms = detection_terms(
        logits,
        boxes,
        pad_targets(targets, logits),
        query_mask=query_mask,
        token_mask=token_mask,
        normalization=normalization,
        alpha=alpha,
        gamma=gamma,
        weights=weights,
        objectness=objectness,
        objectness_weight=objectness_weight,
        group=group,
    )
    names = ("loss", "loss_class", "loss_box", "loss_giou", "loss_objectness")
    return {name: value for name in names if (value := getattr(terms, name)) is not None}


def detection_terms(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    *,
    query_mask: Tensor | None = None,
    token_mask: Tensor | None = None,
    normalization: Normalization = "global",
    alpha: float = 0.3,
    gamma: float = 2.0,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    objectness: Tensor | None = None,
    objectness_weight: float = 0.0,
    group: Group = None,
) -> DetectionTerms:
    """The losses of `detection_loss` for targets that are padded already, with matches and overlaps."""
    _check(logits, boxes, targets, query_mask, token_mask, normalization, objectness)
    B = len(logits)
    with torch.autocast(logits.device.type, enabled=False):
        logits, boxes = full(logits), full(boxes)
        labels = targets.labels.to(logits.dtype)
        if query_mask is not None:
            labels = labels * query_mask[:, None]
        targets = Targets(labels, targets.boxes.to(boxes.dtype), targets.mask)
        pairs = match(logits, boxes, targets, token_mask, alpha, gamma)
        rows, token, column = pairs.picture, pairs.token, pairs.target
        wanted, true, found = labels[rows, column], targets.boxes[rows, column], to_xyxy(boxes[rows, token])
        classes = focal_sums(logits, rows, token, wanted, query_mask, token_mask, alpha, gamma)
        distances = _sums(rows, (found - true).abs().sum(dim=1), B)
        gaps = _sums(rows, 1 - giou_pairs(found, true), B)
        positives, boxed = _sums(rows, wanted.sum(dim=1), B), _sums(rows, torch.ones_like(true[:, 0]), B)
        if normalization == "global":
            shares = _shares(torch.stack([positives.sum(), boxed.sum()]), group)
            parts = [classes.sum() * shares[0], distances.sum() * shares[1], gaps.sum() * shares[1]]
            share = shares[1]
        else:  # nothing that another picture or rank has matters
            share = 1 / (B * boxed[rows])
            divided = ((classes, positives), (distances, boxed), (gaps, boxed))
            parts = [(value / count.clamp(min=1)).mean() for value, count in divided]
        loss = torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum()
        loss_objectness = None
        if objectness is not None:
            loss_objectness = _objectness_loss(full(objectness), logits, query_mask, token_mask)
            loss = loss + objectness_weight * loss_objectness
    asked = logits[rows, token].detach()
    if query_mask is not None:
        asked = asked.masked_fill(~query_mask[rows], -torch.inf)
    return DetectionTerms(
        loss=loss,
        loss_class=parts[0],
        loss_box=parts[1],
        loss_giou=parts[2],
        loss_objectness=loss_objectness,
        matches=pairs,
        iou=iou_pairs(found.detach(), true),
        hits=_best_is_wanted(asked, wanted),
        share=share,
    )


def _best_is_wanted(logits: Tensor, wanted: Tensor) -> Tensor:
    """(K,) bool: the largest of each row of logits (K,Q) is one of its targets `wanted` (K,Q)."""
    if not logits.numel():
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    return wanted.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0] > 0


def _sums(rows: Tensor, values: Tensor, size: int) -> Tensor:
    """(size,) sums of values (K,) by their picture; with a graph when K is 0 too."""
    return values.new_zeros(size).index_add(0, rows, values)


def _shares(counts: Tensor, group: Group) -> Tensor:
    """W / max(1, total over the ranks) of counts (n,): times it a rank's sums are its part of a mean."""
    ranks = world(group)[1]
    total = counts.detach().clone()
    if ranks > 1:
        dist.all_reduce(total, group=group)
    return ranks / total.clamp(min=1)


def _objectness_loss(
    objectness: Tensor, logits: Tensor, query_mask: Tensor | None, token_mask: Tensor | None
) -> Tensor:
    """Cross entropy with the best score of each token, mean over real tokens, then over pictures."""
    scores = logits.detach().sigmoid()
    if query_mask is not None:
        scores = scores.masked_fill(~query_mask[:, None], 0)
    best = scores.amax(dim=-1) if scores.shape[-1] else scores.new_zeros(scores.shape[:2])
    values = F.binary_cross_entropy_with_logits(objectness, best, reduction="none")
    if token_mask is None:
        return values.mean()
    return (values.masked_fill(~token_mask, 0).sum(1) / token_mask.sum(1).clamp(min=1)).mean()


def _check(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_mask: Tensor | None,
    token_mask: Tensor | None,
    normalization: str,
    objectness: Tensor | None,
) -> None:
    if normalization not in ("global", "per_example"):
        raise ValueError(f"normalization is 'global' or 'per_example', got '{normalization}'")
    if logits.ndim != 3:
        raise ValueError(f"logits are (B,N,Q), got {tuple(logits.shape)}")
    B, N, Q = logits.shape
    M = targets.mask.shape[-1]
    given = {
        "boxes": (boxes, (B, N, 4)),
        "labels": (targets.labels, (B, M, Q)),
        "target boxes": (targets.boxes, (B, M, 4)),
        "query_mask": (query_mask, (B, Q)),
        "token_mask": (token_mask, (B, N)),
        "objectness": (objectness, (B, N)),
    }
    for name, (value, shape) in given.items():
        if value is not None and value.shape != shape:
            raise ValueError(
                f"{name} must be {shape} for logits {tuple(logits.shape)}, got {tuple(value.shape)}"
            )
