"""The logits strip of one rank, walked in tiles: values forward, recomputed tiles backward.

Shape letters: b rows of this rank, B rows of all ranks, R rows of a tile, E embedding dim.
Per tile only a few (R,B) matrices live; a strip of a single tile is kept for the backward, not recomputed.
Source: the derivation in docs/training.md; the values are those of CLIP's and SigLIP's plain forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmvit.losses.gather import Group, gather, world

Duplicates = Literal["negative", "mask", "positive"]
TIE = 1e-6  # cosines closer than this are equal: rounding must not make a collapsed model look good


@dataclass(frozen=True)
class Strip:
    """Where the rank's rows lie in the global batch and how they are walked.

    Attributes:
        offset: global index of the first own row.
        block: R.
        ids: (B,) int64 ids of duplicates, or None.
        duplicates: what pairs with equal ids are to each other.
        group: process group of the column statistics.
        hits: whether to count in-batch retrieval hits.
    """

    offset: int
    block: int
    ids: Tensor | None
    duplicates: Duplicates
    group: Group
    hits: bool

    def tiles(self, b: int) -> Iterator[tuple[int, int]]:
        """Row ranges (start, stop) of the tiles, relative to the rank's own rows."""
        for start in range(0, b, self.block):
            yield start, min(start + self.block, b)

    def equal(self, start: int, stop: int) -> Tensor | None:
        """(R,B) bool, True where ids are equal (the pair itself included); None without ids."""
        if self.ids is None:
            return None
        return self.ids[self.offset + start : self.offset + stop, None] == self.ids[None, :]

    def diagonal(self, tile: Tensor, start: int) -> Tensor:
        """(R,) view of the tile's entries that belong to the pairs themselves."""
        return tile.diagonal(self.offset + start)[: tile.shape[0]]


def softmax_strip(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, strip: Strip
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, hits of rows (b,), hits of own columns (b,)): both directions' cross entropies."""
    return _Softmax.apply(rows, columns, scale, strip)


