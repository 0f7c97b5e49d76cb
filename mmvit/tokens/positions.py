"""Positions of tokens on a grid: learned tables, their resampling to another grid, and fixed sine tables.

Shape letters: B batch, N grid tokens, P leading special tokens, D width.
Source: ViT (arXiv:2010.11929) section 3.2 (resampling); MoCo v3 (arXiv:2104.02057), MAE (arXiv:2111.06377)
and VideoMAE (arXiv:2203.12602) for the sine tables; AST (arXiv:2104.01778) section 2.2 (cut or stretch);
OWLv2 (arXiv:2306.09683), as scenic evaluates it (crop).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.types import Tokens

# The same table resampled by different code bases gives different numbers, so the mode is always named:
RESAMPLE: dict[str, dict[str, Any]] = {
    "bilinear_align_corners": {
        "mode": "bilinear",
        "align_corners": True,
    },  # big_vision, when loading (scipy zoom)
    "bilinear": {"mode": "bilinear", "align_corners": False},  # timm, when reading big_vision's files
    "bilinear_antialias": {"mode": "bilinear", "align_corners": False, "antialias": True},  # FlexiViT
    "bicubic": {
        "mode": "bicubic",
        "align_corners": False,
    },  # DeiT's fine-tuning, transformers' DINOv2 and ViT
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},  # timm
    "cut_or_stretch": {},  # AST: the middle of a longer table, a shorter one stretched linearly, per axis
    "crop": {},  # OWLv2 below its native size: the first rows and columns, as pictures are padded behind
}
CUT_OR_STRETCH = "cut_or_stretch"
CROP = "crop"
RECOMPUTE = "recompute"  # no resampling: a fixed table is made anew for the grid at hand (VideoMAE)


def resample_grid(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], mode: str) -> Tensor:
    """The positions (1,n,D) of grid `new` out of a table (1,N,D) of grid `old`, same dtype.

    A grid with a time axis is resampled in space at each time, as VideoMAE's fine-tuning does, and then
    linearly in time.

    Args:
        table: (1,N,D), row-major, grid rows only (no row of a class token).
        old: (N,), (H,W) or (T,H,W) tokens, N = their product.
        new: likewise, of n tokens.
        mode: a name in `RESAMPLE`. Computed in float32.

    Raises:
        ValueError: unknown mode, a table that is not N long, or a crop that is larger than the table.
    """
    if mode not in RESAMPLE:
        raise ValueError(f"position_resample is '{mode}', expected one of {', '.join(RESAMPLE)}")
    if table.shape[1] != math.prod(old):
        size = "x".join(map(str, old))
        raise ValueError(f"position table has {table.shape[1]} rows, expected {size} for its grid")
    if old == new:
        return table
    said = f"grid {new} is larger than the stored {old}"
    if len(old) == 1:  # a line is a grid of one row
        old, new = (1, *old), (1, *new)
    assert len(old) == len(new) in (2, 3), "only grids of one to three axes are resampled"
    image = table.float().reshape(-1, *old[-2:], table.shape[-1]).permute(0, 3, 1, 2)  # (T,D,H,W)
    if mode == CUT_OR_STRETCH:
        image = _cut_or_stretch(image, new[-2:])
    elif mode == CROP:
        if any(n > o for n, o in zip(new[-2:], old[-2:], strict=True)):
            raise ValueError(f"position_resample is 'crop', and {said}")
        image = image[:, :, : new[-2], : new[-1]]
    elif old[-2:] != new[-2:]:
        image = F.interpolate(image, size=new[-2:], **RESAMPLE[mode])
    rows = image.permute(0, 2, 3, 1).flatten(1, 2)  # (T,h*w,D)
    if len(old) == 3 and old[0] != new[0]:
        T, n, D = rows.shape
        rows = F.interpolate(rows.reshape(1, T, n * D).transpose(1, 2), size=new[0], mode="linear")
        rows = rows.transpose(1, 2).reshape(new[0], n, D)
    return rows.reshape(1, -1, table.shape[-1]).to(table.dtype)


def _cut_or_stretch(image: Tensor, new: tuple[int, ...]) -> Tensor:
    """Table (T,D,H,W) at `new` (h,w): an axis that shrinks keeps its middle, one that grows is stretched."""
    for axis, size in ((3, new[1]), (2, new[0])):
        had = image.shape[axis]
        if size <= had:
            image = image.narrow(axis, had // 2 - size // 2, size)
        else:
            goal = (image.shape[2], size) if axis == 3 else (size, image.shape[3])
            image = F.interpolate(image, size=goal, mode="bilinear", align_corners=False)
    return image


def sincos_2d(
    grid: tuple[int, int], width: int, temperature: float = 10_000.0, closed: bool = True
) -> Tensor:
    """Fixed positions (1,h*w,D) float32, each row [sin xw, cos xw, sin yw, cos yw], w_k = t^(-k/(D/4-1)).

    Args:
        grid: (h,w) tokens; x and y count tokens from 0.
        width: D, a multiple of 4 and at least 8.
        temperature: t, the ratio of the fastest to the slowest frequency.
        closed: whether the slowest frequency is 1/t exactly (MoCo v3); else w_k = t^(-k/(D/4)) (MAE).

    Raises:
        ValueError: the width is not a multiple of 4, or below 8.

    Source: MoCo v3; big_vision `posemb_sincos_2d`; MAE `get_2d_sincos_pos_embed`, whose "h" half holds x.
    """
    if width % 4 or width < 8:
        raise ValueError(f"sincos2d positions need a width that is a multiple of 4, at least 8, got {width}")
    quarter = width // 4
    omega = temperature ** -(torch.arange(quarter, dtype=torch.float64) / (quarter - closed))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    xw, yw = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([xw.sin(), xw.cos(), yw.sin(), yw.cos()], dim=1)[None].float()


def sincos_1d(count: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed positions (1,N,D) float32 of the row-major index n: columns 2k sin(n w_k), 2k+1 cos(n w_k).

    w_k = t^(-2k/D). Computed in float64.

    Args:
        count: N, all tokens of the grid in one line.
        width: D, even.
        temperature: t.

    Raises:
        ValueError: an odd width.

    Source: VideoMAE `get_sinusoid_encoding_table`; Attention Is All You Need (arXiv:1706.03762) section 3.5.
    """
    if width % 2:
        raise ValueError(f"sincos1d positions need an even width, got {width}")
    exponent = torch.arange(0, width, 2, dtype=torch.float64) / width
    angle = torch.arange(count, dtype=torch.float64)[:, None] / temperature**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[None].float()


