"""Models of video, audio and text come back whole from their folders, and their towers alone."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open

import mmvit
from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordTokenizer
from mmvit.data.video import VideoPreprocess
from mmvit.hub import load, save
from mmvit.hub.fingerprint import fingerprint
from mmvit.models.config import ClassifierConfig
from mmvit.models.presets import build_model
from mmvit.models.vatt import Vatt

WORDS = WordTokenizer(["a", "dog", "barks"], context_length=8)
CLIPS = ClipPreprocess(
    video=VideoPreprocess(size=(32, 32), frames=4, fps=4),
    audio=AudioPreprocess(sample_rate=16_000, samples=1280),
)
SMALL = {"clip_size": (4, 32, 32), "samples": 1280, "vocab_size": 5, "va_dim": 8, "vt_dim": 6}
CORE = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48}
SIDES = ("video", "audio", "text")
CORES = {f"{tower}.core.{name}": value for tower in SIDES for name, value in CORE.items()}


def made(name):
    torch.manual_seed(0)
    return mmvit.create_model(name, **SMALL, **(CORE if name.endswith("_ma") else CORES)).eval()


def everything(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return [
            *model.encode_video(torch.rand(2, 3, 4, 32, 32)).values(),
            *model.encode_audio(torch.randn(2, 1280)).values(),
            *model.encode_text(torch.tensor([[2, 3], [4, 0]])).values(),
        ]


@pytest.mark.parametrize("name", ["vatt_tiny", "vatt_tiny_ma"])
def test_a_folder_brings_it_back(name, tmp_path):
    model = made(name)
    written = save(model, tmp_path / "m", preprocess=CLIPS, tokenizer=WORDS)
    loaded = load(tmp_path / "m")
    assert isinstance(loaded.model, Vatt)
    assert loaded.config["kind"] == "vatt"
    assert loaded.model.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(everything(loaded.model), everything(model), strict=True))
    assert loaded.preprocess == CLIPS
    assert loaded.tokenizer.words == WORDS.words
    assert written == loaded.fingerprint == fingerprint(model, CLIPS)
    assert (loaded.model.video.core is loaded.model.text.core) == (name == "vatt_tiny_ma")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Video, audio and text in common spaces" in card


def test_the_shared_core_is_in_the_file_once(tmp_path):
    model = made("vatt_tiny_ma")
    save(model, tmp_path / "m", preprocess=CLIPS, tokenizer=WORDS)
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        size = sum(file.get_tensor(name).numel() for name in names)
    assert not any(f"{tower}.core." in name for name in names for tower in ("video", "audio", "text"))
    assert size == sum(v.numel() for v in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("side", ["video", "audio", "text"])
@pytest.mark.parametrize("name", ["vatt_tiny", "vatt_tiny_ma"])
def test_its_towers_are_saved_alone(name, side, tmp_path):
    tower = getattr(made(name), side)
    own = {"video": CLIPS.video, "audio": CLIPS.audio}
    preprocess = None if side == "text" else ClipPreprocess(**{side: own[side]})
    save(tower, tmp_path / "t", preprocess=preprocess, tokenizer=WORDS if side == "text" else None)
    loaded = load(tmp_path / "t")
    assert loaded.config["kind"] == f"{side}_tower"
    assert loaded.model.config == tower.config
    state = tower.state_dict()
    assert all(torch.equal(value, state[n]) for n, value in loaded.model.state_dict().items())
    assert loaded.preprocess == preprocess


def test_a_classifier_on_its_towers_keeps_the_adapters(tmp_path):
    tower = made("vatt_tiny_ma").audio
    model = build_model(ClassifierConfig(tower=tower.config, num_classes=3)).eval()
    assert model.tower.post is not torch.nn.Identity
    save(model, tmp_path / "c", preprocess=ClipPreprocess(audio=CLIPS.audio))
    loaded, x = load(tmp_path / "c"), torch.randn(2, 1280)
    assert loaded.config["kind"] == "audio_classifier"
    assert torch.equal(loaded.model(x), model(x))
    assert any(n.startswith("tower.pre.") for n in loaded.model.state_dict())


def test_another_preprocessing_is_another_model(tmp_path):
    model = made("vatt_tiny_ma")
    save(model, tmp_path / "m", preprocess=CLIPS, tokenizer=WORDS)
    file = tmp_path / "m" / "preprocess.json"
    content = json.loads(file.read_text())
    content["video"]["fps"] = 5.0
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not the one this model was saved with"):
        load(tmp_path / "m")
    file.write_text(json.dumps({"vidoe": {}}))
    with pytest.raises(ValueError, match="did you mean video"):
        load(tmp_path / "m")


def test_what_does_not_fit_is_refused(tmp_path):
    model, to = made("vatt_tiny_ma"), tmp_path / "m"
    with pytest.raises(ValueError, match="a vatt needs its preprocessing: pass preprocess=ClipPreprocess"):
        save(model, to, tokenizer=WORDS)
    with pytest.raises(ValueError, match="a vatt takes clips or sounds"):
        save(model, to, preprocess=ImagePreprocess(size=(32, 32)), tokenizer=WORDS)
    with pytest.raises(ValueError, match="the tower takes audio: its ClipPreprocess has none"):
        save(model, to, preprocess=ClipPreprocess(video=CLIPS.video), tokenizer=WORDS)
    with pytest.raises(ValueError, match="a vatt needs its tokenizer"):
        save(model, to, preprocess=CLIPS)
    odd = dataclasses.replace(CLIPS, video=VideoPreprocess(size=(32, 40), frames=4, fps=4))
    with pytest.raises(ValueError, match=r"fit the tower: clip_size is \(4, 32, 40\), expected multiples"):
        save(model, to, preprocess=odd, tokenizer=WORDS)
    mel = AudioPreprocess(features="log_mel", sample_rate=48_000, samples=48_000, mel_bins=80)
    with pytest.raises(ValueError, match=r"the preprocessing gives \(47, 80\), the tower takes a waveform"):
        save(model, to, preprocess=dataclasses.replace(CLIPS, audio=mel), tokenizer=WORDS)
    with pytest.raises(ValueError, match="the tokenizer has 42 tokens, the text tower 5"):
        save(model, to, preprocess=CLIPS, tokenizer=WordTokenizer([f"w{i}" for i in range(40)]))
    with pytest.raises(ValueError, match="an?.* reads no text: leave the tokenizer out"):
        save(model.audio, to, preprocess=ClipPreprocess(audio=CLIPS.audio), tokenizer=WORDS)
    with pytest.raises(ValueError, match="a text_tower takes no clips or sounds: leave preprocess out"):
        save(model.text, to, preprocess=CLIPS, tokenizer=WORDS)
    assert not to.exists()
