"""CLAP's spectrogram: decibels of the power in Slaney's mel bands.

Place in the path: the recipe "clap" of `data/spectrogram.py`. Letters: n samples, T frames, M mel bands.
Source: CLAP (arXiv:2211.06687) and its repository, by way of librosa's mel bands.
Differs: samples are not rounded to 16 bits first, as CLAP's own code does.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmvit.errors import UserError

if TYPE_CHECKING:
    from mmvit.data.audio import AudioPreprocess

_RATE, _WINDOW, _HOP = 48_000, 1024, 480


def clap(waveform: Tensor, config: AudioPreprocess) -> Tensor:
    """(T,M) float32 in dB, -100 at least: 10 log10 of the power in Slaney's mel bands.

    Periodic Hann windows of 1024 / 48000 seconds every 10 ms, centred on 0, 10 ms, ...; the waveform is
    mirrored beyond its ends.

    Raises:
        UserError: a window too short to be mirrored.
    """
    window, hop = steps(config.sample_rate)
    if len(waveform) <= window // 2:
        raise UserError(f"samples={len(waveform)}, expected more than {window // 2} for features='clap'")
    # In double precision: at a loud tone single precision would fill the silent bands with its rounding.
    power = (
        torch.stft(
            waveform.double(),
            window,
            hop,
            window=torch.hann_window(window, dtype=torch.float64),
            pad_mode="reflect",
            return_complex=True,
        )
        .abs()
        .square()
    )
    bank = _slaney_bank(
        config.sample_rate, window, config.mel_bins, config.frequency_min, config.frequency_max
    )
    return (10 * (power.T @ bank).clamp(min=1e-10).log10()).float()


def clap_shape(config: AudioPreprocess) -> tuple[int, int]:
    """(T,M) of the result: 1001 frames for 10 s."""
    return 1 + config.samples // steps(config.sample_rate)[1], config.mel_bins


def steps(sample_rate: int) -> tuple[int, int]:
    """(window, hop) in samples; the window is even, so that its middle is a sample."""
    return 2 * round(_WINDOW / _RATE * sample_rate / 2), round(_HOP / _RATE * sample_rate)


@lru_cache(maxsize=8)
def _slaney_bank(sample_rate: int, window: int, bands: int, low: float, high: float) -> Tensor:
    """(window/2+1, M) float64: triangles of area 1, linear in Hz, with corners even on Slaney's scale."""
    ends = _to_mel(torch.tensor([low, high], dtype=torch.float64))
    points = _to_hz(torch.linspace(0, 1, bands + 2, dtype=torch.float64) * (ends[1] - ends[0]) + ends[0])
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)[:, None]
    left, middle, right = points[:-2], points[1:-1], points[2:]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)


def _to_mel(hz: Tensor) -> Tensor:
    """Slaney's scale: 15 mel per kHz up to 1 kHz, 27 for every factor of 6.4 above."""
    return torch.where(hz < 1000, 0.015 * hz, 15 + 27 * (hz.clamp(min=1) / 1000).log() / math.log(6.4))


def _to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel / 0.015, 1000 * ((mel - 15) * math.log(6.4) / 27).exp())
