"""Waveforms -> spectrograms, one function a recipe, and the table that names them.

Place in the path: inside `AudioPreprocess`. Shape letters: S samples, T frames, M mel bands.
Source: Kaldi's filter bank as AST (arXiv:2104.01778) uses it; VATT (arXiv:2104.11178) appendix A.2.1 and its
public code for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.data.clap_spectrogram import clap, clap_shape
from mmvit.data.whisper_mel import HOP as WHISPER_HOP
from mmvit.data.whisper_mel import whisper_mel
from mmvit.errors import need

if TYPE_CHECKING:
    from mmvit.data.audio import AudioPreprocess


@dataclass(frozen=True)
class Features:
    """One recipe.

    Attributes:
        compute: (waveform (n,) float32, preprocessing) -> (T,M) float32, normalised; n is its `samples`, and
            may be fewer for "fbank", which can pad in the spectrogram.
        shape: preprocessing -> (T,M) of the result.
        blank: preprocessing -> the value of masked bands: "fbank" has a mean to which a zero of its log-mel
            plane goes, the others take 0 as it is.
    """

    compute: Callable[[Tensor, AudioPreprocess], Tensor]
    shape: Callable[[AudioPreprocess], tuple[int, int]]
    blank: Callable[[AudioPreprocess], float] = lambda config: 0.0


def fbank(waveform: Tensor, config: AudioPreprocess) -> Tensor:
    """(T,M) float32: Kaldi's log-mel filter bank, 25 ms Hann windows every 10 ms, (x - mean) / (2 std).

    Rows behind the last whole window are zeros of the log-mel plane before it is normalised.
    """
    kaldi = need("torchaudio.compliance.kaldi")
    frames, bands = config.shape
    if config.remove_mean and len(waveform):
        waveform = waveform - waveform.mean()
    if fbank_frames(len(waveform), config.sample_rate):
        x = kaldi.fbank(
            waveform[None],
            htk_compat=True,
            sample_frequency=config.sample_rate,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=bands,
            dither=0.0,
            frame_shift=10,
        )
    else:
        x = waveform.new_zeros(0, bands)
    x = F.pad(x[:frames], (0, 0, 0, max(0, frames - len(x))))
    return (x - config.mean) / (2 * config.std)


def fbank_frames(samples: int, sample_rate: int) -> int:
    """Whole windows of 25 ms every 10 ms in a waveform."""
    window, hop = int(sample_rate * 0.025), int(sample_rate * 0.010)
    return max(0, 1 + (samples - window) // hop)


def log_mel(waveform: Tensor, config: AudioPreprocess) -> Tensor:
    """(T,M) float32 in 0..1: log(1 + 10000 mel) of the magnitudes, per sound from its least to its largest.

    Windows of 2048 / 48000 seconds (periodic Hann) follow each other by half their length; the end is padded
    with zeros to a whole number of steps. HTK's mel bands from 80 to 7600 Hz. Silence gives zeros.
    """
    window = _window(config.sample_rate)
    hop = window // 2
    frames, bands = config.shape
    padded = F.pad(waveform, (0, (frames - 1) * hop + window - len(waveform)))
    parts = padded.unfold(0, window, hop) * torch.hann_window(window)
    x = torch.fft.rfft(parts).abs() @ _htk_bank(config.sample_rate, window, bands)
    x = torch.log1p(10000 * x)
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else torch.zeros_like(x)


def _window(sample_rate: int) -> int:
    """Samples of a window of 42.67 ms."""
    return 2 * round(1024 / 48000 * sample_rate)


@lru_cache(maxsize=8)
def _htk_bank(sample_rate: int, window: int, bands: int) -> Tensor:
    """(window/2+1, M) float32: triangles of HTK's mel scale, not scaled by their width."""
    make = need("torchaudio").functional.melscale_fbanks
    bank: Tensor = make(
        window // 2 + 1, 80.0, min(7600.0, sample_rate / 2), bands, sample_rate, norm=None, mel_scale="htk"
    )
    return bank


def whisper(waveform: Tensor, config: AudioPreprocess) -> Tensor:
    """(T,M) float32 of Whisper's recipe, see `whisper_mel`."""
    return whisper_mel(waveform, config.mel_bins, config.sample_rate)


FEATURES: dict[str, Features] = {
    "clap": Features(clap, clap_shape),
    "fbank": Features(
        fbank,
        lambda c: (c.frames or fbank_frames(c.samples, c.sample_rate), c.mel_bins),
        lambda c: -c.mean / (2 * c.std),
    ),
    "log_mel": Features(log_mel, lambda c: (-(-c.samples // (_window(c.sample_rate) // 2)), c.mel_bins)),
    "whisper": Features(whisper, lambda c: (c.samples // WHISPER_HOP, c.mel_bins)),
}
