"""LiT with a locked AUDIO tower is the same recipe: read, cached, measured, saved and asked like pictures."""

import io
import json

import numpy as np
import pytest
import soundfile
import torch

import mmvit
from mmvit.data.audio import AudioPreprocess
from mmvit.data.cache import read_cache
from mmvit.data.clip import ClipPreprocess
from mmvit.data.embedding import read_views
from mmvit.data.shards import ShardIndex
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from mmvit.hub import folder
from mmvit.hub.pick import pick_tower
from mmvit.models.presets import create_model

RATE = 16_000
TONES = {"low": 200, "middle": 900, "high": 3000}
PULSES = {"steady": 0, "slow": 5, "quick": 14}


def tone(rng: np.random.Generator, pitch: str, pulse: str) -> bytes:
    """A wav file of a third to two thirds of a second."""
    t = np.arange(int(rng.uniform(0.33, 0.66) * RATE)) / RATE
    wave = np.sin(2 * np.pi * TONES[pitch] * rng.uniform(0.9, 1.1) * t) * rng.uniform(0.2, 0.8)
    if PULSES[pulse]:
        wave *= np.sin(2 * np.pi * PULSES[pulse] * t + rng.uniform(0, 6)) > 0
    out = io.BytesIO()
    soundfile.write(out, (wave + 0.01 * rng.standard_normal(len(t))).astype(np.float32), RATE, format="wav")
    return out.getvalue()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, corpus):
    """A folder with train/, val/, tower/ (Whisper's kind, random) and tokenizer/; one sound is broken."""
    out, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for split, count in (("train", 50), ("val", 18)):
        with ShardWriter(out / split / "tones", 20) as writer:
            for i in range(count):
                pitch, pulse = rng.choice(list(TONES)), rng.choice(list(PULSES))
                wav = b"broken" if (split, i) == ("train", 5) else tone(rng, pitch, pulse)
                facts = {"label": f"{pulse} {pitch}", "texts": {"en": [f"{pulse} {pitch}"]}}
                writer.write(f"{split}{i:03d}", {"wav": wav, "txt": f"a {pulse} {pitch} tone", "json": facts})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "tone", *TONES, *PULSES]
    (out / "vocab.txt").write_text("\n".join(words))
    from mmvit.data.text import WordPieceTokenizer

    WordPieceTokenizer(out / "vocab.txt", context_length=8).save(out / "tokenizer")
    torch.manual_seed(3)
    size = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32, "spectrogram_size": (100, 20)}
    tower = create_model("whisper_tiny", skip_silence=True, **size)
    fed = AudioPreprocess(features="whisper", sample_rate=RATE, samples=RATE, mel_bins=20)
    folder.save(tower, out / "tower", preprocess=ClipPreprocess(audio=fed))
    return out


def options(sounds, out, *more):
    base = {
        "--preset": "tiny",
        "--data.train": sounds / "train",
        "--model.image": sounds / "tower",
        "--model.image-options": "",
        "--model.lock": "Lu",
        "--model.tokenizer": sounds / "tokenizer",
        "--out": out,
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--train.steps": 12,
        "--train.save-every": 6,
        "--optim.lr": 3e-3,
    }
    base |= dict(zip(more[::2], more[1::2], strict=True))
    words = [str(word) for pair in base.items() for word in pair]
    return [word for word in words if word != ""]


def embed(sounds, out, *more):
    flags = ("--preset", "tiny", "--model", sounds / "tower", "--data", sounds / "train", "--out", out)
    return (*flags, "--dtype", "float32", "--precision", "fp32", "--threads", 1, *more)


@pytest.fixture(scope="module")
def cache(sounds, recipe_module, tmp_path_factory):
    out = tmp_path_factory.mktemp("cached")
    recipe_module("embed_shards", *embed(sounds, out))
    return out


def test_features_are_the_towers_at_the_samples_places(sounds, cache):
    source, twin = ShardIndex.open(str(sounds / "train")), ShardIndex.open(str(cache))
    loaded, seen = folder.load(sounds / "tower"), []
    for i in range(source.samples):
        raw, kept = source.read(i), twin.read(i)
        assert (kept["__key__"], kept["txt"]) == (raw["__key__"], raw["txt"])
        if raw["wav"] == b"broken":
            assert "npy" not in kept
            continue
        with torch.no_grad():
            want = loaded.model.features(loaded.preprocess.audio(raw["wav"])[None])[0].numpy()
        seen.append(read_views(kept["npy"])[0])
        np.testing.assert_allclose(seen[-1], want, atol=2e-5)
    np.testing.assert_allclose(read_cache(str(cache)).mean.numpy(), np.mean(seen, 0), atol=1e-5)


