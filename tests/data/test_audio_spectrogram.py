"""Spectrograms: known numbers, a slow second opinion, scaling, floors and frame counts."""

import math
import random

import numpy as np
import pytest
import torch

from mmvit.data.audio import AudioAugment, AudioPreprocess
from mmvit.data.spectrogram import FEATURES

RATE = 16_000
FLOOR = math.log(1.1920929e-07)
RAW = {"features": "fbank", "sample_rate": RATE, "mean": 0.0, "std": 0.5, "remove_mean": False}
T = np.arange(RATE) / RATE
SWEEP = (0.5 * np.sin(2 * np.pi * (200 * T + 1500 * T**2))).astype(np.float32)


def test_fbank_known_values():
    """Some cells of a sweep, computed once with the recipe written out; filter 3 holds no FFT line."""
    x = AudioPreprocess(**RAW, samples=RATE)((SWEEP, RATE))
    assert x.shape == (98, 128)
    assert x.mean().item() == pytest.approx(slow_fbank(SWEEP).mean(), abs=1e-3)
    assert x[10, :4].tolist() == pytest.approx([-6.49479, -12.67633, -9.23293, -15.94238], abs=2e-3)
    assert x[50, 60].item() == pytest.approx(1.70167, abs=2e-3)


def slow_fbank(wave: np.ndarray) -> np.ndarray:
    """The recipe, line by line, in double precision."""
    frames = np.stack([wave[i : i + 400] for i in range(0, len(wave) - 399, 160)]).astype(np.float64)
    frames -= frames.mean(1, keepdims=True)
    frames -= 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    power = np.abs(np.fft.rfft(frames * np.hanning(400), 512)) ** 2

    def mel(hz):
        return 1127 * np.log(1 + hz / 700)

    edges = np.linspace(mel(20), mel(8000), 130)
    bins = mel(np.arange(257) * RATE / 512)
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(up, down))
    bank[:, 256] = 0
    return np.log(np.maximum(power @ bank.T, 1.1920929e-07))


def test_fbank_against_the_slow_one():
    wave = (np.random.default_rng(0).standard_normal(RATE) * 0.1).astype(np.float32)
    x = AudioPreprocess(**RAW, samples=RATE)((wave, RATE)).numpy()
    assert np.abs(x - slow_fbank(wave)).max() < 5e-4


def test_fbank_scale_floor_and_frames():
    preprocess = AudioPreprocess(**RAW, samples=RATE)
    x, twice = preprocess((SWEEP / 2, RATE)), preprocess((SWEEP, RATE))
    above = x > FLOOR + 3
    assert (twice - x)[above].numpy() == pytest.approx(math.log(4), abs=1e-2)
    assert preprocess((np.zeros(RATE, np.float32), RATE)).numpy() == pytest.approx(FLOOR, abs=1e-4)
    assert (x[:, 3] == x[:, 3].min()).all()  # this band holds no line of the transform: always the floor
    for seconds, frames in ((1, 98), (2, 198), (5, 498), (10, 998)):
        assert AudioPreprocess(**RAW, samples=seconds * RATE).shape == (frames, 128)


def test_fbank_normalised_and_padded_as_ast_does():
    options = {"features": "fbank", "sample_rate": RATE, "samples": 2 * RATE, "frames": 256}
    late = AudioPreprocess(**options, pad="spectrogram")((SWEEP, RATE))
    raw = AudioPreprocess(**{**RAW, "remove_mean": True}, samples=RATE)((SWEEP, RATE))
    assert late.shape == (256, 128)
    assert (late[:98] - (raw + 4.2677393) / (2 * 4.5689974)).abs().max() < 1e-5
    assert late[98:].numpy() == pytest.approx(0.4670, abs=1e-4)  # (0 - mean) / (2 std)
    silent = AudioPreprocess(**options)((SWEEP - SWEEP.mean(), RATE))
    assert silent[110:198].numpy() == pytest.approx((FLOOR + 4.2677393) / (2 * 4.5689974), abs=1e-2)
    assert silent[198:].numpy() == pytest.approx(0.4670, abs=1e-4)  # the window has 198 frames, not 256
    cut = AudioPreprocess(**{**options, "frames": 50})((SWEEP, RATE))
    assert torch.equal(cut, AudioPreprocess(**options)((SWEEP, RATE))[:50])
    nothing = AudioPreprocess(**options, pad="spectrogram")((SWEEP[:300], RATE))
    assert nothing.numpy() == pytest.approx(0.4670, abs=1e-4)


