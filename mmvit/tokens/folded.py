"""Spectrograms -> grid tokens of a square: time is cut into pieces that lie over each other (HTSAT, CLAP).

Shape letters: B batch, T frames, M mel bands, r pieces, p patch side, D width.
Source: HTS-AT (arXiv:2202.00874) and CLAP (arXiv:2211.06687) with its repository.
Differs: bands are always normed by the stored statistics; batch statistics would make an embedding depend on
what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.tokens.projection import computed_in, lecun_normal_
from mmvit.types import Tokens


class BandNorm(nn.Module):
    """Mel bands (B,T,M) scaled and shifted one by one: a batch norm that never looks at the batch.

    State dict: `weight`, `bias` (learned) and `running_mean`, `running_var` (stored), each (M,).

    Args:
        bands: M.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, bands: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(bands))
        self.bias = nn.Parameter(torch.zeros(bands))
        self.register_buffer("running_mean", torch.zeros(bands))
        self.register_buffer("running_var", torch.ones(bands))

    def forward(self, x: Tensor) -> Tensor:
        """The normed spectrograms, same shape, in training as in evaluation."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return torch.addcmul(self.bias - self.running_mean * scale, x, scale)


class FoldedPatches(nn.Module):
    """Log-mel spectrograms (B,T,M) -> Tokens (B,N,D) on the grid (r*M/p, S/(r*p)), no positions.

    Bands are normed, time is stretched to S frames (bicubic, both ends kept), and S/r frames make a piece;
    the pieces lie over each other, the first on top, low bands first in each. Rows of the grid are bands of a
    piece.

    Args:
        width: D.
        patch_size: p, in mel bands and in frames.
        size: (S frames, M bands) of the spectrogram that is folded.
        fold: r.
        bias: whether the projection has a bias.
    """

    def __init__(
        self, width: int, patch_size: int, *, size: Sequence[int], fold: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.patch_size, self.fold = patch_size, fold
        self.frames, self.bands = size
        self.norm = BandNorm(self.bands)
        # Stored as a convolution kernel (D,1,p,p) whose axes are frequency and time.
        self.proj = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal: variance 1/(p*p), zero bias."""
        lecun_normal_(self.proj)

    def forward(self, spectrograms: Tensor) -> Tokens:
        """Grid tokens, those of the first piece's lowest bands first, each row in time order.

        Args:
            spectrograms: (B,T,M) floating point; low frequencies first, T at most S.

        Raises:
            ValueError: not (B,T,M) of a floating type, no frame or too many, or another number of mel bands.
        """
        if spectrograms.ndim != 3 or not spectrograms.dtype.is_floating_point:
            raise ValueError(
                f"spectrograms are {tuple(spectrograms.shape)} {spectrograms.dtype}, expected (B,T,M) "
                "floating point: frames before mel bands, no channel axis"
            )
        B, T, M = spectrograms.shape
        if not 0 < T <= self.frames or self.bands != M:
            raise ValueError(
                f"spectrogram is {T} frames x {M} mel bands, expected 1..{self.frames} frames of {self.bands}"
                ": cut longer sounds into windows"
            )
        p, r = self.patch_size, self.fold
        x = self.norm(spectrograms.to(self.norm.weight.dtype))
        if self.frames != T:
            x = F.interpolate(x[:, None], (self.frames, M), mode="bicubic", align_corners=True)[:, 0]
        h, w = M // p, self.frames // (r * p)
        # (B, r, w, p, h, p): piece, patch in time, frame in it, patch in frequency, band in it.
        x = x.to(computed_in(self.proj.weight)).reshape(B, r, w, p, h, p).permute(0, 1, 4, 2, 5, 3)
        x = x.reshape(B, r * h * w, p * p)
        return Tokens(F.linear(x, self.proj.weight.flatten(1), self.proj.bias), (r * h, w))


def folded_grid(size: Sequence[int], patch_size: int, fold: int) -> tuple[int, int]:
    """(r*M/p, S/(r*p)) tokens of a folded spectrogram of `size` (frames, mel bands).

    Raises:
        ValueError: pieces and patches that do not divide it.
    """
    frames, bands = size
    if fold < 1 or min(frames, bands) < 1 or frames % (fold * patch_size) or bands % patch_size:
        raise ValueError(
            f"spectrogram_size is {tuple(size)} (frames, mel bands), expected frames that are a multiple of "
            f"fold={fold} times patch_size={patch_size}, and bands a multiple of patch_size"
        )
    return fold * bands // patch_size, frames // (fold * patch_size)
