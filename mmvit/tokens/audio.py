"""Spectrograms -> grid tokens: cut into square patches that may overlap, project each patch.

Shape letters: B batch, T frames, M mel bands, p patch side, f/t rows and columns of the token grid, D width.
Source: AST (arXiv:2104.01778) section 2.1; SSAST and AudioMAE (arXiv:2207.06405) for patches side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.tokens.projection import computed_in, lecun_normal_
from mmvit.types import Tokens


class SpectrogramPatches(nn.Module):
    """Log-mel spectrograms (B,T,M) -> Tokens (B,f*t,D) on the grid (f, t), frequency slowest, no positions.

    f = (M-p)//stride + 1 and t = (T-p)//stride + 1: what does not fill a patch at the end is not read.

    Args:
        width: D.
        patch_size: p, in mel bands and in frames.
        stride: (mel bands, frames) from one patch to the next; AST's patches of 16 overlap by 6.
        bias: whether the projection has a bias.
    """

    def __init__(
        self, width: int, patch_size: int, *, stride: Sequence[int] = (10, 10), bias: bool = True
    ) -> None:
        super().__init__()
        self.patch_size, self.stride = patch_size, (stride[0], stride[1])
        # Stored as a convolution kernel (D,1,p,p) whose axes are frequency and time, as AST stores it.
        self.proj = nn.Conv2d(1, width, kernel_size=patch_size, stride=self.stride, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal: variance 1/(p*p), zero bias."""
        lecun_normal_(self.proj)

    def forward(self, spectrograms: Tensor) -> Tokens:
        """Grid tokens (B,f*t,D): all of the lowest frequencies' patches first, each row in time order.

        Args:
            spectrograms: (B,T,M) floating point, already normalised; low frequencies first.

        Raises:
            ValueError: not (B,T,M) of a floating type, or smaller than one patch.
        """
        p = self.patch_size
        if spectrograms.ndim != 3 or not spectrograms.dtype.is_floating_point:
            raise ValueError(
                f"spectrograms are {tuple(spectrograms.shape)} {spectrograms.dtype}, expected (B,T,M) "
                "floating point: frames before mel bands, no channel axis"
            )
        B, T, M = spectrograms.shape
        if p > T or p > M:
            raise ValueError(f"spectrogram is {T} frames x {M} mel bands, expected at least {p} of each: pad")
        x = spectrograms.to(computed_in(self.proj.weight)).transpose(1, 2)
        x = x.unfold(1, p, self.stride[0]).unfold(2, p, self.stride[1])
        f, t = x.shape[1:3]
        values = F.linear(x.reshape(B, f * t, p * p), self.proj.weight.flatten(1), self.proj.bias)
        return Tokens(values, (f, t))


def spectrogram_grid(size: Sequence[int], patch_size: int, stride: Sequence[int]) -> tuple[int, int]:
    """(f, t) tokens of a spectrogram of `size` (frames, mel bands)."""
    frames, bands = size
    return (bands - patch_size) // stride[0] + 1, (frames - patch_size) // stride[1] + 1
