"""Whisper's spectrogram: equal to transformers' extractor, short clips, silence, mistakes."""

import numpy as np
import pytest
import torch
import transformers

from mmvit.data.audio import AudioPreprocess
from mmvit.data.whisper_mel import whisper_mel
from mmvit.errors import UserError


def sound(seconds: float, seed: int = 0) -> torch.Tensor:
    """Noise that swells behind a beginning in silence."""
    count = int(seconds * 16_000)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise * torch.linspace(-1, 1, count).clamp(min=0)


@pytest.mark.parametrize("bands", [80, 128])
def test_equals_the_extractor(bands):
    peer = transformers.WhisperFeatureExtractor(feature_size=bands)
    x = sound(2.0)
    wanted = peer(x.numpy(), sampling_rate=16_000, padding=False, return_tensors="pt").input_features[0].T
    found = whisper_mel(x, bands)
    assert found.shape == (200, bands)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_short_clip_has_the_frames_of_the_padded_one():
    x = sound(1.5)
    peer = transformers.WhisperFeatureExtractor()
    padded = torch.from_numpy(peer(x.numpy(), sampling_rate=16_000)["input_features"][0]).T
    assert padded.shape == (3000, 80)
    found = whisper_mel(x)
    torch.testing.assert_close(found[:-2], padded[:148], rtol=0, atol=1e-4)
    # Silence behind it: every band at the floor, 2 below the loudest cell.
    assert (padded[152:] == padded[152, 0]).all()
    assert padded[152, 0] == pytest.approx(padded.max().item() - 2, abs=1e-6)


def test_as_a_preprocessing():
    p = AudioPreprocess(features="whisper", sample_rate=16_000, samples=48_000, mel_bins=80)
    assert p.shape == (300, 80)
    x = sound(1.0)
    found = p((x.numpy(), 16_000))
    assert found.shape == p.shape
    torch.testing.assert_close(found, whisper_mel(torch.nn.functional.pad(x, (0, 32_000))), rtol=0, atol=1e-6)
    tail = found[103:]
    assert (tail == tail[0, 0]).all(), "what a tower that skips silence looks for"
    quiet = p((np.zeros(8_000, np.float32), 16_000))
    assert torch.equal(quiet, torch.full_like(quiet, -1.5))  # log10 of 1e-10


def test_mistakes_name_the_remedy():
    with pytest.raises(UserError, match="sample_rate=48000: Whisper's spectrogram is defined at 16000 Hz"):
        whisper_mel(torch.zeros(4800), 80, 48_000)
    with pytest.raises(UserError, match="samples=200: Whisper's spectrogram needs more than 200"):
        whisper_mel(torch.zeros(200))