def sigmoid_strip(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, strip: Strip
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, hits of rows (b,), hits of own columns (b,)): the pairwise logistic losses."""
    return _Sigmoid.apply(rows, columns, scale, bias, strip)


class _Hits:
    """Counts, tile by tile, which pairs win against everything that does not belong to them."""

    def __init__(self, rows: Tensor, columns: Tensor, strip: Strip):
        b = rows.shape[0]
        self.strip, self.own = strip, slice(strip.offset, strip.offset + b)
        self.rows = torch.zeros(b, dtype=torch.bool, device=rows.device)
        self.lost = torch.zeros(columns.shape[0], dtype=torch.bool, device=rows.device)
        if strip.hits:
            diagonal = (rows * columns[self.own]).sum(-1) - TIE
            self.row_bar, self.column_bar = diagonal, gather(diagonal, strip.group)

    def add(self, cosines: Tensor, equal: Tensor | None, start: int) -> None:
        if not self.strip.hits:
            return
        rivals = cosines.clone()
        if equal is None:
            self.strip.diagonal(rivals, start).fill_(-2.0)
        else:
            rivals.masked_fill_(equal, -2.0)
        stop = start + cosines.shape[0]
        self.rows[start:stop] = rivals.amax(1) < self.row_bar[start:stop]
        self.lost |= (rivals >= self.column_bar).any(0)

    def result(self) -> tuple[Tensor, Tensor]:
        if self.strip.hits and world(self.strip.group)[1] > 1:
            lost = self.lost.to(torch.uint8)
            dist.all_reduce(lost, op=dist.ReduceOp.MAX, group=self.strip.group)
            self.lost = lost.bool()
        won = ~self.lost[self.own] if self.strip.hits else torch.zeros_like(self.rows)
        return self.rows, won


def _masked(logits: Tensor, equal: Tensor | None, strip: Strip, start: int) -> Tensor:
    """Logits with the duplicates, except the pairs themselves, out of the race; works in place."""
    if strip.duplicates != "mask" or equal is None:
        return logits
    keep = strip.diagonal(logits, start).clone()
    logits.masked_fill_(equal, -torch.inf)
    strip.diagonal(logits, start).copy_(keep)
    return logits


def _targets(equal: Tensor | None, strip: Strip, dtype: torch.dtype) -> Tensor | None:
    """(R,B) uniform over the equal ones when duplicates are positives; None = the identity."""
    if strip.duplicates != "positive" or equal is None:
        return None
    return equal.to(dtype) / equal.sum(1, keepdim=True)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, strip: Strip
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, total = rows.shape[0], columns.shape[0]
        hits = _Hits(rows, columns, strip)
        row_lse, positives = rows.new_empty(b), rows.new_zeros(())
        peak, mass = rows.new_full((total,), torch.finfo(rows.dtype).min), rows.new_zeros(total)
        cosines = rows.new_empty(0)
        for start, stop in strip.tiles(b):
            cosines = rows[start:stop] @ columns.T
            equal = strip.equal(start, stop)
            hits.add(cosines, equal, start)
            logits = _masked(cosines * scale, equal, strip, start)
            target = _targets(equal, strip, logits.dtype)
            own = strip.diagonal(logits, start) if target is None else target * logits
            positives += own.sum()
            row_lse[start:stop] = logits.logsumexp(1)
            higher = torch.maximum(peak, logits.amax(0))
            mass = mass * (peak - higher).exp() + (logits - higher).exp_().sum(0)
            peak = higher
        column_lse = _complete(peak, mass, strip.group)
        mine = column_lse[strip.offset : strip.offset + b]
        loss = ((row_lse.sum() + mine.sum()) / 2 - positives) / b
        kept = cosines if strip.block >= b else None
        ctx.save_for_backward(rows, columns, scale, row_lse, column_lse, kept)
        ctx.strip = strip
        hits_rows, hits_columns = hits.result()
        ctx.mark_non_differentiable(hits_rows, hits_columns)
        return loss, hits_rows, hits_columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        rows, columns, scale, row_lse, column_lse, kept = ctx.saved_tensors
        strip, b = ctx.strip, rows.shape[0]

        def pull(cosines: Tensor, start: int, stop: int) -> Tensor:
            equal = strip.equal(start, stop)
            logits = _masked(cosines * scale, equal, strip, start)
            target = _targets(equal, strip, logits.dtype)
            out = (logits - row_lse[start:stop, None]).exp_()
            out += (logits.sub_(column_lse)).exp_()
            if target is None:
                strip.diagonal(out, start).sub_(2.0)
            else:
                out.sub_(target, alpha=2.0)
            return out.mul_(grad / (2 * b))

        d_rows, d_columns, d_scale, _d_bias = _walk_back(ctx, pull, rows, columns, scale, kept, strip)
        return d_rows, d_columns, d_scale, None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, strip: Strip
    ) -> tuple[Tensor, Tensor, Tensor]:
        b = rows.shape[0]
        hits = _Hits(rows, columns, strip)
        total, cosines = rows.new_zeros(()), rows.new_empty(0)
        for start, stop in strip.tiles(b):
            cosines = rows[start:stop] @ columns.T
            equal = strip.equal(start, stop)
            hits.add(cosines, equal, start)
            logits = _masked(cosines * scale + bias, equal, strip, start)
            signed = -logits
            if strip.duplicates == "positive" and equal is not None:
                signed = torch.where(equal, logits, signed)
            else:
                strip.diagonal(signed, start).neg_()
            total -= F.logsigmoid(signed).sum()
        ctx.save_for_backward(rows, columns, scale, bias, cosines if strip.block >= b else None)
        ctx.strip = strip
        hits_rows, hits_columns = hits.result()
        ctx.mark_non_differentiable(hits_rows, hits_columns)
        return total / b, hits_rows, hits_columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias, kept = ctx.saved_tensors
        strip, b = ctx.strip, rows.shape[0]

        def pull(cosines: Tensor, start: int, stop: int) -> Tensor:
            equal = strip.equal(start, stop)
            out = _masked(cosines * scale + bias, equal, strip, start).sigmoid_()
            if strip.duplicates == "positive" and equal is not None:
                out -= equal.to(out.dtype)
            else:
                strip.diagonal(out, start).sub_(1.0)
            return out.mul_(grad / b)

        d_rows, d_columns, d_scale, d_bias = _walk_back(ctx, pull, rows, columns, scale, kept, strip)
        return d_rows, d_columns, d_scale, d_bias, None


def _complete(peak: Tensor, mass: Tensor, group: Group) -> Tensor:
    """(B,) log-sum-exp of the columns over the strips of all ranks."""
    if world(group)[1] > 1:
        highest = peak.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        mass = mass * (peak - highest).exp()
        dist.all_reduce(mass, op=dist.ReduceOp.SUM, group=group)
        peak = highest
    return peak + mass.log()


def _walk_back(
    ctx: Any, pull: Any, rows: Tensor, columns: Tensor, scale: Tensor, kept: Tensor | None, strip: Strip
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients of (rows, columns, scale, bias); `pull` gives a tile's gradient by its logits (R,B)."""
    with torch.autocast(rows.device.type, enabled=False):
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        d_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        d_scale, d_bias = torch.zeros_like(scale), torch.zeros_like(scale)
        for start, stop in strip.tiles(rows.shape[0]):
            cosines = rows[start:stop] @ columns.T if kept is None else kept
            tile = pull(cosines, start, stop)
            d_scale += torch.dot(tile.flatten(), cosines.flatten())
            d_bias += tile.sum()
            if d_rows is not None:
                torch.mm(tile, columns, out=d_rows[start:stop])
                d_rows[start:stop] *= scale
            if d_columns is not None:
                d_columns.addmm_(tile.T, rows[start:stop] * scale)
    return d_rows, d_columns, d_scale, d_bias
