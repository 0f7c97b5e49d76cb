"""Clips -> grid tokens: normalise, cut into tubelets, project each tubelet.

Shape letters: B batch, C=3 channels, T frames, H/W pixels, t/p sides of a tubelet, N tokens, D width.
Source: ViViT (arXiv:2103.15691) section 3.2; VideoMAE (arXiv:2203.12602) section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.tokens.image import Normalise
from mmvit.tokens.projection import computed_in, lecun_normal_
from mmvit.types import Tokens


class TubeletEmbed(nn.Module):
    """Clips (B,3,T,H,W) -> Tokens (B,N,D) on the grid (T/t, H/p, W/p), time slowest, without positions.

    Args:
        width: D.
        patch_size: (t, p, p), frames, rows and columns of a tubelet.
        bias: whether the projection has a bias.
        mean: per channel, of pixels scaled to 0..1; only uint8 pixels are normalised.
        std: likewise.
    """

    def __init__(
        self,
        width: int,
        patch_size: Sequence[int],
        *,
        bias: bool = True,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        t, p, q = patch_size
        self.patch_size = (t, p, q)
        # Stored as the usual convolution kernel (D,3,t,p,p), computed as one matrix product on cut tubelets.
        self.proj = nn.Conv3d(3, width, kernel_size=(t, p, q), stride=(t, p, q), bias=bias)
        self.normalise = Normalise(mean, std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal: variance 1/(3*t*p*p), zero bias."""
        lecun_normal_(self.proj)

    def forward(self, clips: Tensor) -> Tokens:
        """Grid tokens (B,N,D), time-major, then row-major.

        Args:
            clips: (B,3,T,H,W) uint8 0..255 (normalised here), or floating point and already normalised.

        Raises:
            ValueError: not (B,3,T,H,W), or T, H or W is no multiple of the tubelet's side.
        """
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"clips are {tuple(clips.shape)}, expected (B,3,T,H,W): channels before frames")
        B, C, *sides = clips.shape
        if any(side % p for side, p in zip(sides, self.patch_size, strict=True)):
            raise ValueError(
                f"clip is {'x'.join(map(str, sides))} (frames, rows, columns), expected multiples of "
                f"patch_size={self.patch_size}: sample and resize it first"
            )
        if clips.dtype == torch.uint8:
            clips = self.normalise(clips.transpose(1, 2)).transpose(1, 2)
        grid = tuple(side // p for side, p in zip(sides, self.patch_size, strict=True))
        (T, h, w), (t, p, q) = grid, self.patch_size
        x = clips.to(computed_in(self.proj.weight)).reshape(B, C, T, t, h, p, w, q)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(B, T * h * w, C * t * p * q)
        return Tokens(F.linear(x, self.proj.weight.flatten(1), self.proj.bias), grid)
