"""Sound files: every bit depth and rate gives the same samples; a part is resampled as the whole would be."""

import random

import numpy as np
import pytest
import torch
import torchaudio.functional as AF

from mmvit.data.audio import AudioAugment, AudioPreprocess
from mmvit.data.pixels import BadSample
from mmvit.data.waveform import ArraySound, cut, open_sound
from mmvit.errors import UserError

RATE = 16_000
WAVE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)
AS_IT_IS = AudioPreprocess(sample_rate=RATE, samples=2 * RATE)


@pytest.mark.parametrize(
    ("form", "subtype", "tolerance"),
    [("WAV", "PCM_U8", 1 / 100), ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "PCM_32", 1e-6),
     ("WAV", "FLOAT", 0), ("WAV", "DOUBLE", 0), ("FLAC", "PCM_24", 1e-6), ("FLAC", "PCM_16", 1e-4),
     ("OGG", "VORBIS", 0.02), ("OGG", "OPUS", 0.05), ("MP3", "MPEG_LAYER_III", 0.02)],
)  # fmt: skip
def test_formats(sound_bytes, form, subtype, tolerance):
    found = AS_IT_IS(sound_bytes(WAVE, RATE, form, subtype), 0.0)
    assert found.dtype == torch.float32
    middle = slice(2000, 30_000)
    assert np.abs(found.numpy()[middle] - WAVE[middle]).max() <= tolerance
    part = AudioPreprocess(sample_rate=RATE, samples=4000)(sound_bytes(WAVE, RATE, form, subtype), 0.75)
    assert np.abs(part.numpy() - WAVE[12_000:16_000]).max() <= max(tolerance, 1e-6)


def test_stereo_is_averaged_not_cut(sound_bytes):
    both = np.stack([WAVE, -WAVE / 2], axis=1)
    assert np.abs(AS_IT_IS(sound_bytes(both, RATE, "WAV", "FLOAT")).numpy() - WAVE / 4).max() < 1e-6


