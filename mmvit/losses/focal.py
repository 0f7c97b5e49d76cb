"""The focal loss of independent binary decisions, summed for each picture in one pass that keeps one tensor.

Shape letters: B pictures, N tokens, Q queries, K rows (picture, token) that have something to find.
Source: focal loss (arXiv:1708.02002), equation 5; the values are torchvision.ops.sigmoid_focal_loss's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits that are computed at once: temporaries that stay in a processor's caches, or few launches.
TILE_CPU, TILE_GPU = 1 << 18, 1 << 26


def focal(logits: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """The losses of each logit, any shape, as a positive and as a negative.

    With p the logit's sigmoid: -alpha (1-p)^gamma ln p and -(1-alpha) p^gamma ln(1-p).
    """
    negative, positive = _side(logits, gamma)[0], _side(-logits, gamma)[0]
    return alpha * positive, (1 - alpha) * negative


def focal_sums(
    logits: Tensor,
    picture: Tensor,
    token: Tensor,
    wanted: Tensor,
    query_mask: Tensor | None = None,
    token_mask: Tensor | None = None,
    alpha: float = 0.3,
    gamma: float = 2.0,
) -> Tensor:
    """(B,) sums of the focal losses over the real tokens and queries of each picture.

    Args:
        logits: (B,N,Q), float32 or float64.
        picture: (K,) int64, with `token` the rows whose targets are not all zero; no row twice.
        token: (K,) int64.
        wanted: (K,Q) targets of these rows, 0..1.
        query_mask: (B,Q) bool, True = counts, None = all.
        token_mask: (B,N) bool, likewise.
        alpha: weight of positives; negatives have 1 - alpha.
        gamma: exponent.
    """
    sums: Tensor = _FocalSums.apply(
        logits, picture, token, wanted.to(logits.dtype), query_mask, token_mask, alpha, gamma
    )
    return sums


class _FocalSums(torch.autograd.Function):
    """Value and derivative share their exponentials, and the derivative is all that is kept: one (B,N,Q).

    Written with torch's own operations, as torchvision's is, autograd keeps seven.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        picture: Tensor,
        token: Tensor,
        wanted: Tensor,
        query_mask: Tensor | None,
        token_mask: Tensor | None,
        alpha: float,
        gamma: float,
    ) -> Tensor:
        B, N, Q = logits.shape
        open_tokens = logits.new_ones((B, N), dtype=torch.bool) if token_mask is None else token_mask.clone()
        open_tokens[picture, token] = False  # these rows follow below, whole: no difference of large numbers
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        sums = logits.new_zeros(B)
        tile = TILE_CPU if logits.device.type == "cpu" else TILE_GPU
        step = max(1, tile // max(1, N * Q))
        for i in range(0, B, step):
            part = slice(i, i + step)
            x = logits[part].masked_fill(~open_tokens[part, :, None], -torch.inf)
            if query_mask is not None:
                x.masked_fill_(~query_mask[part, None], -torch.inf)
            value, rise = _side(x, gamma, slope is not None)
            sums[part] = (1 - alpha) * value.sum(dim=(1, 2))
            if slope is not None and rise is not None:
                torch.mul(rise, 1 - alpha, out=slope[part])
        value, rise = _rows(logits[picture, token], wanted, alpha, gamma)
        if query_mask is not None:
            value, rise = (x.masked_fill(~query_mask[picture], 0) for x in (value, rise))
        sums.index_add_(0, picture, value.sum(dim=1))
        if slope is not None:
            slope[picture, token] = rise
            ctx.save_for_backward(slope)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None, None], *[None] * 7)


def _rows(x: Tensor, wanted: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Losses (K,Q) of logits whose targets are `wanted`, and their derivatives."""
    negative, down = _side(x, gamma, True)
    positive, up = _side(-x, gamma, True)
    value = alpha * wanted * positive + (1 - alpha) * (1 - wanted) * negative
    assert up is not None
    assert down is not None
    return value, (1 - alpha) * (1 - wanted) * down - alpha * wanted * up


def _side(x: Tensor, gamma: float, slope: bool = False) -> tuple[Tensor, Tensor | None]:
    """p^gamma softplus(x), p = sigmoid(x), and its derivative if asked for; both 0 at -inf."""
    p, plus = x.sigmoid(), F.softplus(x, threshold=40)
    power = p.square() if gamma == 2 else p.pow(gamma)
    if not slope:
        return power.mul_(plus), None
    rise = (1 - p).mul_(plus).mul_(gamma).add_(p).mul_(power)
    return power.mul_(plus), rise
