"""Whisper's spectrogram: waveform (S,) -> log-mel frames (T,M), scaled by the loudest cell of the clip.

Letters: S samples, T frames, M mel bands.
Source: Whisper (arXiv:2212.04356) section 2.2 and its code; equal to transformers' WhisperFeatureExtractor
for clips of the same length.
Differs: a short clip is not padded to 30 s. Silence behind it would not be the loudest, so its frames are
those of the padded clip, but for the last ones, whose windows reach beyond its end.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mmvit.errors import UserError, need

RATE, WINDOW, HOP = 16_000, 400, 160


def whisper_mel(waveform: Tensor, bands: int = 80, sample_rate: int = RATE) -> Tensor:
    """Log-mel frames (S//160, M) float32, 10 ms apart: (log10 + 4) / 4, at most 2 below the loudest cell.

    Args:
        waveform: (S,) mono, -1..1; S at least 201.
        bands: M, 80, or 128 for large-v3.
        sample_rate: 16000, the only rate that the recipe knows.

    Raises:
        UserError: another rate, or too short for a window.
    """
    if sample_rate != RATE:
        raise UserError(
            f"sample_rate={sample_rate}: Whisper's spectrogram is defined at {RATE} Hz: resample to it"
        )
    if len(waveform) <= WINDOW // 2:
        raise UserError(f"samples={len(waveform)}: Whisper's spectrogram needs more than {WINDOW // 2}")
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(waveform.float(), WINDOW, HOP, window=window, center=True, return_complex=True)
    # The last frame, centred on the end, is dropped: one frame for every 160 samples.
    power = spectrum[:, :-1].abs().square()
    log = (filters(bands) @ power).clamp(min=1e-10).log10()
    return ((torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0).T.contiguous()


@lru_cache(maxsize=8)
def filters(bands: int) -> Tensor:
    """(M,201) triangles on Slaney's mel scale from 0 to 8 kHz, each of area 1."""
    make = need("torchaudio").functional.melscale_fbanks
    bank: Tensor = make(WINDOW // 2 + 1, 0.0, RATE / 2, bands, RATE, norm="slaney", mel_scale="slaney")
    return bank.T.contiguous()