@pytest.mark.parametrize(
    ("old", "new"),
    [(44_100, 16_000), (16_000, 48_000), (96_000, 16_000), (44_100, 48_000), (8000, 44_100)],
)
def test_resampling_a_part_equals_a_part_of_the_resampled(old, new):
    noise = np.random.default_rng(0).standard_normal(2 * old).astype(np.float32) * 0.3
    whole = AF.resample(torch.from_numpy(noise), old, new)
    sound = ArraySound(noise, old)
    for start in (0.0, 0.1234, 0.777, 1.5):
        first = round(start * new)
        part = cut(sound, start, new // 4, new)
        assert len(part) == new // 4
        assert (part - whole[first : first + new // 4]).abs().max() < 1e-5
    rest = cut(sound, 1.9, new, new)
    assert len(rest) == len(whole) - round(1.9 * new)
    assert (rest - whole[round(1.9 * new) :]).abs().max() < 1e-5


def test_resampled_sine_against_the_formula():
    t = np.arange(44_100) / 44_100
    found = cut(ArraySound(np.sin(2 * np.pi * 440 * t), 44_100), 0.0, 16_000, 16_000)
    assert len(found) == 16_000
    exact = torch.sin(2 * torch.pi * 440 * torch.arange(16_000, dtype=torch.float64) / 16_000)
    assert (found - exact)[100:-100].abs().max() < 3e-4


def test_odd_rates_do_not_build_endless_kernels():
    tone = np.sin(2 * np.pi * 300 * np.arange(44_101) / 44_101)
    found = cut(ArraySound(tone, 44_101), 0.0, 16_000, 16_000)
    exact = torch.sin(2 * torch.pi * 300 * torch.arange(16_000) / 16_000)
    assert (found - exact)[100:-100].abs().max() < 2e-3


def reason(data) -> str:
    with pytest.raises(BadSample) as caught:
        AS_IT_IS(data)
    return caught.value.reason


def test_bad_sounds_are_named(sound_bytes):
    hurt = WAVE.copy()
    hurt[17_000] = np.nan
    assert reason(sound_bytes(hurt, RATE, "WAV", "FLOAT")) == "audio-not-finite"
    hurt[17_000] = np.inf
    assert reason(sound_bytes(hurt, RATE, "WAV", "FLOAT")) == "audio-not-finite"
    assert reason(sound_bytes(WAVE[:0], RATE)) == "audio-empty"
    assert reason(b"") == "audio-empty"
    assert reason(b"RIFFnonsense" * 20) == "audio-unreadable"
    with pytest.raises(UserError, match="no such file"):
        AS_IT_IS("/nowhere.wav")
    with pytest.raises(UserError, match="rate in Hz"):
        AS_IT_IS((WAVE, 0))
    with pytest.raises(UserError, match="at most 64 channels"):
        AS_IT_IS((WAVE[None], RATE))
    with pytest.raises(UserError, match="bytes, a path, or"):
        AS_IT_IS(WAVE)


def test_a_cut_wav_gives_what_is_there(sound_bytes):
    data = sound_bytes(WAVE, RATE, "WAV", "PCM_16")
    found = AS_IT_IS(data[: len(data) // 2], 0.0)
    assert (found[:15_000] - torch.from_numpy(WAVE[:15_000])).abs().max() < 1e-4
    assert not found[17_000:].any()


def test_silence_and_short_sounds(sound_bytes):
    silent = AS_IT_IS(sound_bytes(np.zeros(RATE), RATE))
    assert silent.shape == (2 * RATE,)
    assert not silent.any()
    short = AS_IT_IS((WAVE[:RATE], RATE))
    assert torch.equal(short[:RATE], torch.from_numpy(WAVE[:RATE]))
    assert not short[RATE:].any()
    again = AudioPreprocess(sample_rate=RATE, samples=2 * RATE, pad="repeat")((WAVE[:12_000], RATE))
    assert torch.equal(again[12_000:24_000], again[:12_000])
    assert not again[24_000:].any()  # whole times only


def test_windows():
    ramp = np.arange(10 * 1000, dtype=np.float32) / 10_000
    preprocess = AudioPreprocess(sample_rate=1000, samples=1000)
    assert preprocess((ramp, 1000))[0].item() == pytest.approx(0.45)  # the middle
    assert preprocess.views((ramp, 1000), 4)[:, 0].tolist() == pytest.approx([0.0, 0.3, 0.6, 0.9])
    with open_sound((ramp, 1000)) as sound:
        assert sound.seconds == 10


def test_integer_waveforms_are_fractions():
    values = (WAVE * 32767).astype(np.int16)
    assert np.abs(AS_IT_IS((values, RATE)).numpy() - WAVE).max() < 1e-4
    bytes_ = np.array([0, 128, 255], np.uint8)
    found = AudioPreprocess(sample_rate=1000, samples=3)((bytes_, 1000))
    assert found.tolist() == pytest.approx([-1.0, 0.0, 127 / 128])


def test_noise_is_drawn_from_the_generator():
    augment = AudioAugment(noise=0.01)
    first, again, other = (AS_IT_IS((WAVE, RATE), augment=augment, rng=random.Random(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise = first - torch.from_numpy(WAVE)
    assert noise.std().item() == pytest.approx(0.01 * 0.5, rel=0.05)


def test_wrong_options():
    for options, message in [
        ({"features": "fbanks"}, "did you mean fbank"),
        ({"pad": "zero"}, "pad='zero'"),
        ({"pad": "spectrogram"}, "need features='fbank', this is 'waveform'"),
        ({"pad": "spectrogram", "features": "clap"}, "need features='fbank', this is 'clap'"),
        ({"frames": 10, "features": "log_mel"}, "need features='fbank', this is 'log_mel'"),
        ({"samples": 0}, "must be above 0"),
    ]:
        with pytest.raises(UserError, match=message):
            AudioPreprocess(**options)
