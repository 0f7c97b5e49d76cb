"""Spectrograms -> one token for every few frames, through convolutions along time.

Shape letters: B batch, T frames, M mel bands, N tokens, D width.
Source: Whisper (arXiv:2212.04356) section 2.2: two convolutions of three frames, the second of stride 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.tokens.projection import computed_in, lecun_normal_
from mmvit.types import Tokens


class FrameConvolutions(nn.Module):
    """Log-mel spectrograms (B,T,M) -> Tokens (B,N,D) on the grid (N,), in time order, no positions.

    Each convolution sees all channels of `kernel` frames, zeros beyond both ends, and is followed by a GELU.
    State dict: `convs.{i}.weight` (D,M or D,kernel), `convs.{i}.bias`.

    Args:
        width: D.
        bands: M.
        kernel: frames that a token of each convolution sees, odd.
        strides: frames from one to the next, one number per convolution.
        skip_silence: leave out the tokens behind the last frame that sounds: one whose bands are not all
            alike, as those of digital silence are here. A sound without such a frame keeps all tokens.

    Raises:
        ValueError: an even kernel, or no convolution.
    """

    def __init__(
        self,
        width: int,
        bands: int,
        *,
        kernel: int = 3,
        strides: Sequence[int] = (1, 2),
        skip_silence: bool = False,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or not strides or min(strides) < 1:
            raise ValueError(
                f"stem has kernel {kernel} and strides {tuple(strides)}, expected an odd kernel and one or "
                "more strides of at least 1"
            )
        self.bands, self.skip_silence, self.step = bands, skip_silence, math.prod(strides)
        widths = [bands, *[width] * len(strides)]
        self.convs = nn.ModuleList(
            nn.Conv1d(c, width, kernel, stride, padding=kernel // 2)
            for c, stride in zip(widths[:-1], strides, strict=True)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal: variance 1/fan_in, zero biases."""
        for conv in self.convs:
            lecun_normal_(conv)

    def forward(self, spectrograms: Tensor) -> Tokens:
        """Grid tokens (B,N,D) in time order; where silence is skipped, masked and cut to the longest sound.

        Args:
            spectrograms: (B,T,M) floating point, already normalised; low frequencies first.

        Raises:
            ValueError: not (B,T,M) of a floating type, no frame, or another number of mel bands.
        """
        if spectrograms.ndim != 3 or not spectrograms.dtype.is_floating_point:
            raise ValueError(
                f"spectrograms are {tuple(spectrograms.shape)} {spectrograms.dtype}, expected (B,T,M) "
                "floating point: frames before mel bands, no channel axis"
            )
        T, M = spectrograms.shape[1:]
        if T == 0 or self.bands != M:
            raise ValueError(f"spectrogram is {T} frames x {M} mel bands, expected frames of {self.bands}")
        x = spectrograms.to(computed_in(self.convs[0].weight)).transpose(1, 2)  # type: ignore[arg-type]
        for conv in self.convs:
            x = F.gelu(conv(x))
        x = x.transpose(1, 2)
        if not self.skip_silence:
            return Tokens(x, (x.shape[1],))
        mask = self._sounding(spectrograms, x.shape[1])
        if not torch.compiler.is_compiling():  # a length that depends on the values cannot be compiled
            x, mask = x[:, : (longest := int(mask.sum(1).amax()))], mask[:, :longest]
        return Tokens(x, (x.shape[1],), mask=mask)

    def _sounding(self, spectrograms: Tensor, count: int) -> Tensor:
        """(B,N) bool, True = no later than the last frame that sounds."""
        sounds = (spectrograms != spectrograms[..., :1]).any(-1)
        last = (sounds * torch.arange(1, sounds.shape[1] + 1, device=sounds.device)).amax(1)
        last = torch.where(last == 0, sounds.shape[1], last)
        return torch.arange(count, device=sounds.device) * self.step < last[:, None]


def frame_grid(frames: int, kernel: int, strides: Sequence[int]) -> tuple[int]:
    """(N,) tokens of a spectrogram of so many frames."""
    for stride in strides:
        frames = (frames + 2 * (kernel // 2) - kernel) // stride + 1
    return (frames,)