def test_cached_equals_live_and_the_tower_stays_as_it_was(sounds, cache, tmp_path, recipe, losses):
    center = ("--model.image-center", cache / "embedding_mean.npy")
    recipe("lit", *options(sounds, tmp_path / "live", *center, "--data.val", sounds / "val"))
    recipe("lit", *options(sounds, tmp_path / "cached", *center, "--data.train", cache))
    live, cached = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert max(abs(a - b) for a, b in zip(live, cached, strict=True)) < 1e-4
    assert len(set(live)) == len(live)
    rows = [json.loads(line) for line in (tmp_path / "live" / "metrics.jsonl").read_text().splitlines()]
    assert {"eval/acc1", "eval/audio_retrieval_recall@1", "eval/text_retrieval_recall@1"} <= set(rows[-1])
    assert rows[-2]["data/audio-unreadable"] >= 1
    saved, original = (folder.load(p) for p in (tmp_path / "live" / "model", sounds / "tower"))
    for name, value in original.model.state_dict().items():
        assert torch.equal(saved.model.image.state_dict()[name], value), name
    assert saved.preprocess == original.preprocess
    model = mmvit.load(tmp_path / "live" / "model")
    assert model.modalities == ("audio", "text")
    z = model.encode(audio=[tone(np.random.default_rng(9), "low", "slow")])
    assert torch.allclose(z.norm(dim=-1), torch.ones(1))
    assert model.similarity(z, model.encode(text=["a slow low tone", "a quick high tone"])).shape == (1, 2)


def test_a_cache_of_another_length_is_refused(sounds, cache, tmp_path, recipe):
    with pytest.raises(UserError, match="embedded by another tower or preprocessing"):
        recipe("lit", *options(sounds, tmp_path / "run", "--data.train", cache, "--model.seconds", 0.5))


def test_views_are_other_windows(sounds, tmp_path, recipe):
    recipe("embed_shards", *embed(sounds, tmp_path, "--views", 3, "--seconds", 0.25))
    twin = ShardIndex.open(str(tmp_path))
    views = read_views(twin.read(0)["npy"])
    assert views.shape == (3, 32)
    assert abs(views[1] - views[2]).max() > 1e-4


@pytest.mark.parametrize("lock", ["Uu", "uu"])
def test_every_other_lock_learns(sounds, tmp_path, recipe, losses, lock):
    more = {"--model.lock": lock, "--model.embed-dim": 16, "--train.steps": 3, "--train.micro-batch": 5}
    if lock[0] == "u":
        more |= {"--model.image": "whisper_tiny", "--model.seconds": 0.5}
        small = ["width=32", "depth=1", "num_heads=2", "mlp_dim=32", "spectrogram_size=(100,20)"]
        words = options(sounds, tmp_path / "run", *(word for pair in more.items() for word in pair))
        at = words.index("--model.image-options")
        words[at + 1 : at + 1] = small
    else:
        words = options(sounds, tmp_path / "run", *(word for pair in more.items() for word in pair))
    recipe("lit", *words)
    assert len(losses(tmp_path / "run")) == 3
    before, after = folder.load(sounds / "tower").model, folder.load(tmp_path / "run" / "model")
    assert after.preprocess.audio.features == "whisper"
    same = torch.equal(before.core.blocks[0].mlp.fc1.weight, after.model.image.core.blocks[0].mlp.fc1.weight)
    assert not same


def test_mistakes_are_one_line(sounds, corpus, tmp_path, recipe):
    with pytest.raises(UserError, match="image_size=64 is for towers that see, and this one takes sounds"):
        recipe("lit", *options(sounds, tmp_path / "a", "--model.image-size", 64))
    with pytest.raises(UserError, match="has no audio: members are called"):
        recipe("lit", *options(sounds, tmp_path / "b", "--data.train", corpus / "train"))
    with pytest.raises(UserError, match="seconds=2 is for towers of clips and sounds"):
        pick_tower(str(corpus / "tower"), seconds=2)
    with pytest.raises(UserError, match="holds a text_tower, expected a tower of pictures, clips or sounds"):
        pick_tower(str(corpus / "text"))
    with pytest.raises(UserError, match="the preset text_mu is no tower of pictures, clips or sounds"):
        pick_tower("text_mu", options=("vocab_size=9",))
