"""A learned bias for every pair of tokens, read from a table by where the two lie relative to each other.

Shape letters: B batch, P leading special tokens, N = P + grid tokens, Q queried tokens, H heads, R rows.
Source: BEiT (arXiv:2106.08254) appendix A after Swin (arXiv:2103.14030): one row per offset and three more
rows for special tokens. Resampling: Beit in transformers ("bilinear") and in timm ("geometric").
Differs: any count of special tokens (all share the three rows) and any number of grid axes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELATIVE_RESAMPLE = ("bilinear", "geometric")


class Places(NamedTuple):
    """Where the tokens of a batch lie: what every block's table is read with.

    Attributes:
        grid: extent of the full grid.
        rows: int64 rows of the table of that grid, (Q,N) for all samples or (B,Q,N) for each.
    """

    grid: tuple[int, ...]
    rows: Tensor

    def asked_by(self, tokens: Tensor) -> Places:
        """The same places with only `tokens` (B,Q) asking, positions in 0..N-1: rows (B,Q,N)."""
        if self.rows.ndim == 2:
            return Places(self.grid, self.rows[tokens])
        picked = self.rows.gather(1, tokens[..., None].expand(-1, -1, self.rows.shape[-1]))
        return Places(self.grid, picked)


def places_of(grid: tuple[int, ...], prefix: int, kept: Tensor | None, device: torch.device) -> Places:
    """Table rows for every pair of tokens, (N,N), or (B,N',N') when some grid tokens were dropped.

    Args:
        grid: extent of the full grid, row-major.
        prefix: P, count of leading special tokens.
        kept: (B,K) int64 index of each grid token in the full grid, None = all are there.
        device: where the index is made.
    """
    index = relative_index(grid, prefix, device)
    if kept is not None:
        special = torch.arange(prefix, device=kept.device).expand(kept.shape[0], -1)
        rows = torch.cat([special, kept + prefix], dim=1)
        index = index[rows[:, :, None], rows[:, None, :]]
    return Places(grid, index)


def relative_index(grid: tuple[int, ...], prefix: int, device: torch.device | None = None) -> Tensor:
    """Table rows (P+N,P+N) int64: entry (i,j) is the row for query i and key j.

    Two grid tokens read the row of their offset, row-major over 2n-1 offsets an axis; behind those rows stand
    special -> grid, grid -> special, special -> special.

    Args:
        grid: extent, row-major.
        prefix: P.
        device: where it is made.
    """
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    offset = torch.zeros((), dtype=torch.int64, device=device)
    for axis, n in zip(axes, grid, strict=True):
        place = axis.flatten()
        offset = offset * (2 * n - 1) + (place[:, None] - place[None, :] + n - 1)
    rows = math.prod(2 * n - 1 for n in grid)
    index = F.pad(offset, (prefix, 0, prefix, 0))
    index[:prefix, prefix:], index[prefix:, :prefix], index[:prefix, :prefix] = rows, rows + 1, rows + 2
    return index


class RelativeBias(nn.Module):
    """The table of one block, or of all blocks when they share it: places -> (1 or B,H,Q,N).

    Args:
        grid: extent of the grid for which the table is stored.
        num_heads: H.
        resample: how the table follows another grid, "bilinear" (evenly spaced offsets) or "geometric"
            (offsets spaced ever wider outwards, then linear: far offsets stretch, near ones stay).

    Raises:
        ValueError: an unknown way of resampling.
    """

    def __init__(self, grid: tuple[int, ...], num_heads: int, *, resample: str = "bilinear") -> None:
        super().__init__()
        if resample not in RELATIVE_RESAMPLE:
            raise ValueError(
                f"relative_resample is '{resample}', expected one of {', '.join(RELATIVE_RESAMPLE)}"
            )
        self.grid, self.resample = tuple(grid), resample
        rows = math.prod(2 * n - 1 for n in grid) + 3
        self.table = nn.Parameter(torch.empty(rows, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros: at the start, attention knows nothing of places."""
        nn.init.zeros_(self.table)

    def forward(self, places: Places) -> Tensor:
        """What is added to the attention scores: (1,H,Q,N), or (B,H,Q,N) when samples differ.

        Args:
            places: of the tokens; their grid may differ from the table's.

        Raises:
            ValueError: a grid with another number of axes.
        """
        table = resample_table(self.table, self.grid, places.grid, self.resample)
        bias = table.t()[:, places.rows]
        return bias[None] if places.rows.ndim == 2 else bias.transpose(0, 1)


def resample_table(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], mode: str) -> Tensor:
    """The table (R',H) of grid `new` out of that of grid `old` (R,H), same dtype, computed in float32.

    The last three rows, of special tokens, stay as they are.

    Args:
        table: (R,H), R = prod(2n-1) + 3 over the axes of `old`.
        old: extent of the grid it is stored for.
        new: extent of the grid wanted.
        mode: a name in `RELATIVE_RESAMPLE`.

    Raises:
        ValueError: unknown mode, a table of another length, or grids with different numbers of axes.
    """
    if mode not in RELATIVE_RESAMPLE:
        raise ValueError(f"relative_resample is '{mode}', expected one of {', '.join(RELATIVE_RESAMPLE)}")
    sizes = [2 * n - 1 for n in old]
    if len(old) != len(new) or table.shape[0] != math.prod(sizes) + 3:
        raise ValueError(
            f"relative table has {table.shape[0]} rows for grid {old} and grid {new} is asked for, expected "
            f"{math.prod(sizes) + 3} rows and grids with as many axes"
        )
    if tuple(old) == tuple(new):
        return table
    values = table[:-3].float().unflatten(0, sizes)
    for axis, (n, m) in enumerate(zip(old, new, strict=True)):
        # Also along an axis that stays: there geometric spacing is no identity, and the peer does the same.
        weights = _weights(2 * n - 1, 2 * m - 1, mode).to(values.device)
        values = torch.tensordot(weights, values, dims=([1], [axis])).movedim(0, axis)
    return torch.cat([values.flatten(0, len(new) - 1).to(table.dtype), table[-3:]])


def _weights(old: int, new: int, mode: str) -> Tensor:
    """The linear map (new,old) float32 from offsets -old//2..old//2 to offsets -new//2..new//2."""
    if mode == "bilinear":
        return F.interpolate(torch.eye(old)[None], size=new, mode="linear", align_corners=False)[0].t()
    known = torch.tensor(_geometric(old // 2, new // 2))
    wanted = torch.arange(new, dtype=torch.float32) - new // 2
    right = torch.bucketize(wanted, known).clamp(1, max(old - 1, 1))
    if old == 1:
        return torch.ones(new, 1)
    left = right - 1
    share = ((wanted - known[left]) / (known[right] - known[left])).clamp(0, 1)
    weights = torch.zeros(new, old)
    weights.scatter_(1, left[:, None], 1 - share[:, None])
    return weights.scatter_add_(1, right[:, None], share[:, None])


def _geometric(old: int, new: int) -> list[float]:
    """Where the 2*old+1 known offsets lie so that the outermost reaches `new`: 0, 1, 1+q, 1+q+q^2, ..."""
    low, high = 1.01, 1.5  # the interval in which the published code looks for q
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**old) / (1 - q) > new:
            high = q
        else:
            low = q
    half = [0.0]
    for i in range(old):
        half.append(half[-1] + q**i)
    return [-x for x in reversed(half[1:])] + half