def test_fbank_mean_of_the_clip_is_taken_off():
    """Without pre-emphasis left over, an offset changes nothing once it is removed."""
    preprocess = AudioPreprocess(features="fbank", sample_rate=RATE, samples=RATE)
    assert (preprocess((SWEEP, RATE)) - preprocess((SWEEP + 0.2, RATE))).abs().max() < 2e-2


def slow_log_mel(wave: np.ndarray, rate: int = 48_000, window: int = 2048, bands: int = 80) -> np.ndarray:
    """VATT's recipe in double precision: zeros at the end, magnitudes, HTK's mel bands, 0..1 per sound."""
    hop, frames = window // 2, -(-len(wave) // (window // 2))
    padded = np.concatenate([wave, np.zeros((frames - 1) * hop + window - len(wave))])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    magnitude = np.abs([np.fft.rfft(padded[i * hop : i * hop + window] * hann) for i in range(frames)])

    def mel(hz):
        return 2595 * np.log10(1 + hz / 700)

    edges = 700 * (10 ** (np.linspace(mel(80), mel(7600), bands + 2) / 2595) - 1)
    hz = np.arange(window // 2 + 1) * rate / window
    up = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    x = np.log(1 + 10_000 * magnitude @ np.maximum(0, np.minimum(up, down)).T)
    return (x - x.min()) / (x.max() - x.min())


def test_log_mel_against_the_slow_one():
    preprocess = AudioPreprocess(features="log_mel", sample_rate=48_000, samples=153_600, mel_bins=80)
    assert preprocess.shape == (150, 80)  # 3.2 seconds
    wave = (np.random.default_rng(1).standard_normal(153_600) * 0.1).astype(np.float32)
    x = preprocess((wave, 48_000))
    assert x.shape == (150, 80)
    assert np.abs(x.numpy() - slow_log_mel(wave)).max() < 1e-4
    assert x.min() == 0
    assert x.max() == 1


def test_log_mel_of_silence_and_at_other_rates():
    preprocess = AudioPreprocess(features="log_mel", sample_rate=48_000, samples=48_000, mel_bins=80)
    assert not preprocess((np.zeros(48_000, np.float32), 48_000)).any()
    low = AudioPreprocess(features="log_mel", sample_rate=16_000, samples=32_000, mel_bins=40)
    x = low((SWEEP, RATE))
    assert x.shape == low.shape == (94, 40)
    assert x[10].argmax() < x[40].argmax()  # the sweep rises


def test_every_recipe_has_the_shape_it_says():
    for name in FEATURES:
        rate = 48_000 if name == "clap" else 16_000  # the rate that each was made for
        preprocess = AudioPreprocess(features=name, sample_rate=rate, samples=2 * rate, mel_bins=64)
        shape = preprocess.shape
        x = preprocess((SWEEP, RATE))
        assert tuple(x.shape) == tuple(shape), name
        assert x.dtype == torch.float32
        assert x.isfinite().all()


def test_masks_cover_one_band_and_one_stretch():
    preprocess = AudioPreprocess(features="fbank", sample_rate=RATE, samples=RATE)
    plain = preprocess((SWEEP, RATE))
    shares = []
    for seed in range(30):
        augment = AudioAugment(noise=0, frequency_mask=24, time_mask=48)
        x = augment.mask(plain, preprocess.blank, random.Random(seed))
        assert torch.equal(x, augment.mask(plain, preprocess.blank, random.Random(seed)))
        changed = x != plain
        rows, bands = changed.all(dim=1).nonzero(), changed.all(dim=0).nonzero()
        for hit, widest in ((rows, 48), (bands, 24)):
            assert len(hit) < widest
            assert len(hit) == 0 or len(hit) == hit.max() - hit.min() + 1  # one piece
        assert (x[changed] - preprocess.blank).abs().max() < 1e-6 if changed.any() else True
        shares.append(changed.float().mean().item())
    assert 0.1 < sum(shares) / 30 < 0.5
    assert torch.equal(plain, preprocess((SWEEP, RATE)))  # the input stays as it was
