"""A core in stages: each shrinks the grid and doubles the channels inside pooling attention (MViT v1 and v2).

Place in the path: after a modality's adapter, before the heads; grids (h,w) and (t,h,w), any special tokens.
Shape letters: B batch, P special tokens, N grid tokens, D width, L depth.
Source: MViT (arXiv:2104.11227); MViTv2 (arXiv:2112.01526); init as their repository.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.block import add_branch
from mmvit.core.mlp import Mlp
from mmvit.core.pooling_attention import PoolingAttention, pooled
from mmvit.core.stack import Stack
from mmvit.types import Encoded, Tokens


class MvitBlock(nn.Module):
    """Pooling attention and feed-forward on residual branches: (B,P+N,D) -> (B,P+N',D').

    Args:
        width: D.
        out_width: D'.
        num_heads: of the attention.
        widen: which half takes D to D', "attention" or "mlp"; its shortcut is then a projection of the
            normed tokens.
        mlp_ratio: hidden width of the feed-forward part over its input's.
        norm_eps: LayerNorm epsilon, poolings included.
        activation: a name in `core.mlp.ACTIVATIONS`.
        drop_path: probability that a sample skips a branch while training, 0 <= p < 1.
        dropout: after the attention projection and in the feed-forward part.
        **attention: the rest of what `PoolingAttention` takes.
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        num_heads: int,
        *,
        widen: Literal["attention", "mlp"],
        mlp_ratio: float,
        norm_eps: float,
        activation: str,
        drop_path: float,
        dropout: float,
        **attention: Any,
    ) -> None:
        super().__init__()
        inner = out_width if widen == "attention" else width
        self.widen, self.drop_path = widen, drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = PoolingAttention(width, inner, num_heads, norm_eps=norm_eps, dropout=dropout, **attention)
        self.norm2 = nn.LayerNorm(inner, eps=norm_eps)
        self.mlp = Mlp(
            inner, int(inner * mlp_ratio), out_width=out_width, activation=activation, dropout=dropout
        )
        self.shortcut = nn.Linear(width, out_width) if width != out_width else None

    def forward(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The block's output (B,P+N',D'), N' cells of `pooled(grid, q_stride)`.

        Args:
            x: (B,P+N,D).
            grid: N = its product.
        """
        drop = self.drop_path if self.training else 0.0
        normed = self.norm1(x)
        skip = self.shortcut(normed) if self.shortcut is not None and self.widen == "attention" else x
        skip = _max_pool(skip, grid, self.attn.q_stride)
        x = add_branch(skip, self.attn(normed, grid), None, drop)
        normed = self.norm2(x)
        skip = self.shortcut(normed) if self.shortcut is not None and self.widen == "mlp" else x
        return add_branch(skip, self.mlp(normed), None, drop)


class Mvit(Stack):
    """Stages of pooling-attention blocks and a final LayerNorm.

    Every stage after the first begins by pooling queries with `q_stride` and has twice the channels and
    heads; keys and values are pooled to about the same grid throughout.

    Args:
        width: D of the tokens that come in; D * 2**(stages-1) go out.
        num_heads: of the first stage.
        depths: blocks of each stage.
        grid: for which relative positions are stored, (h,w) or (t,h,w); others are resampled as they come.
        q_stride: by which the grid shrinks at the start of each later stage: 1 or even, per axis.
        kv_stride: of the first stage's keys and values; divided by `q_stride` on the way.
        kernel: side of the pooling convolutions, odd.
        mlp_ratio: hidden width of the feed-forward parts over their input's.
        q_pool_always: pool queries in every block, not only where the grid shrinks (v2).
        relative: decomposed relative positions (v2).
        residual_pool: add the pooled queries to what attention returns (v2).
        residual_pool_prefix: also to the special tokens'.
        widen: which half of a block doubles the channels: "attention" of a stage's first block (v2) or "mlp"
            of the block before it (v1).
        norm_eps: LayerNorm epsilon.
        activation: gelu | gelu_tanh | quick_gelu.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, L)[i].
        dropout: after attention projections and in the feed-forward parts.

    Raises:
        ValueError: strides, kernel or `widen` that cannot be, or axes that do not agree in number.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        depths: Sequence[int],
        grid: Sequence[int],
        q_stride: Sequence[int],
        kv_stride: Sequence[int],
        kernel: int = 3,
        mlp_ratio: float = 4.0,
        q_pool_always: bool = True,
        relative: bool = True,
        residual_pool: bool = True,
        residual_pool_prefix: bool = False,
        widen: Literal["attention", "mlp"] = "attention",
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, sum(depths))
        grid, q_stride, kv_stride = tuple(grid), tuple(q_stride), tuple(kv_stride)
        if len(grid) not in (2, 3) or not len(grid) == len(q_stride) == len(kv_stride):
            raise ValueError(
                f"grid is {grid}, q_stride {q_stride}, kv_stride {kv_stride}: expected the same two axes "
                "(h,w) or three (t,h,w)"
            )
        if any(s != 1 and s % 2 for s in q_stride) or kernel % 2 == 0:
            raise ValueError(
                f"q_stride is {q_stride} and kernel {kernel}, expected strides of 1 or even and an odd kernel"
            )
        if widen not in ("attention", "mlp"):
            raise ValueError(f"widen is '{widen}', expected 'attention' or 'mlp'")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, expected 0 <= drop_path < 1")
        self.axes = len(grid)
        none = (1,) * len(grid)
        self.blocks = nn.ModuleList()
        self.strides: list[tuple[int, ...]] = []  # of each block's queries
        for stage, blocks in enumerate(depths):
            for block in range(blocks):
                shrinks = stage > 0 and block == 0
                before_next = stage + 1 < len(depths) and block == blocks - 1
                self.strides.append(q_stride if shrinks else none)
                self.blocks.append(
                    MvitBlock(
                        width * 2 ** (stage - (shrinks and widen == "attention")),
                        width * 2 ** (stage + (before_next and widen == "mlp")),
                        num_heads * 2**stage,
                        widen=widen,
                        mlp_ratio=mlp_ratio,
                        norm_eps=norm_eps,
                        activation=activation,
                        drop_path=drop_path * len(self.blocks) / max(self.depth - 1, 1),
                        dropout=dropout,
                        grid=grid,
                        kernel=kernel,
                        q_stride=self.strides[-1],
                        kv_stride=tuple(
                            max(k // q**stage, 1) for k, q in zip(kv_stride, q_stride, strict=True)
                        ),
                        q_pool=q_pool_always,
                        relative=relative,
                        residual_pool=residual_pool,
                        residual_pool_prefix=residual_pool_prefix,
                    )
                )
                if shrinks:
                    grid = tuple(max(n // s, 1) for n, s in zip(grid, q_stride, strict=True))
        self.norm = nn.LayerNorm(width * 2 ** (len(depths) - 1), eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear layers truncated normal of deviation 0.02 with zero biases."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens, layers: Sequence[int] = ()) -> Encoded:
        """The encoded tokens (B,P+N',D'), final norm applied, on the last stage's grid.

        Args:
            tokens: (B,P+N,D), all tokens of the grid present and real.
            layers: block numbers, 1..L from the first, -1..-L from the last; their outputs have the width and
                the grid of their stage.

        Raises:
            ValueError: a width other than D, other axes, a layer out of range, masked or dropped tokens.
        """
        wanted = self._wanted(layers)
        x, grid = tokens.values, tokens.grid
        self._check_width(x)
        if tokens.mask is not None or tokens.kept is not None:
            raise ValueError(
                "tokens are masked or dropped, expected the whole grid: pooling convolutions read every "
                "neighbour; put mask tokens in the holes instead of leaving them out"
            )
        if len(grid) != self.axes or x.shape[1] != tokens.prefix + math.prod(grid):
            raise ValueError(
                f"{x.shape[1]} tokens with prefix {tokens.prefix} on the grid {grid}, expected a full "
                f"grid of {self.axes} axes"
            )
        kept: dict[int, Tensor] = {}
        for number, (block, stride) in enumerate(zip(self.blocks, self.strides, strict=True), start=1):
            x = self._step(block, x, grid)
            grid = pooled(grid, stride)
            if number in wanted:
                kept[number] = x
        return Encoded(values=self.norm(x), grid=grid, prefix=tokens.prefix, layers=kept)


def _max_pool(x: Tensor, grid: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Tokens (B,P+N',D) whose grid is shrunk by the largest value in windows one wider than the stride."""
    if math.prod(stride) == 1:
        return x
    P = x.shape[1] - math.prod(grid)
    kernel = [s + 1 if s > 1 else 1 for s in stride]
    padding = [k // 2 for k in kernel]
    cells = x[:, P:].unflatten(1, grid).movedim(-1, 1)
    pool = F.max_pool2d if len(grid) == 2 else F.max_pool3d
    cells = pool(cells, kernel, stride, padding).movedim(1, -1).flatten(1, -2)
    return torch.cat([x[:, :P], cells], 1) if P else cells