def sincos_1d_halves(count: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed positions (1,N,D) float32 of the index n: each row [sin n w, cos n w], w_k = t^(-k/(D/2-1)).

    Computed in float64.

    Args:
        count: N, all tokens of the grid in one line.
        width: D, even and at least 4.
        temperature: t, the ratio of the fastest to the slowest frequency.

    Raises:
        ValueError: an odd width, or one below 4.

    Source: Whisper (arXiv:2212.04356) section 2.2 and its code.
    """
    if width % 2 or width < 4:
        raise ValueError(f"sincos1d_whisper positions need an even width of at least 4, got {width}")
    half = width // 2
    omega = temperature ** -(torch.arange(half, dtype=torch.float64) / (half - 1))
    angle = torch.arange(count, dtype=torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1)[None].float()


# Positions that are computed from the grid, by name: (grid, width) -> a table (1,N,D), or None for none.
FIXED: dict[str, Callable[[tuple[int, ...], int], Tensor | None]] = {
    "sincos2d": lambda grid, width: sincos_2d((grid[0], grid[1]), width),
    "sincos2d_mae": lambda grid, width: sincos_2d((grid[0], grid[1]), width, closed=False),
    "sincos1d": lambda grid, width: sincos_1d(math.prod(grid), width),
    "sincos1d_whisper": lambda grid, width: sincos_1d_halves(math.prod(grid), width),
    "none": lambda grid, width: None,
}


def separable_length(grid: tuple[int, ...]) -> int:
    """Rows of a separable table for a grid (T,H,W): one for every time and one for every place.

    Raises:
        ValueError: a grid without a time axis.
    """
    if len(grid) != 3:
        raise ValueError(f"position is 'separable', expected a grid (t,h,w), got {grid}: choose 'learned'")
    return grid[0] + grid[1] * grid[2]


def separable(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], mode: str) -> Tensor:
    """The positions (1,t*h*w,D) of grid `new`: each the sum of its time's row and its place's row.

    Args:
        table: (1,T+H*W,D), times before places, which are row-major.
        old: (T,H,W) of the table.
        new: (t,h,w). Places are resampled by `mode`, times linearly.
        mode: a name in `RESAMPLE`.

    Raises:
        ValueError: unknown mode.

    Source: MViT (arXiv:2104.11227).
    """
    time, place = table[:, : old[0]], table[:, old[0] :]
    place = resample_grid(place, old[1:], new[1:], mode)
    if old[0] != new[0]:
        time = F.interpolate(time.float().transpose(1, 2), size=new[0], mode="linear").transpose(1, 2)
    return (time[:, :, None].to(table.dtype) + place[:, None]).flatten(1, 2)


def axes(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], mode: str) -> Tensor:
    """The positions (1,n,D) of grid `new`, row-major: each the sum of one row for every axis.

    Args:
        table: (1,sum of `old`,D), the first axis' rows first.
        old: extents of the table's axes, one or more.
        new: as many; an axis of another extent is resampled on its own.
        mode: a name in `RESAMPLE`.

    Raises:
        ValueError: another number of axes, an unknown mode, or a crop that is larger than the table.

    Source: VATT (arXiv:2104.11178) section 3.1.
    Differs: its code interpolates by a cubic spline through i/n, which shifts the rows towards the start;
    here the middle of an axis stays in the middle.
    """
    if len(old) != len(new):
        raise ValueError(f"positions are stored for a grid of {len(old)} axes, and the tokens lie on {new}")
    total: Tensor | None = None
    for axis, rows in enumerate(table.split(old, dim=1)):
        rows = resample_grid(rows, (old[axis], 1), (new[axis], 1), mode)
        shape = [1] * len(new)
        shape[axis] = new[axis]
        rows = rows.reshape(1, *shape, -1)
        total = rows if total is None else total + rows
    assert total is not None
    return total.flatten(1, -2)


def add_positions(tokens: Tokens, table: Tensor, stored: tuple[int, ...], mode: str) -> Tokens:
    """`tokens` with the grid rows of `table` added, resampled when their grid is not the stored one.

    Args:
        tokens: (B,N,D) grid tokens without special tokens, all present.
        table: (1,P+N',D); rows before the last N' belong to special tokens and are ignored here.
        stored: the grid of the table, N' = its product.
        mode: a name in `RESAMPLE`.

    Raises:
        ValueError: unknown mode.
    """
    rows = table[:, table.shape[1] - math.prod(stored) :]
    if tokens.grid != stored:
        rows = resample_grid(rows, stored, tokens.grid, mode)
    return Tokens(tokens.values + rows, tokens.grid, tokens.prefix, tokens.mask, tokens.kept)


def prepend(tokens: Tokens, *special: Tensor | None) -> Tokens:
    """`tokens` led by special tokens, each (1,S,D) and the same for every sample; None is skipped.

    The result's `prefix` counts them; they are always real.
    """
    present = [s for s in special if s is not None]
    if not present:
        return tokens
    B = tokens.values.shape[0]
    values = torch.cat(
        [s.expand(B, -1, -1).to(tokens.values.dtype) for s in present] + [tokens.values], dim=1
    )
    count = sum(s.shape[1] for s in present)
    mask = tokens.mask if tokens.mask is None else F.pad(tokens.mask, (count, 0), value=True)
    return Tokens(values, tokens.grid, tokens.prefix + count, mask, tokens.kept)
