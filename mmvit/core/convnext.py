"""A convolutional core in stages behind the transformers' interface (ConvNeXt V2).

Place in the path: between a plain stem and the heads: tokens (B,N,D) on a grid (h,w) in and out, maps with
the channels last inside. It begins with the norm of the stem and has no final one: the pool norms the mean.
Shape letters: B batch, h/w grid, C channels of a stage, L depth.
Source: ConvNeXt V2 (arXiv:2301.00808) and its repository.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvit.core.block import add_branch
from mmvit.core.mlp import ACTIVATIONS
from mmvit.core.stack import Stack
from mmvit.types import Encoded, Tokens


class ResponseNorm(nn.Module):
    """Global response normalisation of maps (B,h,w,C): channels of large norm are raised over the others.

    y = x + gamma * x * n + beta, n_c = g_c / (mean over c of g + 1e-6), g_c the norm of channel c over the
    map. `weight` is gamma, `bias` is beta, both zero at the start: an identity.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised maps, same shape (B,h,w,C) and dtype."""
        norm = torch.linalg.vector_norm(
            x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
        )
        gain = 1 + self.weight * (norm / (norm.mean(-1, keepdim=True) + 1e-6))
        # One pass over the maps, the widest of the network.
        return torch.addcmul(self.bias.to(x.dtype), x, gain.to(x.dtype))


class ConvNextBlock(nn.Module):
    """Depthwise convolution, LayerNorm, pointwise MLP with response normalisation: (B,h,w,C) -> (B,h,w,C).

    Args:
        width: C.
        kernel: side of the depthwise convolution, odd.
        norm_eps: LayerNorm epsilon.
        activation: a name in `core.mlp.ACTIVATIONS`.
        drop_path: probability that a sample skips the branch while training, 0 <= p < 1.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(
        self, width: int, *, kernel: int, norm_eps: float, activation: str, drop_path: float
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is '{activation}', expected one of {', '.join(ACTIVATIONS)}")
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, 4 * width)
        self.response = ResponseNorm(4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, same shape as the maps x (B,h,w,C)."""
        y = self.norm(_convolve(self.conv, x))
        y = self.fc2(self.response(self.activation(self.fc1(y))))
        return add_branch(x, y, None, self.drop_path if self.training else 0.0)


class Downsample(nn.Module):
    """LayerNorm and a 2x2 convolution of stride 2: (B,h,w,C) -> (B,h/2,w/2,C'); an odd last line is dropped.

    Args:
        width: C.
        out_width: C'.
        norm_eps: LayerNorm epsilon.
    """

    def __init__(self, width: int, out_width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.conv = nn.Conv2d(width, out_width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """The smaller maps (B,h/2,w/2,C')."""
        return _convolve(self.conv, self.norm(x))


class ConvNext(Stack):
    """Stages of convolutional blocks, between them LayerNorm and a convolution that halves the grid.

    Args:
        widths: channels of each stage; the first is the width of the tokens that come in.
        depths: blocks of each stage.
        kernel: side of the depthwise convolutions, odd.
        norm_eps: LayerNorm epsilon.
        activation: gelu | gelu_tanh | quick_gelu.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, L)[i].

    Raises:
        ValueError: widths and depths of different number, an even kernel, or `drop_path` outside [0, 1).
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        kernel: int = 7,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(widths[0], sum(depths))
        if len(widths) != len(depths) or kernel % 2 == 0:
            raise ValueError(
                f"widths are {tuple(widths)}, depths {tuple(depths)}, kernel {kernel}: expected as many "
                "widths as depths and an odd kernel"
            )
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, expected 0 <= drop_path < 1")
        self.norm_pre = nn.LayerNorm(widths[0], eps=norm_eps)
        self.downsamples = nn.ModuleList(
            Downsample(small, large, norm_eps) for small, large in zip(widths[:-1], widths[1:], strict=True)
        )
        # The block before which each downsampling stands, counted from 0.
        self.starts = [sum(depths[: stage + 1]) for stage in range(len(depths) - 1)]
        self.blocks = nn.ModuleList()
        for width, blocks in zip(widths, depths, strict=True):
            for _ in range(blocks):
                rate = drop_path * len(self.blocks) / max(self.depth - 1, 1)
                self.blocks.append(
                    ConvNextBlock(
                        width, kernel=kernel, norm_eps=norm_eps, activation=activation, drop_path=rate
                    )
                )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernels truncated normal of deviation 0.02, zero biases."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens, layers: Sequence[int] = ()) -> Encoded:
        """The encoded tokens (B,N',D') on the last stage's grid, not normed.

        Args:
            tokens: (B,N,D) on a grid (h,w), all present and real, without special tokens.
            layers: block numbers, 1..L from the first, -1..-L from the last; their outputs have the width and
                the grid of their stage.

        Raises:
            ValueError: a width other than D, a layer out of range, special tokens, masked or dropped tokens,
                or a grid that is smaller than the stages need.
        """
        wanted = self._wanted(layers)
        self._check_width(tokens.values)
        least = 2 ** len(self.downsamples)
        if tokens.mask is not None or tokens.kept is not None:
            raise ValueError(
                "tokens are masked or dropped, expected the whole grid: convolutions read neighbours"
            )
        if tokens.prefix or len(tokens.grid) != 2 or min(tokens.grid) < least:
            raise ValueError(
                f"tokens have prefix {tokens.prefix} and grid {tokens.grid}, expected no special tokens (set "
                f"class_token=False, registers=0) on a grid (h,w) of at least {least}x{least}"
            )
        x = self.norm_pre(tokens.values).unflatten(1, tokens.grid)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            for stage in (s for s, start in enumerate(self.starts) if start == number):
                x = self.downsamples[stage](x)
            x = self._step(block, x)
            if number + 1 in wanted:
                kept[number + 1] = x.flatten(1, 2)
        return Encoded(values=x.flatten(1, 2), grid=(x.shape[1], x.shape[2]), layers=kept)


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """The convolution of maps (B,h,w,C) whose channels are last in memory: no transpose, and faster."""
    return conv(x.movedim(-1, 1)).movedim(1, -1).contiguous()
