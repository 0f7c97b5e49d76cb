"""Attention whose queries, keys and values are pooled on their grid by depthwise convolutions.

Place in the path: inside the blocks of `core/mvit.py`.
Shape letters: B batch, P special tokens, N grid tokens, D width, H heads, d width of a head (A = H*d).
Source: MViT (arXiv:2104.11227) section 3.1; MViTv2 (arXiv:2112.01526) section 4.1 (residual pooling).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.attention import attend
from mmvit.core.axis_positions import AxisPositions
from mmvit.core.precision import HALF


def pooled(grid: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """The grid after pooling: extents divided by the strides, rounded up."""
    return tuple(-(-n // s) for n, s in zip(grid, stride, strict=True))


class GridPool(nn.Module):
    """Depthwise convolution on the grid tokens of every head alike, then LayerNorm on all: (B,H,P+N,d).

    Args:
        head_width: d.
        kernel: side of the convolution, odd.
        stride: per axis of the grid, two or three of them.
        norm_eps: LayerNorm epsilon.
    """

    def __init__(self, head_width: int, kernel: int, stride: tuple[int, ...], norm_eps: float) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if len(stride) == 2 else nn.Conv3d
        self.conv = conv(
            head_width, head_width, kernel, stride=stride, padding=kernel // 2, groups=head_width, bias=False
        )
        self.norm = nn.LayerNorm(head_width, eps=norm_eps)

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Pooled tokens (B,H,P+N',d), N' cells of `pooled(grid, stride)`; special tokens are normed only.

        Args:
            x: (B,H,P+N,d).
            grid: N = its product.
        """
        B, H, _, d = x.shape
        P = x.shape[2] - math.prod(grid)
        # Channels stay last in memory: the convolution takes a third of the time on a CPU, and no transpose.
        cells = x[:, :, P:].reshape(B * H, *grid, d).movedim(-1, 1)
        if len(grid) == 3 and x.device.type == "cpu" and x.dtype in HALF and torch.is_grad_enabled():
            # oneDNN's kernel gradient for channels last is garbage in half types where an axis is short, e.g.
            # at two times (torch 2.11).
            cells = cells.contiguous()
        cells = self.conv(cells).movedim(1, -1).reshape(B, H, -1, d)
        return self.norm(torch.cat([x[:, :, :P], cells], 2) if P else cells)


class PoolingAttention(nn.Module):
    """Attention of pooled queries over pooled keys and values: (B,P+N,D) -> (B,P+N',A).

    Args:
        width: D.
        out_width: A.
        num_heads: H, a divisor of A.
        grid: of the tokens for which relative positions are stored.
        kernel: side of the pooling convolutions.
        q_stride: of the query pooling, per axis.
        kv_stride: of the key and value pooling, per axis.
        q_pool: pool queries even where the stride is 1.
        relative: decomposed relative positions.
        residual_pool: add the pooled queries to what attention returns.
        residual_pool_prefix: also to the special tokens'.
        norm_eps: epsilon of the norms behind the poolings.
        dropout: on the output projection, 0..1.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        num_heads: int,
        *,
        grid: tuple[int, ...],
        kernel: int,
        q_stride: tuple[int, ...],
        kv_stride: tuple[int, ...],
        q_pool: bool,
        relative: bool,
        residual_pool: bool,
        residual_pool_prefix: bool,
        norm_eps: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if out_width % num_heads:
            raise ValueError(f"width is {out_width}, expected a multiple of num_heads={num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.q_stride, self.kv_stride = q_stride, kv_stride
        self.residual_pool, self.residual_pool_prefix = residual_pool, residual_pool_prefix
        self.qkv = nn.Linear(width, 3 * out_width)
        self.proj = nn.Linear(out_width, out_width)
        d = out_width // num_heads
        shrinks = math.prod(q_stride) > 1
        self.pool_q = GridPool(d, kernel, q_stride, norm_eps) if q_pool or shrinks else None
        self.pool_k = GridPool(d, kernel, kv_stride, norm_eps)
        self.pool_v = GridPool(d, kernel, kv_stride, norm_eps)
        # Stored sizes round down, as published ones do; a grid that rounds up is resampled as it comes.
        extents = [max(n // q, n // k, 1) for n, q, k in zip(grid, q_stride, kv_stride, strict=True)]
        self.rel_pos = AxisPositions(extents, d) if relative else None

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The attended tokens (B,P+N',A), N' cells of `pooled(grid, q_stride)`.

        Args:
            x: (B,P+N,D).
            grid: N = its product.
        """
        B, tokens, _ = x.shape
        P = tokens - math.prod(grid)
        q, k, v = self.qkv(x).view(B, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = self.pool_k(k, grid), self.pool_v(v, grid)
        q = q if self.pool_q is None else self.pool_q(q, grid)
        d = q.shape[-1]
        if self.rel_pos is None:
            out = attend(q, k, v)
        else:
            grids = pooled(grid, self.q_stride), pooled(grid, self.kv_stride)
            wide_q, wide_k = self.rel_pos(q, k, *grids, d**-0.5)
            # Values as wide as keys keep the fused kernel, which never stores the logits.
            wide_v = F.pad(v, (0, wide_k.shape[-1] - d))
            out = attend(wide_q, wide_k, wide_v, scale=d**-0.5)[..., :d]
        if self.residual_pool:
            whole = self.residual_pool_prefix or not P
            out = out + q if whole else torch.cat([out[:, :, :P], out[:, :, P:] + q[:, :, P:]], 2)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return F.dropout(out, self.dropout, self.training) if self.dropout else out
