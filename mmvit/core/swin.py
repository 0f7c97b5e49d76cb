"""A core whose attention stays in windows that shift from block to block (Swin).

Place in the path: between a plain stem and the heads: tokens (B,N,D) on a grid (h,w) in and out, maps with
the channels last inside; every stage but the first begins by merging 2x2 tokens into one of twice the width.
Shape letters: B batch, h/w grid, C channels of a stage, L depth.
Source: Swin (arXiv:2103.14030).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.block import add_branch
from mmvit.core.mlp import Mlp
from mmvit.core.stack import Stack
from mmvit.core.window_attention import WindowAttention, seams, side_of
from mmvit.types import Encoded, Tokens


class SwinBlock(nn.Module):
    """Window attention and feed-forward part on residual branches, normed first: (B,h,w,C) -> (B,h,w,C).

    Args:
        width: C.
        num_heads: H.
        window: side of a window in tokens.
        shifted: whether the windows lie half a window further than the grid's corner.
        mlp_ratio: hidden width of the feed-forward part over C.
        qkv_bias: whether q, k, v have biases.
        norm_eps: LayerNorm epsilon.
        activation: a name in `core.mlp.ACTIVATIONS`.
        drop_path: probability that a sample skips a branch while training, 0 <= p < 1.
        dropout: after the attention projection and in the feed-forward part.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        window: int,
        shifted: bool,
        mlp_ratio: float,
        qkv_bias: bool,
        norm_eps: float,
        activation: str,
        drop_path: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.window, self.shifted, self.drop_path = window, shifted, drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = WindowAttention(width, num_heads, window, qkv_bias=qkv_bias, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(mlp_ratio * width), activation=activation, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, same shape as the maps x (B,h,w,C)."""
        grid, drop = x.shape[1:3], self.drop_path if self.training else 0.0
        side = side_of(grid, self.window)
        # One window holds a whole axis: there is nothing to shift.
        shift = self.window // 2 if self.shifted and min(grid) > self.window else 0
        mask = seams([n + -n % side for n in grid], side, shift, x.device) if shift else None
        x = add_branch(x, self.attn(self.norm1(x), shift, mask), None, drop)
        return add_branch(x, self.mlp(self.norm2(x)), None, drop)


class Merge(nn.Module):
    """LayerNorm and a linear map of 2x2 neighbours: (B,h,w,C) -> (B,h/2,w/2,2C), padded with zeros to even.

    Args:
        width: C.
        norm_eps: LayerNorm epsilon.
    """

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=norm_eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The smaller maps (B,h/2,w/2,2C), extents rounded up."""
        _, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        # Neighbours in the order of published weights: down first, then to the right.
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class Swin(Stack):
    """Stages of blocks with windows, every second one shifted; a norm before the first and after the last.

    Args:
        width: D of the tokens that come in; D * 2**(stages-1) go out.
        num_heads: of each stage.
        depths: blocks of each stage.
        window: side of a window in tokens.
        mlp_ratio: hidden width of the feed-forward parts over their input's.
        qkv_bias: whether q, k, v have biases.
        norm_eps: LayerNorm epsilon.
        activation: gelu | gelu_tanh | quick_gelu.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, L)[i].
        dropout: after attention projections and in the feed-forward parts.

    Raises:
        ValueError: heads and depths of different number, a window below 2, heads that do not divide a stage's
            width, or `drop_path` outside [0, 1).
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: Sequence[int],
        depths: Sequence[int],
        window: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-5,
        activation: str = "gelu",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, sum(depths))
        if len(num_heads) != len(depths) or window < 2:
            raise ValueError(
                f"num_heads are {tuple(num_heads)}, depths {tuple(depths)}, window {window}: expected as "
                "many heads as depths and a window of at least 2"
            )
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, expected 0 <= drop_path < 1")
        self.norm_pre = nn.LayerNorm(width, eps=norm_eps)
        self.merges = nn.ModuleList(Merge(width * 2**stage, norm_eps) for stage in range(len(depths) - 1))
        # The block before which each merging stands, counted from 0.
        self.starts = [sum(depths[: stage + 1]) for stage in range(len(depths) - 1)]
        self.blocks = nn.ModuleList()
        for stage, blocks in enumerate(depths):
            for block in range(blocks):
                self.blocks.append(
                    SwinBlock(
                        width * 2**stage,
                        num_heads[stage],
                        window=window,
                        shifted=block % 2 == 1,
                        mlp_ratio=mlp_ratio,
                        qkv_bias=qkv_bias,
                        norm_eps=norm_eps,
                        activation=activation,
                        drop_path=drop_path * len(self.blocks) / max(self.depth - 1, 1),
                        dropout=dropout,
                    )
                )
        self.norm = nn.LayerNorm(width * 2 ** (len(depths) - 1), eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear kernels and tables of offsets truncated normal of deviation 0.02, zero biases."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, WindowAttention):
                nn.init.trunc_normal_(layer.table, std=0.02)

    def forward(self, tokens: Tokens, layers: Sequence[int] = ()) -> Encoded:
        """The encoded tokens (B,N',D'), final norm applied, on the last stage's grid.

        Args:
            tokens: (B,N,D) on a grid (h,w), all present and real, without special tokens.
            layers: block numbers, 1..L from the first, -1..-L from the last; their outputs have the width and
                the grid of their stage.

        Raises:
            ValueError: a width other than D, a layer out of range, special tokens, masked or dropped tokens,
                or a grid without two axes.
        """
        wanted = self._wanted(layers)
        self._check_width(tokens.values)
        if tokens.mask is not None or tokens.kept is not None:
            raise ValueError("tokens are masked or dropped, expected the whole grid: windows are cut from it")
        if tokens.prefix or len(tokens.grid) != 2:
            raise ValueError(
                f"tokens have prefix {tokens.prefix} and grid {tokens.grid}, expected no special tokens (set "
                "class_token=False, registers=0) on a grid (h,w)"
            )
        x = self.norm_pre(tokens.values).unflatten(1, tokens.grid)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            for stage in (s for s, start in enumerate(self.starts) if start == number):
                x = self.merges[stage](x)
            x = self._step(block, x)
            if number + 1 in wanted:
                kept[number + 1] = x.flatten(1, 2)
        return Encoded(values=self.norm(x).flatten(1, 2), grid=(x.shape[1], x.shape[2]), layers=kept)
