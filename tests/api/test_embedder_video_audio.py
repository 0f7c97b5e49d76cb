"""`encode(video=…)`, `encode(audio=…)`: every form of input, windows, spaces, tokens left out, errors."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import mmvit
from mmvit.data.clip import ClipPreprocess
from mmvit.hub import save
from mmvit.models.config import (
    CoreConfig,
    DualEncoderConfig,
    TextTowerConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
)
from mmvit.models.presets import build_model
from tests.api.media import PREPROCESS, RATE, TONES, frames, mp4, png, save_model, tokenizer, tone, wav


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mmvit.load(save_model(tmp_path_factory.mktemp("api") / "vatt"))


@pytest.fixture(scope="module")
def clip():
    return mp4("red")


def test_what_a_model_says_about_itself(model):
    assert model.modalities == ("video", "image", "audio", "text")
    assert (model.embed_dim, model.width("va"), model.width("vt")) == (16, 24, 16)


def test_embeddings_are_those_of_the_model_in_both_spaces(model, clip):
    clips = [clip, mp4("blue")]
    pixels = torch.stack([PREPROCESS.video(c) for c in clips])
    sounds = torch.stack([PREPROCESS.audio(c) for c in clips])
    with torch.no_grad():
        seen, heard = model.model.encode_video(pixels), model.model.encode_audio(sounds)
    for space in ("va", "vt"):
        assert torch.allclose(model.encode(video=clips, space=space), seen[space], atol=1e-5)
        assert torch.allclose(model.encode(audio=clips, space=space), heard[space], atol=1e-5)
    assert torch.equal(model.encode(video=clips), model.encode(video=clips, space="vt"))
    assert not torch.allclose(seen["vt"][0], seen["vt"][1], atol=1e-3)
    one_by_one = model.encode(video=clips, batch_size=1)
    assert torch.allclose(one_by_one, seen["vt"], atol=1e-5)


def test_every_form_of_a_clip_gives_the_same(model, clip, tmp_path):
    path = tmp_path / "red.mp4"
    path.write_bytes(clip)
    z = model.encode(video=[clip, path, str(path)])
    assert torch.equal(z, z[:1].expand(3, -1))
    for form in (clip, path, str(path)):
        assert torch.allclose(model.encode(video=form), z[:1], atol=1e-6)
    arrays = model.encode(video=(frames("red"), 8))
    assert torch.allclose(arrays, model.encode(video=[(list(frames("red")), 8.0)]), atol=1e-6)
    assert (arrays * z[0]).sum() > 0.95, "H.264 is close to the frames that it was made from"
    assert model.encode(video=[]).shape == (0, 16)
    assert model.encode(video=[], space="va").shape == (0, 24)


def test_frames_are_taken_by_their_rate(model):
    # Every picture twice at twice the rate is the same film.
    twice = np.repeat(frames("green"), 2, axis=0)
    z = model.encode(video=[(frames("green"), 8), (twice, 16), (twice, 8)])
    assert torch.allclose(z[0], z[1], atol=1e-5)
    assert not torch.allclose(z[0], z[2], atol=1e-3)


def test_every_form_of_a_sound_gives_the_same(model, tmp_path):
    wave = tone(700)
    path = tmp_path / "tone.wav"
    path.write_bytes(wav(wave, subtype="FLOAT"))
    forms = [
        (wave, RATE),
        path,
        path.read_bytes(),
        (np.stack([wave, wave], 1), RATE),
        (wave.astype("f8"), RATE),
    ]
    z = model.encode(audio=forms)
    assert torch.allclose(z, z[:1].expand(5, -1), atol=1e-5)
    assert torch.allclose(model.encode(audio=(wave, RATE)), z[:1], atol=1e-6)
    # 2 channels that cancel are silence; another rate of the same tone is the same sound.
    cancelled, silence = model.encode(audio=[(np.stack([wave, -wave], 1), RATE), (0 * wave, RATE)])
    assert torch.allclose(cancelled, silence, atol=1e-6)
    assert torch.isfinite(silence).all()
    finer = model.encode(audio=(tone(700, rate=24_000), 24_000))
    assert (finer * z[0]).sum() > 0.99
    assert (finer * silence).sum() < 0.99


def test_a_clip_gives_its_own_sound(model, clip):
    z = model.encode(audio=[clip, (tone(TONES["red"], 2.0), RATE), (tone(TONES["yellow"], 2.0), RATE)])
    assert z[0] @ z[1] > z[0] @ z[2] + 0.01
    assert z[0] @ z[1] > 0.9


def test_windows_are_averaged_before_they_are_normalised(model):
    wave = np.concatenate([tone(300), tone(900), tone(2500)])
    parts = torch.stack([PREPROCESS.audio((wave, RATE), start=s) for s in (0.0, 1.34, 2.68)])
    with torch.no_grad():
        apart = model.model.spaces.audio(model.model.audio(parts))["vt"]
    z = model.encode(audio=(wave, RATE), views=3)
    assert torch.allclose(z[0], normalize(apart.mean(0), dim=0), atol=1e-5)
    assert torch.allclose(model.encode(audio=(wave, RATE))[0], normalize(apart[1], dim=0), atol=1e-5)
    both = model.encode(audio=[(tone(300), RATE), (wave, RATE)], views=3, batch_size=4)
    assert torch.allclose(both[1], z[0], atol=1e-5)


def test_a_picture_is_a_still_clip(model):
    z = model.encode(image=[png("red"), png("blue")])
    pixels = torch.stack([PREPROCESS.image(png(c)) for c in ("red", "blue")])
    with torch.no_grad():
        assert torch.allclose(z, model.model.encode_image(pixels)["vt"], atol=1e-5)


def test_fewer_tokens_are_the_same_ones_every_time(model, clip):
    whole, half = model.encode(video=clip), model.encode(video=clip, keep_rate=0.5)
    again = model.encode(video=[clip, mp4("blue")], keep_rate=0.5)
    assert torch.allclose(half, again[:1], atol=1e-5)
    assert not torch.allclose(whole, half, atol=1e-3)
    assert torch.allclose(model.encode(video=clip, keep_rate=1.0), whole, atol=1e-6)
    # 5 of 20 waveform patches, by hand.
    keep = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:5].sort().values[None]
    x = PREPROCESS.audio((tone(440), RATE))[None]
    with torch.no_grad():
        by_hand = model.model.encode_audio(x, keep)["vt"]
    assert torch.allclose(model.encode(audio=(tone(440), RATE), keep_rate=0.25), by_hand, atol=1e-5)


def test_similarity_has_the_models_temperature(model, clip):
    z, w = model.encode(video=[clip, mp4("green")]), model.encode(text=["red square", "green square", "dog"])
    p = model.similarity(z, w)
    assert torch.allclose(p, (z @ w.T / 0.07).softmax(1), atol=1e-6)
    fine = model.encode(audio=clip, space="va")
    assert model.similarity(model.encode(video=clip, space="va"), fine).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"b is \(1, 24\), expected \(rows, 16\)"):
        model.similarity(z, fine)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_zero_shot_of_clips_and_sounds(model, clip, modality):
    clips = [clip, mp4("blue")]
    clf = mmvit.ZeroShotClassifier(model, ["red", "blue", "green"], templates=["{} square"])
    best = clf.predict(clips, modality=modality, top_k=2, views=2)
    z = model.encode(**{modality: clips}, views=2)
    expected = (z @ clf.embeddings.T / 0.07).softmax(1)
    assert [row[0].label for row in best] == [clf.labels[i] for i in expected.argmax(1)]
    assert best[1][0].score == pytest.approx(expected[1].max().item(), abs=1e-5)
    assert len(best[0]) == 2


def test_towers_alone(tmp_path, clip):
    core = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
    torch.manual_seed(0)
    video = VideoTowerConfig(core=core, clip_size=(8, 32, 32), patch_size=(2, 16, 16))
    save(build_model(video), tmp_path / "v", preprocess=ClipPreprocess(video=PREPROCESS.video))
    audio = WaveformTowerConfig(core=core, samples=2560)
    save(build_model(audio), tmp_path / "a", preprocess=ClipPreprocess(audio=PREPROCESS.audio))
    for name, path in (("video", "v"), ("audio", "a")):
        tower = mmvit.load(tmp_path / path)
        assert tower.modalities == (name,)
        z = tower.encode(**{name: clip})
        with torch.no_grad():
            features = tower.model(getattr(PREPROCESS, name)(clip)[None])
        assert torch.allclose(z, normalize(features, dim=-1), atol=1e-5)
        with pytest.raises(ValueError, match="leave it out"):
            tower.encode(**{name: clip}, space="va")
    save(build_model(video), tmp_path / "bare")
    with pytest.raises(ValueError, match="save it with its preprocessing"):
        mmvit.load(tmp_path / "bare")


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_pairs_of_text_and_something_else(tmp_path, clip, modality):
    core = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
    first = {
        "audio": WaveformTowerConfig(core=core, samples=2560),
        "video": VideoTowerConfig(core=core, clip_size=(8, 32, 32), patch_size=(2, 16, 16)),
    }[modality]
    text = TextTowerConfig(core=core, vocab_size=56, context_length=16, embed_dim=16, pool="mean")
    torch.manual_seed(0)
    pair = build_model(DualEncoderConfig(image=first, text=text))
    preprocess = ClipPreprocess(**{modality: getattr(PREPROCESS, modality)})
    save(pair, tmp_path / "pair", preprocess=preprocess, tokenizer=tokenizer())
    model = mmvit.load(tmp_path / "pair")
    assert model.modalities == (modality, "text")
    z, w = model.encode(**{modality: [clip, mp4("blue")]}), model.encode(text=["red", "blue"])
    x = torch.stack([getattr(PREPROCESS, modality)(c) for c in (clip, mp4("blue"))])
    with torch.no_grad():
        assert torch.allclose(z, pair.eval().encode_image(x), atol=1e-5)
    expected = (pair.logit_scale.exp() * z @ w.T).softmax(1)
    assert torch.allclose(model.similarity(z, w), expected, atol=1e-5)


def test_mistakes_are_named(model, clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip[:500])
    silent = mp4("red", sound=False)
    bad = tone(300)
    bad[4000] = np.nan  # in the window that is heard
    for call, error, message in (
        ({"video": [clip, "nowhere.mp4"]}, FileNotFoundError, "video 1: no file 'nowhere.mp4'"),
        ({"video": [broken]}, ValueError, "video 0 '.*broken.mp4': media-unreadable"),
        ({"video": [clip, b""]}, ValueError, "video 1: media-empty"),
        ({"video": [wav(bad[:50])]}, ValueError, "video 0: video-missing"),
        ({"video": [3]}, ValueError, "video 0: a video must be bytes, a path, or"),
        ({"video": 3}, ValueError, "video is a int, expected one input or a list"),
        ({"video": (frames("red"), 0)}, ValueError, "video 0: video-fps"),
        ({"video": (frames("red") / 255, 8)}, ValueError, "video 0: a picture must be .* float64"),
        ({"video": (frames("red")[:0], 8)}, ValueError, "video 0: video-empty"),
        ({"audio": [silent]}, ValueError, "audio 0: audio-missing"),
        ({"audio": [clip, b"RIFF no"]}, ValueError, "audio 1: audio-unreadable"),
        ({"audio": (bad, RATE)}, ValueError, "audio 0: audio-not-finite"),
        ({"audio": (bad[:0], RATE)}, ValueError, "audio 0: audio-empty"),
        ({"audio": bad}, ValueError, r"audio 0: a sound must be bytes, a path, or \(waveform, rate\)"),
        ({"audio": (bad[None, None], RATE)}, ValueError, r"audio 0: a waveform must be \(S,\)"),
        ({"audio": (np.zeros((2, 8000)), RATE)}, ValueError, "audio 0: .*at most 64 channels"),
        ({"text": ["a"], "space": "va"}, ValueError, "space='va': 'text' is not there; valid: vt"),
        ({"video": clip, "space": "av"}, ValueError, "valid: vt, va"),
        ({"video": clip, "views": 0}, ValueError, "views is 0, expected at least 1"),
        ({"image": png("red"), "views": 2}, ValueError, "views is 2, expected 1 where 'image'"),
        ({"video": clip, "keep_rate": 1.5}, ValueError, "keep_rate is 1.5, expected above 0 to 1"),
        ({"text": "a", "keep_rate": 0.5}, ValueError, "'text' has no tokens to leave out"),
        ({"video": clip, "patch_size": 8}, ValueError, "patch_size=8 is for pictures"),
        ({"video": clip, "audio": clip}, ValueError, "exactly one of video, image, audio, text"),
        ({"vidio": clip}, ValueError, "does not embed 'vidio': did you mean video"),
    ):
        with pytest.raises(error, match=message) as caught:
            model.encode(**call)
        assert "\n" not in str(caught.value), call
