"""Which candidate answers for which annotated box: the assignment of least total cost, picture by picture.

Place in the path: logits and boxes of all tokens + targets -> pairs, for the losses of `detection.py`.
Shape letters: B pictures, N tokens, Q queries, M targets (padded), K pairs of the whole batch.
Source: DETR (arXiv:2005.12872) section 3.1; costs as in OWL-ViT (arXiv:2205.06230) and scenic's matchers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmvit.boxes import giou_pairs, to_cxcywh, to_xyxy
from mmvit.losses.focal import focal
from mmvit.losses.targets import Targets

# Entries of a cost that are computed at once: temporaries that stay in a processor's caches, or few launches.
TILE_CPU, TILE_GPU = 1 << 18, 1 << 24


@dataclass(frozen=True)
class Matches:
    """K pairs of a token and a target, ordered by picture; a token or target is in one pair at most.

    Attributes:
        picture, token, target: (K,) int64 each: indices into B, N and M.
    """

    picture: Tensor
    token: Tensor
    target: Tensor


@torch.no_grad()
def match(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    token_mask: Tensor | None = None,
    alpha: float = 0.3,
    gamma: float = 2.0,
) -> Matches:
    """The pairs of least total cost, as many in a picture as the fewer of its real targets and tokens.

    The costs go to the host in one copy and are solved there in float64. A cost that is not finite becomes
    1.1 * the picture's largest + 10.

    Args:
        logits: (B,N,Q).
        boxes: (B,N,4) cxcywh, fractions.
        targets: of the same pictures; labels of queries that are not asked must be 0.
        token_mask: (B,N) bool, True = the token may be matched, None = all may.
        alpha: of the focal cost.
        gamma: likewise.

    Raises:
        ValueError: a real target's box has a number that is not finite.
    """
    B, N, Q = logits.shape
    M = _last(targets.mask.any(dim=0))  # one number to the host first: most of a wide padding is not computed
    targets = Targets(targets.labels[:, :M], targets.boxes[:, :M], targets.mask[:, :M])
    rows = max(1, (TILE_CPU if logits.device.type == "cpu" else TILE_GPU) // max(1, N * max(M, Q)))
    parts = []
    for i in range(0, B, rows):
        part = slice(i, i + rows)
        found = cost(logits[part], boxes[part], targets.labels[part], targets.boxes[part], alpha, gamma)
        found = found.nan_to_num(torch.inf, torch.inf, torch.inf)
        # Three facts travel in the one copy: +inf a bad cost, NaN a bad target, -inf padding.
        bad = ~torch.isfinite(targets.boxes[part]).all(dim=-1)
        found = found.masked_fill(bad[:, None], torch.nan)
        found = found.masked_fill(~targets.mask[part][:, None], -torch.inf)
        if token_mask is not None:
            found = found.masked_fill(~token_mask[part][..., None], -torch.inf)
        parts.append(found)
    costs = torch.cat(parts).cpu().numpy() if parts else np.empty((0, N, M))
    picture, token, target = _assign_all(costs)
    pairs = torch.from_numpy(np.stack([picture, token, target])).to(logits.device)
    return Matches(*pairs)


def cost(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    alpha: float = 0.3,
    gamma: float = 2.0,
) -> Tensor:
    """Cost (B,N,M), at least float32, of answering each target with each token: focal + L1 + (-GIoU).

    The focal cost is what the loss would change by, SUMMED over the target's labels; L1 is taken in cxcywh,
    unlike the loss.

    Args:
        logits: (B,N,Q).
        boxes: (B,N,4) cxcywh, fractions.
        labels: (B,M,Q), 0..1.
        target_boxes: (B,M,4) xyxy, fractions.
        alpha: as in the loss.
        gamma: likewise.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, boxes, target_boxes = full(logits), full(boxes), full(target_boxes).to(boxes.device)
        positive, negative = focal(logits, alpha, gamma)
        classes = (positive - negative) @ labels.to(logits.dtype).transpose(-1, -2)
        distance = torch.cdist(boxes, to_cxcywh(target_boxes), p=1)
        return classes + distance - giou_pairs(to_xyxy(boxes)[:, :, None], target_boxes[:, None])


def full(x: Tensor) -> Tensor:
    """`x` out of autocast: float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def _last(mask: Tensor) -> int:
    """One more than the index of the last True of mask (M,)."""
    places = torch.arange(1, len(mask) + 1, device=mask.device)
    return int((places * mask).amax()) if len(mask) else 0


def _assign_all(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, token and target (K,) int64 of all pairs; costs (B,N,M) with -inf where padding is."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for b, c in enumerate(costs):
        real = c != -np.inf
        rows, columns = np.flatnonzero(real.any(axis=1)), np.flatnonzero(real.any(axis=0))
        if not (len(rows) and len(columns)):
            continue
        c = c[np.ix_(rows, columns)].astype(np.float64)
        if np.isnan(c).any():
            m = columns[np.isnan(c).any(axis=0)][0]
            raise ValueError(
                f"box {m} of picture {b} has a number that is not finite: leave such boxes out of the targets"
            )
        i, m = _assign(c)
        found.append((np.full(len(i), b), rows[i], columns[m]))
    if not found:
        return (np.empty(0, np.int64),) * 3
    picture, token, target = (np.concatenate(column).astype(np.int64) for column in zip(*found, strict=True))
    return picture, token, target


def _assign(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the assignment of least cost; c (n,m) float64, +inf where a cost is not finite."""
    from scipy.optimize import linear_sum_assignment

    good = np.isfinite(c)
    if not good.all():
        c = np.where(good, c, 1.1 * (c[good].max() if good.any() else 0.0) + 10)
    return linear_sum_assignment(c)
