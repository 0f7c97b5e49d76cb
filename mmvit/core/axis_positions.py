"""Relative positions of queries and keys on a grid, one table an axis, as extra channels of both.

Place in the path: inside pooling attention. The logit of query i and key j gains q_i . R_axis[i - j] for each
axis. Since that depends on j through its coordinate alone, the sum over the axes is a dot product: the query
carries its logits for every coordinate of the key grid, the key marks its own coordinates with ones.
Shape letters: B batch, H heads, d width of a head, Q/N queries and keys, E = sum of the key grid's extents.
Source: MViTv2 (arXiv:2112.01526) section 4.1 and its repository.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AXES = "thw"


class AxisPositions(nn.Module):
    """Queries and keys -> the same with channels whose product is the relative position's logit.

    Parameters are named after the axis, the last ones of t, h, w: tables (2n-1,d), n the longer of the query
    and the key grid along that axis.

    Args:
        extents: n of each axis.
        head_width: d.

    Raises:
        ValueError: neither two nor three axes.
    """

    def __init__(self, extents: Sequence[int], head_width: int) -> None:
        super().__init__()
        if len(extents) not in (2, 3):
            raise ValueError(f"grid extents are {tuple(extents)}, expected two axes (h,w) or three (t,h,w)")
        self.axes = AXES[-len(extents) :]
        for axis, extent in zip(self.axes, extents, strict=True):
            self.register_parameter(axis, nn.Parameter(torch.empty(2 * extent - 1, head_width)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of deviation 0.02."""
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(
        self, q: Tensor, k: Tensor, q_grid: tuple[int, ...], k_grid: tuple[int, ...], scale: float
    ) -> tuple[Tensor, Tensor]:
        """Queries (B,H,P+Q,d+E) and keys (B,H,P+N,d+E); special tokens have no relative position.

        Args:
            q: (B,H,P+Q,d), P special tokens before those on the grid; not scaled.
            k: (B,H,P+N,d).
            q_grid: Q = its product.
            k_grid: N = its product.
            scale: by which the attention will multiply the logits; the positions are divided by it, since
                theirs are not scaled.
        """
        B, H, _, d = q.shape
        P = q.shape[2] - math.prod(q_grid)
        cells = q[:, :, P:]
        logits = []
        for number, axis in enumerate(self.axes):
            table = relative_rows(getattr(self, axis), q_grid[number], k_grid[number]) / scale
            lines = cells.reshape(B * H, math.prod(q_grid[:number]), q_grid[number], -1, d)
            found = torch.einsum("abncd,nmd->abncm", lines, table)
            logits.append(found.reshape(B, H, -1, k_grid[number]))
        own = F.pad(torch.cat(logits, -1), (0, 0, P, 0))
        marks = F.pad(_coordinates(k_grid, k), (0, 0, P, 0)).expand(B, H, -1, -1)
        return torch.cat([q, own.to(q.dtype)], -1), torch.cat([k, marks], -1)


def relative_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """The row (queries,keys,d) of a relative position table for every pair of coordinates on one axis.

    The shorter grid is spread over the longer: distance = i * max(k/q, 1) + (k-1-j) * max(q/k, 1), rounded
    down. A table of another length is resampled linearly.

    Args:
        table: (2n-1,d); row n-1 means "same place" for equal grids.
        queries: extent q of the query grid.
        keys: extent k of the key grid.

    Differs: from the authors' code and timm, which compute the distance in float32: where q/k is no binary
        fraction (78 over 10) they land one row lower for some pairs. torchvision agrees with this.
    """
    rows = 2 * max(queries, keys) - 1
    if len(table) != rows:
        table = F.interpolate(table.T[None].float(), size=rows, mode="linear")[0].T.to(table.dtype)
    i = torch.arange(queries, device=table.device)[:, None]
    back = torch.arange(keys - 1, -1, -1, device=table.device)
    shorter = min(queries, keys)
    step_i, step_j = (keys, shorter) if keys > queries else (shorter, queries)
    return table[(i * step_i + back * step_j) // shorter]


def _coordinates(grid: tuple[int, ...], like: Tensor) -> Tensor:
    """Ones at the coordinates of each cell (N,E), dtype and device of `like`."""
    marks = []
    for number, extent in enumerate(grid):
        eye = torch.eye(extent, dtype=like.dtype, device=like.device)
        shape = [1] * len(grid) + [extent]
        shape[number] = extent
        marks.append(eye.reshape(shape).expand(*grid, extent).reshape(-1, extent))
    return torch.cat(marks, -1)
