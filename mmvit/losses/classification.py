"""Logits and right classes -> one number: cross-entropy of one class, or binary cross-entropy of several.

Shape letters: b samples of this rank's batch, B of all ranks, C classes.
Source: label smoothing, Szegedy et al. 2016 (arXiv:1512.00567) section 7; mixup, Zhang et al. 2018
(arXiv:1710.09412); division by the labels' counts: VATT (arXiv:2104.11178) appendix A.3.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.losses.gather import Group, gather

Kind = Literal["softmax", "sigmoid"]
Balance = Literal["none", "own", "batch"]


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    known: Tensor | None = None,
    *,
    kind: Kind = "softmax",
    smoothing: float = 0.0,
    balance: Balance = "none",
    group: Group = None,
) -> Tensor:
    """Mean over the b samples of their losses; a sample that is not known adds nothing to the sum.

    It is divided by b whatever is known, so that the mean over ranks is the loss of the global batch.

    Args:
        logits: (b,C).
        targets: (b,C) in 0..1; with softmax each row sums to 1.
        known: (b,) bool, None = all.
        kind: "softmax", or "sigmoid": a binary decision for every class, summed over the classes.
        smoothing: share of a softmax target that is spread evenly over all classes, 0..1.
        balance: what a sample's loss is divided by: "none"; "own": the number of its own labels; "batch": how
            often its labels occur in the global batch, in the mean over its labels. Both are at least 1.
        group: processes of the global batch.

    Raises:
        ValueError: shapes that disagree, a smoothing outside 0..1 or with a sigmoid, an unknown kind.
    """
    if logits.ndim != 2 or targets.shape != logits.shape:
        raise ValueError(
            f"logits and targets must be (b,C), got {tuple(logits.shape)}, {tuple(targets.shape)}"
        )
    check_smoothing(kind, smoothing)
    if kind not in ("softmax", "sigmoid") or balance not in ("none", "own", "batch"):
        raise ValueError(f"kind='{kind}' must be softmax or sigmoid, balance='{balance}' none, own or batch")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = targets.to(logits)
    if kind == "softmax":
        smooth = targets * (1 - smoothing) + smoothing / targets.shape[1]
        losses = -(smooth * F.log_softmax(logits, dim=1)).sum(1)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    if balance == "own":
        losses = losses / targets.sum(1).clamp(min=1)
    elif balance == "batch":
        counts = gather(targets.sum(0)[None], group).sum(0)
        losses = losses / ((targets @ counts) / targets.sum(1).clamp(min=1e-6)).clamp(min=1)
    if known is not None:
        losses = torch.where(known.to(losses.device), losses, torch.zeros_like(losses))
    return losses.sum() / len(losses)


def check_smoothing(kind: Kind, smoothing: float) -> None:
    """Nothing; raises ValueError where labels cannot be smoothed so."""
    if not 0 <= smoothing < 1 or (smoothing and kind == "sigmoid"):
        raise ValueError(
            f"smoothing={smoothing} must lie in 0..1, and at 0 with kind='sigmoid'; kind is '{kind}'"
        )


def mixing_weights(alpha: float, names: Sequence[str], seed: int = 0) -> Tensor:
    """(b,) float32 shares 0..1 of each sample in its mixture, drawn from Beta(alpha, alpha).

    Args:
        alpha: above 0; 1 is uniform, larger ones are nearer to a half.
        names: of the samples in their step; each one's share depends on its name and the seed alone.
        seed: of the draws.
    """

    def draw(name: str) -> float:
        digest = hashlib.sha256(f"mixup {seed} {name}".encode("utf-8", "backslashreplace")).digest()
        return random.Random(digest).betavariate(alpha, alpha)

    return torch.tensor([draw(name) for name in names])


def mixed_rows(x: Tensor, weights: Tensor) -> Tensor:
    """(b,...) each row of x mixed with the row before it, the first one with the last.

    Args:
        x: inputs or targets, floating point.
        weights: (b,) shares of the row itself, from `mixing_weights`.
    """
    share = weights.to(x).reshape(-1, *[1] * (x.ndim - 1))
    return x * share + x.roll(1, 0) * (1 - share)
