"""Positions of tokens on a grid: learned tables, their resampling to another grid, and fixed sine tables.

Shape letters: B batch, N grid tokens, P leading special tokens, D width.
Source: ViT (arXiv:2010.11929) section 3.2 (resampling); MoCo v3 (arXiv:2104.02057) for the sine table.
"""

from __future__ import annotations

import math
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
}


def resample_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str) -> Tensor:
    """The positions (1,h*w,D) of grid `new` out of a table (1,H*W,D) of grid `old`, same dtype.

    Args:
        table: (1,H*W,D), row-major, grid rows only (no row of a class token).
        old: (H,W) tokens.
        new: (h,w) tokens.
        mode: a name in `RESAMPLE`. Computed in float32.

    Raises:
        ValueError: unknown mode, or a table that is not H*W long.
    """
    if mode not in RESAMPLE:
        raise ValueError(f"position_resample is '{mode}', expected one of {', '.join(RESAMPLE)}")
    if table.shape[1] != old[0] * old[1]:
        raise ValueError(f"position table has {table.shape[1]} rows, expected {old[0]}x{old[1]} for its grid")
    if old == new:
        return table
    image = table.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, **RESAMPLE[mode])
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


def sincos_2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed positions (1,h*w,D) float32, each row [sin xw, cos xw, sin yw, cos yw], w_k = t^(-k/(D/4-1)).

    Args:
        grid: (h,w) tokens; x and y count tokens from 0.
        width: D, a multiple of 4 and at least 8.
        temperature: t, the ratio of the fastest to the slowest frequency.

    Raises:
        ValueError: the width is not a multiple of 4, or below 8.

    Source: MoCo v3; big_vision `posemb_sincos_2d`.
    Differs: from MAE's table, which divides k by D/4 and puts y first.
    """
    if width % 4 or width < 8:
        raise ValueError(f"sincos2d positions need a width that is a multiple of 4, at least 8, got {width}")
    quarter = width // 4
    omega = temperature ** -(torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    xw, yw = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([xw.sin(), xw.cos(), yw.sin(), yw.cos()], dim=1)[None].float()


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
        assert len(stored) == len(tokens.grid) == 2, "only two-dimensional grids are resampled"
        rows = resample_grid(rows, (stored[0], stored[1]), (tokens.grid[0], tokens.grid[1]), mode)
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
