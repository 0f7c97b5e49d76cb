"""Towers and classifiers of clips and spectrograms come back whole from their folders; CoCa's towers too."""

import json

import pytest
import torch

import mmvit
from mmvit.data.image import ImagePreprocess
from mmvit.hub import load, save
from mmvit.hub.card import card_text
from mmvit.hub.plain import from_plain, kind_of, to_plain
from mmvit.models.config import CoreConfig, DualEncoderConfig, TextTowerConfig
from mmvit.models.presets import build_model, preset

CORE = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48}
CLIPS = CORE | {"clip_size": (4, 16, 16), "patch_size": (2, 8, 8)}
SOUNDS = CORE | {"spectrogram_size": (96, 40)}
CASES = {
    "video_tower": ("videomae_small_patch16_224", CLIPS, (2, 3, 4, 16, 16)),
    "audio_tower": ("ast_base_patch16", SOUNDS, (2, 96, 40)),
    "video_classifier": ("videomae_small_patch16_224", CLIPS | {"num_classes": 3}, (2, 3, 4, 16, 16)),
    "audio_classifier": ("ast_base_patch16", SOUNDS | {"num_classes": 3}, (2, 96, 40)),
}


@pytest.mark.parametrize("kind", CASES)
@torch.no_grad()
def test_round_trip(kind, tmp_path):
    name, fields, shape = CASES[kind]
    torch.manual_seed(0)
    model = mmvit.create_model(name, **fields).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    print_ = save(model, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert loaded.config["kind"] == kind
    assert loaded.model.config == model.config
    assert loaded.fingerprint == print_
    assert (loaded.preprocess, loaded.tokenizer) == (None, None)
    x = torch.randn(shape)
    assert torch.equal(loaded.model(x), model(x))
    card = (tmp_path / "m" / "README.md").read_text()
    assert "mmvit.hub.load" in card


@pytest.mark.parametrize(
    ("modality", "task"), [("video", "feature-extraction"), ("audio", "zero-shot-audio")]
)
def test_the_card_of_a_pair_says_what_it_compares(modality, task):
    first = "videomae_small_patch16_224" if modality == "video" else "ast_base_patch16"
    tower = preset(first, **(CLIPS if modality == "video" else SOUNDS))
    text = TextTowerConfig(core=CoreConfig(**CORE), vocab_size=56, context_length=8, embed_dim=32)
    config = DualEncoderConfig(image=tower, text=text)
    facts = {"kind": "dual_encoder", "model": to_plain(config), "card": {}, "fingerprint": "0" * 64}
    card = card_text("heard", facts, build_model(config))
    assert f"A{'n' * (modality == 'audio')} {modality}-text pair of" in card
    assert f"encode({modality}=[" in card
    assert f"pipeline_tag: {task}" in card
    assert "image" not in card


def test_what_does_not_belong_is_refused(tmp_path):
    model = mmvit.create_model("videomae_small_patch16_224", **CLIPS)
    with pytest.raises(
        ValueError, match="a video_tower takes clips or sounds: pass preprocess=ClipPreprocess"
    ):
        save(model, tmp_path / "m", preprocess=ImagePreprocess(size=(16, 16)))
    save(model, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"kind": "audio_tower"}))
    with pytest.raises(ValueError, match="unknown key 'model.clip_size'"):
        load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a video_tower does not embed; read it with mmvit.hub.load"):
        mmvit.load(tmp_path / "m")


def test_a_classifier_of_another_kind_is_refused():
    name, fields, _ = CASES["video_classifier"]
    config = mmvit.create_model(name, **fields).config
    assert kind_of(config) == "video_classifier"
    assert from_plain("video_classifier", to_plain(config), "here") == config
    with pytest.raises(
        ValueError, match="kind is 'image_classifier', but 'model' describes a video_classifier"
    ):
        from_plain("image_classifier", to_plain(config), "here")


@pytest.mark.parametrize(
    "name", ["coca_base_patch32", "owlvit_base_patch32", "siglip2_base_patch32_256", "minilm_l6"]
)
def test_configs_survive_plain_data(name):
    config = preset(name)
    assert from_plain(kind_of(config), json.loads(json.dumps(to_plain(config))), "here") == config
