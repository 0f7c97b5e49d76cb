"""Softmax attention in plain matrix products with its own backward, for where torch's fused one is slow.

Autograd of the same products would keep scaled queries, scores and copies of all operands. This form keeps
q, k and v, and the probabilities only while they are narrower than the heads; else they are computed anew, a
few samples or heads at a time, so that no more than some megabytes of them exist at once.
Shape letters: B batch, H heads, Q queries, N keys, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2**21  # bytes of scores at once: fewer cost time, more cost memory, neither changes a value

Tile = tuple[slice, slice]


class PlainAttention(torch.autograd.Function):
    """`PlainAttention.apply(q, k, v, bias, scale)` -> (B,H,Q,K), differentiable once in q, k, v and bias.

    q is (B,H,Q,K), k and v (B,H,N,K), bias None or broadcastable to (B,H,Q,N) and added to the scaled scores,
    all of one floating type.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """The attended values (B,H,Q,K)."""
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        narrow = k.shape[2] <= q.shape[3]
        p = None
        for tile in tiles(q, k, whole=narrow):
            p = probabilities(q[tile], k[tile], _part(bias, tile), scale)
            torch.bmm(p, _rows(v, tile), out=_rows(out, tile))
        ctx.save_for_backward(q, k, v, bias, p if narrow else None)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and, where it is asked for, of the bias."""
        q, k, v, bias, kept = ctx.saved_tensors
        gradient, none = gradient.contiguous(), q.new_empty(())
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        db = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        for tile in tiles(q, k, whole=kept is not None):
            p = probabilities(q[tile], k[tile], _part(bias, tile), ctx.scale) if kept is None else kept
            g = _rows(gradient, tile)
            torch.bmm(p.transpose(1, 2), g, out=_rows(dv, tile))
            ds = torch.ops.aten._softmax_backward_data(g @ _rows(v, tile).transpose(1, 2), p, -1, p.dtype)
            torch.baddbmm(none, ds, _rows(k, tile), beta=0, alpha=ctx.scale, out=_rows(dq, tile))
            back = ds.transpose(1, 2)
            torch.baddbmm(none, back, _rows(q, tile), beta=0, alpha=ctx.scale, out=_rows(dk, tile))
            if (part := _part(db, tile)) is not None:
                part += ds.view(*q[tile].shape[:3], -1).sum_to_size(part.shape)
        return dq, dk, dv, db, None


def tiles(q: Tensor, k: Tensor, whole: bool = False) -> Iterator[Tile]:
    """Which samples and heads are computed together: whole samples, or some heads of one sample.

    Args:
        q: (B,H,Q,K).
        k: (B,H,N,K).
        whole: all of them at once.
    """
    B, H = q.shape[:2]
    size = max(1, q.shape[2] * k.shape[2] * q.element_size())
    heads = H if whole else min(H, max(1, TILE // size))
    samples = B if whole else max(1, TILE // (size * H)) if heads == H else 1
    for b in range(0, B, samples):
        for h in range(0, H, heads):
            yield slice(b, b + samples), slice(h, h + heads)


def probabilities(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scores, samples and heads as one axis: (B*H,Q,N).

    Args:
        q: (B,H,Q,K), one tile.
        k: (B,H,N,K).
        bias: broadcastable to (B,H,Q,N), or None.
        scale: of the scores, folded into the product.
    """
    rows, columns = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)
    scores = torch.baddbmm(q.new_empty(()), rows, columns, beta=0, alpha=scale)
    if bias is not None:
        scores.view(*q.shape[:3], -1).add_(bias)
    return scores.softmax(-1)


def _rows(x: Tensor, tile: Tile) -> Tensor:
    """A view (samples*heads, …) of a tile of a contiguous x (B,H,…)."""
    return x[tile].flatten(0, 1)


def _part(bias: Tensor | None, tile: Tile) -> Tensor | None:
    """A view of what a bias adds to a tile: axes that it broadcasts over stay whole."""
    if bias is None:
        return None
    bias = bias.view((1,) * (4 - bias.ndim) + bias.shape)
    return bias[tuple(s if n > 1 else slice(None) for s, n in zip(tile, bias.shape[:2], strict=True))]
