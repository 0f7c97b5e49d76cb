"""Waveforms keep their pitch, patches are decoded, file names become labels."""

import io
import struct

import numpy as np
import pytest
import soundfile
from corpus.scratch import label_of
from corpus.sounds import RATE, _name, patch_samples, to_wav, wav_bytes
from corpus.stamps import label_of as stamp_label


def tone(hz, seconds, rate):
    return (0.5 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * hz / rate)).astype(np.float32)


def loudest(wav):
    samples, rate = soundfile.read(io.BytesIO(wav))
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * rate / len(samples), len(samples) / rate, rate


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 31214, 44100])
def test_resampling_keeps_pitch_and_length(rate):
    hz, seconds, out_rate = loudest(wav_bytes(tone(880, 1.5, rate), rate))
    assert out_rate == RATE
    assert hz == pytest.approx(880, rel=0.005)
    assert seconds == pytest.approx(1.5, abs=0.05)


def test_long_sounds_are_cut_silence_is_trimmed_and_nothing_is_none():
    padded = np.concatenate([np.zeros(RATE), tone(500, 0.5, RATE), np.zeros(RATE)])
    assert loudest(wav_bytes(padded, RATE))[1] == pytest.approx(0.55, abs=0.02)
    assert loudest(wav_bytes(tone(500, 9, RATE), RATE))[1] == 4.0
    assert wav_bytes(np.zeros(RATE), RATE) is None
    assert wav_bytes(tone(500, 0.02, RATE), RATE) is None
    assert to_wav(b"not a sound") is None


def test_stereo_files_become_mono():
    out = io.BytesIO()
    soundfile.write(out, np.stack([tone(440, 1, 44100)] * 2, 1), 44100, format="OGG")
    assert loudest(to_wav(out.getvalue()))[0] == pytest.approx(440, rel=0.01)


def patch(wave, rate, modes, loop=(0, 0)):
    raw = (wave * 32767).astype("<i2").tobytes()
    head = bytearray(129 + 63 + 47)
    head[:8] = b"GF1PATCH"
    head[129 + 63 + 6] = 1
    sample = bytearray(96)
    struct.pack_into("<IIIH", sample, 8, len(raw), 2 * loop[0], 2 * loop[1], rate)
    sample[55] = modes
    return bytes(head) + bytes(sample) + raw


def test_a_patch_gives_its_samples_and_plays_loops_on():
    wave = tone(1000, 0.25, 20000)
    [(decoded, rate)] = list(patch_samples(patch(wave, 20000, 1)))
    assert rate == 20000
    assert np.abs(decoded - wave).max() < 1e-3
    [(held, _)] = list(patch_samples(patch(wave, 20000, 1 | 4, loop=(1000, 5000))))
    assert len(held) == 40000
    assert loudest(wav_bytes(held, 20000))[0] == pytest.approx(1000, rel=0.01)
    with pytest.raises(ValueError, match="GF1"):
        list(patch_samples(b"RIFF" + bytes(200)))


def test_file_names_become_labels():
    assert _name("042_Door-Close") == "door close"
    assert _name("BalloonScratch") == "balloon scratch"
    assert label_of("butterfly1-a") == "butterfly"
    assert label_of("partyhat2") == "party hat"
    assert stamp_label("A box for trash. Use it!") == "box for trash"
    assert stamp_label("“T-intersection”.") == "T-intersection"
    assert stamp_label("An F-22 Raptor.") == "F-22 Raptor"
