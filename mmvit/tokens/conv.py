"""Pictures or clips -> grid tokens through overlapping convolutions, in place of plain patches.

Shape letters: B batch, S extents along the axes of the grid, (H,W) or (T,H,W), N tokens, D width.
Source: CCT (arXiv:2104.05704) section 3.2, its tokenizer; MViT (arXiv:2104.11227) section 4.1, its stem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.tokens.image import Normalise
from mmvit.types import Tokens

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_MAX_POOL: dict[int, Any] = {2: F.max_pool2d, 3: F.max_pool3d}


class ConvTokens(nn.Module):
    """Pixels (B,3,*S) -> Tokens (B,N,D), row-major on the grid that the last convolution gives.

    Each of the `layers` is a convolution and, with `max_pool`, a ReLU and a 3-wide max pooling of stride 2.
    The number of entries in `kernel` says how many axes there are. State dict: `convs.{i}.weight` (and bias).

    Args:
        width: D.
        kernel: extent of every layer's kernel per axis.
        stride: likewise.
        padding: likewise.
        layers: how many convolutions follow each other.
        channels: of all layers but the last.
        bias: whether the convolutions have biases.
        max_pool: ReLU and max pooling behind every convolution (CCT).
        mean: per channel, of pixels scaled to 0..1; only uint8 pixels are normalised.
        std: likewise.

    Raises:
        ValueError: other than two or three axes, or kernel, stride and padding disagree about them.
    """

    def __init__(
        self,
        width: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        layers: int = 1,
        channels: int = 64,
        bias: bool = False,
        max_pool: bool = False,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.axes = len(kernel)
        if self.axes not in _CONV or not self.axes == len(stride) == len(padding):
            raise ValueError(
                f"stem has kernel {tuple(kernel)}, stride {tuple(stride)}, padding {tuple(padding)}: "
                "expected two or three numbers in each, one per axis"
            )
        widths = [3, *[channels] * (layers - 1), width]
        self.convs = nn.ModuleList(
            _CONV[self.axes](c, d, tuple(kernel), tuple(stride), tuple(padding), bias=bias)
            for c, d in zip(widths[:-1], widths[1:], strict=True)
        )
        self.max_pool = max_pool
        self.normalise = Normalise(mean, std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal kernels, variance 2/fan_in in front of a ReLU (Kaiming), 1/fan_in otherwise; zero biases."""
        for name, value in self.convs.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(value, nonlinearity="relu" if self.max_pool else "linear")
            else:
                nn.init.zeros_(value)

    def forward(self, pixels: Tensor) -> Tokens:
        """Grid tokens (B,N,D), the last axis fastest.

        Args:
            pixels: (B,3,H,W) or (B,3,T,H,W), uint8 0..255 (normalised here), or floating point and already
                normalised.

        Raises:
            ValueError: another shape.
        """
        if pixels.ndim != 2 + self.axes or pixels.shape[1] != 3:
            wanted = "(B,3,H,W)" if self.axes == 2 else "(B,3,T,H,W): channels before frames"
            raise ValueError(f"pixels are {tuple(pixels.shape)}, expected {wanted}")
        if pixels.dtype == torch.uint8:
            # The channels third from the last, where the constants expect them.
            pixels = self.normalise(pixels.movedim(1, -3)).movedim(-3, 1)
        x = pixels.to(next(self.parameters()).dtype)
        for conv in self.convs:
            x = conv(x)
            if self.max_pool:
                x = _MAX_POOL[self.axes](F.relu(x), kernel_size=3, stride=2, padding=1)
        return Tokens(x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))
