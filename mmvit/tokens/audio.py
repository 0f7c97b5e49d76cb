"""Sound -> grid tokens: patches of spectrograms that may overlap, or pieces of the raw waveform.

Shape letters: B batch, T frames, M mel bands, S samples, p patch side, f/t extent of the token grid in
frequency and time, D width.
Source: AST (arXiv:2104.01778) section 2.1; SSAST and AudioMAE (arXiv:2207.06405) for patches side by side;
VATT (arXiv:2104.11178) section 3.1 for waveforms.
Differs: VATT's repository numbers the positions of its spectrogram tokens frequency by frequency and the
tokens frame by frame; here both go frame by frame.
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


class TimeMajorPatches(nn.Module):
    """Log-mel spectrograms (B,T,M) -> Tokens (B,t*f,D) on the grid (t, f), time slowest, no positions.

    Args:
        width: D.
        patch: (frames, mel bands) of a patch; patches lie side by side.
        crop: whether what fills no patch at the end is left out, False = it is an error.
        bias: whether the projection has a bias.
    """

    def __init__(self, width: int, patch: Sequence[int], *, crop: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.patch, self.crop = (patch[0], patch[1]), crop
        # Stored as a convolution kernel (D,1,frames,bands), computed as one matrix product.
        self.proj = nn.Conv2d(1, width, kernel_size=self.patch, stride=self.patch, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal: variance 1/(frames*bands), zero bias."""
        lecun_normal_(self.proj)

    def forward(self, spectrograms: Tensor) -> Tokens:
        """Grid tokens (B,t*f,D): all bands of the first frames, then those of the next.

        Args:
            spectrograms: (B,T,M) floating point, already normalised; low frequencies first.

        Raises:
            ValueError: not (B,T,M) of a floating type, smaller than one patch, or no multiple of it where
                nothing may be left out.
        """
        if spectrograms.ndim != 3 or not spectrograms.dtype.is_floating_point:
            raise ValueError(
                f"spectrograms are {tuple(spectrograms.shape)} {spectrograms.dtype}, expected (B,T,M) "
                "floating point: frames before mel bands, no channel axis"
            )
        B, T, M = spectrograms.shape
        (t, f), (p, q) = time_major_grid((T, M), self.patch, self.crop), self.patch
        x = spectrograms[:, : t * p, : f * q].to(computed_in(self.proj.weight))
        x = x.reshape(B, t, p, f, q).transpose(2, 3).reshape(B, t * f, p * q)
        return Tokens(F.linear(x, self.proj.weight.flatten(1), self.proj.bias), (t, f))


def time_major_grid(size: Sequence[int], patch: Sequence[int], crop: bool) -> tuple[int, int]:
    """(t, f) tokens of a spectrogram of `size` (frames, mel bands).

    Raises:
        ValueError: it is smaller than one patch, or no multiple of it and `crop` is False.
    """
    pairs = list(zip(size, patch, strict=True))
    if any(p < 1 or n < p or (n % p and not crop) for n, p in pairs):
        raise ValueError(
            f"spectrogram is {size[0]} frames x {size[1]} mel bands, expected multiples of the patch "
            f"{tuple(patch)}, or crop=True to leave out what fills none at the end"
        )
    return size[0] // patch[0], size[1] // patch[1]


class WaveformPatches(nn.Module):
    """Waveforms (B,S) -> Tokens (B,S/p,D) on the grid (S/p,), no positions.

    Args:
        width: D.
        patch_size: p samples.
        bias: whether the projection has a bias.
    """

    def __init__(self, width: int, patch_size: int, *, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        # Stored as a convolution kernel (D,1,p), computed as one matrix product.
        self.proj = nn.Conv1d(1, width, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal: variance 1/p, zero bias."""
        lecun_normal_(self.proj)

    def forward(self, waveforms: Tensor) -> Tokens:
        """Grid tokens (B,S/p,D) in time order.

        Args:
            waveforms: (B,S) floating point, mono, -1..1; S a multiple of the patch.

        Raises:
            ValueError: not (B,S) of a floating type, or S is no multiple of the patch.
        """
        p = self.patch_size
        if waveforms.ndim != 2 or not waveforms.dtype.is_floating_point:
            raise ValueError(
                f"waveforms are {tuple(waveforms.shape)} {waveforms.dtype}, expected (B,S) "
                "floating point, mono"
            )
        B, S = waveforms.shape
        if S == 0 or S % p:
            raise ValueError(
                f"waveform has {S} samples, expected a multiple of patch_size={p}: cut or pad it"
            )
        x = waveforms.to(computed_in(self.proj.weight)).reshape(B, S // p, p)
        return Tokens(F.linear(x, self.proj.weight.flatten(1), self.proj.bias), (S // p,))
