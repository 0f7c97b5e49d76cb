"""Named sizes: exact parameter counts; wrong names and overrides are answered with the nearest right ones."""

import pytest
import torch

import mmvit
from mmvit.models.audio import AudioTower
from mmvit.models.classifier import Classifier
from mmvit.models.config import (
    AudioTowerConfig,
    ClassifierConfig,
    DetectorConfig,
    DualEncoderConfig,
    ImageTowerConfig,
    TextTowerConfig,
    VattConfig,
    VideoTowerConfig,
)
from mmvit.models.image import ImageTower
from mmvit.models.lit import DualEncoder
from mmvit.models.owl import OwlDetector
from mmvit.models.presets import SIZES, build_model, preset
from mmvit.models.text import TextTower
from mmvit.models.vatt import Vatt
from mmvit.models.video import VideoTower

# preset: millions of parameters as a tower with class token, with a 1000-class head, and with map pooling
COUNTS = {
    "vit_tiny_patch16_224": (5.52, 5.72, 5.97),
    "vit_small_patch16_224": (21.67, 22.05, 23.44),
    "vit_small_patch32_224": (22.49, 22.88, None),
    "vit_medium_patch16_224": (38.32, 38.84, 41.48),
    "vit_base_patch16_224": (85.80, 86.57, 92.88),
    "vit_base_patch32_224": (87.46, 88.22, None),
    "vit_base_patch8_224": (85.81, 86.58, None),
    "vit_large_patch16_224": (303.30, 304.33, 315.89),
    "vit_so400m_patch14_224": (412.44, 413.60, 427.68),
    "vit_huge_patch14_224": (630.76, 632.05, 650.44),
    "vit_giant_patch14_224": (1011.20, 1012.61, 1036.45),
    "vit_gigantic_patch14_224": (1842.78, 1844.44, 1881.13),
    "vit_giganticopt_patch14_224": (1663.31, 1664.84, 1697.93),
    "vit_e_patch14_224": (3805.42, 3807.21, 3873.34),
}


def millions(name: str, **overrides) -> float:
    with torch.device("meta"):
        return round(sum(p.numel() for p in mmvit.create_model(name, **overrides).parameters()) / 1e6, 2)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    tower, classifier, pooled = COUNTS[name]
    assert millions(name) == tower
    assert millions(name, num_classes=1000) == classifier
    if pooled is not None:
        assert millions(name + "_map") == pooled


def test_parameter_counts_of_pairs_and_other_grids():
    assert millions("vit_giantopt_patch16_224", image_size=256) == 1134.84
    assert millions("vit_giantopt_patch16_224_map", image_size=256) == 1163.17
    assert millions("clip_base_patch32_224") == 151.28
    assert millions("clip_base_patch16_224") == 149.62
    assert millions("clip_large_patch14_224") == 427.62
    assert millions("siglip_base_patch16_224") == 203.16


def test_every_preset_can_be_built_and_pairs_agree():
    names = mmvit.list_models()
    assert names == sorted(names)
    assert len(names) > 60
    kinds = {
        ImageTowerConfig: ImageTower,
        VideoTowerConfig: VideoTower,
        AudioTowerConfig: AudioTower,
        TextTowerConfig: TextTower,
        DualEncoderConfig: DualEncoder,
        DetectorConfig: OwlDetector,
        VattConfig: Vatt,
    }
    with torch.device("meta"):
        for name in names:
            config = preset(name)
            kind = kinds[type(config)]
            shallow = {"image.depth": 1, "text.depth": 1}
            if kind is DualEncoder and "depth" not in vars(config.image.core):  # a core of stages
                shallow = {"text.depth": 1}
            if kind is Vatt:
                shallow = {f"{tower}.core.depth": 1 for tower in ("video", "audio", "text")}
            elif kind not in (DualEncoder, OwlDetector):
                shallow = {"depth": 1} if "depth" in vars(config.core) else {}
            model = mmvit.create_model(name, **shallow)
            assert isinstance(model, kind), name
            assert model.config == preset(name, **shallow)
    assert mmvit.list_models("lit_[st]*") == ["lit_small", "lit_tiny"]
    assert {name.split("_")[1] for name in mmvit.list_models("vit_*")} == set(SIZES)


def test_overrides_reach_their_field():
    model = mmvit.create_model(
        "vit_mu_patch16_224", image_size=(32, 64), drop_path=0.3, depth=2, pool="mean", embed_dim=8
    )
    assert model.config.image_size == (32, 64)
    assert model.config.core.drop_path == 0.3
    assert len(model.core.blocks) == 2
    assert (model.embed_dim, model.config.pool) == (8, "mean")
    pair = preset(
        "lit_mu", embed_dim=24, image_size=64, vocab_size=100, **{"text.depth": 3, "image.core.width": 48}
    )
    assert (pair.image.embed_dim, pair.text.embed_dim) == (24, 24)
    assert (pair.image.image_size, pair.text.vocab_size) == ((64, 64), 100)
    assert (pair.image.core.depth, pair.text.core.depth) == (1, 3)
    assert (pair.image.core.width, pair.text.core.width) == (48, 32)


def test_num_classes_makes_a_classifier():
    model = mmvit.create_model(
        "vit_mu_patch16_224", num_classes=5, image_size=32, bias_init=-1.6, drop_path=0.1
    )
    assert isinstance(model, Classifier)
    assert isinstance(model.config, ClassifierConfig)
    assert model.tower.config.core.drop_path == 0.1
    assert torch.equal(model(torch.rand(2, 3, 32, 32)), torch.full((2, 5), -1.6))
    assert isinstance(mmvit.create_model("vit_mu_patch16_224", num_classes=0), ImageTower)
    again = build_model(model.config)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "vit_smal_patch16_224",
            {},
            "unknown model 'vit_smal_patch16_224': did you mean vit_small_patch16_224",
        ),
        ("vit_mu_patch16_224", {"imagesize": 3}, "unknown option 'imagesize': did you mean image_size"),
        ("lit_mu", {"depth": 3}, "could mean image.core.depth or text.core.depth: write which"),
        ("lit_mu", {"audio.depth": 3}, "unknown option 'audio.depth'"),
        ("text_mu", {"num_classes": 3}, "num_classes is for image, video and audio towers"),
        (
            "vit_mu_patch16_224",
            {"image_size": 100},
            r"image_size is \(100, 100\), expected multiples of patch",
        ),
        ("vit_mu_patch16_224", {"pool": "eos"}, "pool is 'eos'"),
        ("vit_mu_patch16_224", {"class_token": False}, "pool is 'cls' and class_token is False"),
        ("vit_mu_patch16_224", {"position": "x"}, "position is 'x'"),
        ("vit_mu_patch16_224", {"position_resample": "x"}, "position_resample is 'x'"),
        ("vit_mu_patch16_224", {"num_classes": 3, "embed_dim": 3}, "embed_dim is 3, expected None"),
        ("lit_mu", {"text.embed_dim": 16}, "32 dimensions and the text tower in 16: set embed_dim"),
    ],
)
def test_mistakes_name_the_remedy(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        mmvit.create_model(name, **overrides)
