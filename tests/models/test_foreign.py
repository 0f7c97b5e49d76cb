"""Peers' image models behind our tower interface: their features, rebuilt offline, from names and folders."""

import json

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mmvit.hub.plain import from_plain, to_plain
from mmvit.hub.towers import load_image_tower
from mmvit.models.foreign import ForeignImageTower

VISION = {"image_size": 32, "patch_size": 8, "layers": 1, "width": 32, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def pixels(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
    return model.eval()


def rebuilt(tower: ForeignImageTower) -> ForeignImageTower:
    """The tower again, out of its config as JSON and its state dict alone."""
    config = from_plain("image_tower", json.loads(json.dumps(to_plain(tower.config))), "test")
    assert config == tower.config
    again = ForeignImageTower(config)
    again.load_state_dict(tower.state_dict())
    return again.eval()


TIMM = {
    "resnet10t": (512, {}),
    "mobilenetv3_small_050": (1024, {}),
    "convnext_atto": (32, {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "vit_tiny_patch16_224": (192, {"depth": 1}),
}


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm_features_are_what_its_classifier_reads(name: str) -> None:
    width, arguments = TIMM[name]
    tower = randomise(ForeignImageTower.wrap(f"timm:{name}", image_size=(64, 64), **arguments))
    assert tower.width == tower.embed_dim == width
    size = {"img_size": 64} if "vit" in name else {}
    peer = timm.create_model(name, num_classes=3, **arguments, **size).eval()
    peer.load_state_dict(tower.module.state_dict(), strict=False)
    peer.get_classifier().weight.data.normal_()
    features = tower.features(pixels(64))
    assert torch.allclose(peer.get_classifier()(features), peer(pixels(64)), rtol=1e-4, atol=1e-4)
    assert torch.allclose(rebuilt(tower)(pixels(64)), tower(pixels(64)), atol=1e-6)


@torch.no_grad()
def test_open_clip_features_are_encode_image(tmp_path) -> None:
    cfg = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    peer = randomise(open_clip.CLIP(**cfg))
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess})
    )
    save_file(peer.state_dict(), tmp_path / "open_clip_model.safetensors")
    tower, pictures = load_image_tower(f"open_clip:{tmp_path}")
    assert tower.width == 24
    assert torch.allclose(tower(pixels()), peer.encode_image(pixels()), atol=1e-6)
    assert tower.config.mean == (0.1, 0.2, 0.3)
    assert (pictures.resize, pictures.size) == ("squash", (32, 32))
    assert torch.allclose(rebuilt(tower)(pixels()), tower(pixels()), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@torch.no_grad()
def test_torchvision_features_are_the_input_of_the_last_layer(name: str) -> None:
    tower = randomise(ForeignImageTower.wrap(f"torchvision:{name}", image_size=(32, 32)))
    peer = torchvision.models.get_model(name).eval()
    peer.load_state_dict(tower.module.state_dict(), strict=False)
    last = [m for m in peer.modules() if isinstance(m, nn.Linear)][-1]
    assert torch.allclose(last(tower(pixels())), peer(pixels()), rtol=1e-4, atol=1e-3)
    assert tower.config.mean == (0.485, 0.456, 0.406)
    assert torch.allclose(rebuilt(tower)(pixels()), tower(pixels()), atol=1e-6)


TRANSFORMERS = {
    "ViTModel": (transformers.ViTConfig, lambda out: out.last_hidden_state[:, 0]),
    "Dinov2Model": (transformers.Dinov2Config, lambda out: out.pooler_output),
    "CLIPVisionModelWithProjection": (transformers.CLIPVisionConfig, lambda out: out.image_embeds),
    "SiglipVisionModel": (transformers.SiglipVisionConfig, lambda out: out.pooler_output),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_transformers_features_from_folder_and_module(name: str, tmp_path) -> None:
    config, pooled = TRANSFORMERS[name]
    peer = randomise(getattr(transformers, name)(config(**TINY)))
    theirs = pooled(peer(pixels()))
    peer.save_pretrained(tmp_path)
    image_side, _ = load_image_tower(f"transformers:{tmp_path}")
    if name != "CLIPVisionModelWithProjection":  # AutoModel reads the tower without its projection
        assert torch.allclose(image_side(pixels()), theirs, atol=1e-6)
    tower = ForeignImageTower.wrap(peer)
    assert torch.allclose(tower(pixels()), theirs, atol=1e-6)
    assert torch.allclose(rebuilt(tower)(pixels()), theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
@torch.no_grad()
def test_the_image_side_of_a_transformers_pair(name: str, tmp_path) -> None:
    text = {k: v for k, v in TINY.items() if k not in ("image_size", "patch_size")}
    text |= {
        "vocab_size": 20,
        "max_position_embeddings": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    more = {"projection_dim": 24} if name == "CLIP" else {}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=TINY, **more)
    peer = randomise(getattr(transformers, f"{name}Model")(config))
    peer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_mean": [0.4] * 3,
                "image_std": [0.2] * 3,
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
                "resample": 2,
            }
        )
    )
    tower, pictures = load_image_tower(f"transformers:{tmp_path}")
    assert torch.allclose(tower(pixels()), peer.get_image_features(pixels()).pooler_output, atol=1e-6)
    assert tower.config.mean == (0.4, 0.4, 0.4)
    assert (pictures.resize, pictures.interpolation) == ("shortest_crop", "bilinear")
    assert (pictures.size, pictures.crop_fraction) == ((32, 32), 0.8)
    assert torch.allclose(rebuilt(tower)(pixels()), tower(pixels()), atol=1e-6)


@torch.no_grad()
def test_a_timm_folder_brings_its_weights_and_preprocessing(tmp_path) -> None:
    peer = randomise(timm.create_model("resnet10t", num_classes=5))
    timm.models.save_for_hf(peer, tmp_path, safe_serialization=True)
    tower, pictures = load_image_tower(f"timm:{tmp_path}")
    theirs = peer.forward_head(peer.forward_features(pixels(64)), pre_logits=True)
    assert torch.allclose(tower(pixels(64)), theirs, atol=1e-5)
    data = timm.data.resolve_model_data_config(peer)
    assert tower.config.mean == tuple(data["mean"])
    assert pictures.crop_fraction == data["crop_pct"]
    assert pictures.size == data["input_size"][1:]


@torch.no_grad()
def test_our_preprocessing_feeds_a_peer_what_its_own_does(tmp_path) -> None:
    peer = timm.create_model("resnet10t")
    timm.models.save_for_hf(peer, tmp_path, safe_serialization=True)
    tower, pictures = load_image_tower(f"timm:{tmp_path}")
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((300, 260), Image.Resampling.BICUBIC)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(peer))(picture)
    ours = tower.normalise(pictures(picture)[None])[0]
    # One 8-bit step is 1/255/0.225 = 0.018; resizing only what the crop keeps may round by one or two.
    assert (ours - theirs).abs().max() < 0.05
    assert (ours - theirs).abs().mean() < 0.005


@torch.no_grad()
def test_uint8_pixels_are_normalised_with_the_peers_numbers() -> None:
    tower = ForeignImageTower.wrap("timm:resnet10t", image_size=(32, 32)).eval()
    raw = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.config.mean, tower.config.std))
    assert torch.allclose(tower(raw), tower((raw / 255 - mean) / std), atol=1e-5)


@torch.no_grad()
def test_head_centring_and_layout_do_not_change_the_features() -> None:
    tower = ForeignImageTower.wrap("timm:resnet10t", image_size=(32, 32), embed_dim=7, center=True).eval()
    assert tower(pixels()).shape == (2, 7)
    features = tower.features(pixels())
    tower.head.mean.copy_(features.mean(0))
    centred = (features - features.mean(0)) @ tower.head.weight.T
    assert torch.allclose(tower(pixels()), centred + tower.head.bias, atol=1e-5)
    assert tower.channels_last
    plain = timm.create_model("resnet10t", num_classes=0).eval()
    plain.load_state_dict(tower.module.state_dict())
    assert torch.allclose(plain(pixels()), features, atol=1e-5)


def test_mistakes_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="did you mean timm"):
        ForeignImageTower.wrap("tim:resnet18")
    with pytest.raises(ValueError, match="timm has no model 'resnet18x'.*resnet18"):
        ForeignImageTower.wrap("timm:resnet18x")
    with pytest.raises(ValueError, match="torchvision has no model 'resnet'"):
        ForeignImageTower.wrap("torchvision:resnet")
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-B-99'.*ViT-B"):
        ForeignImageTower.wrap("open_clip:ViT-B-99")
    with pytest.raises(ValueError, match="transformers has no model class 'ViTModell'.*ViTModel"):
        ForeignImageTower.wrap("transformers:ViTModell")
    with pytest.raises(FileNotFoundError, match="no folder './nowhere'"):
        ForeignImageTower.wrap("timm:./nowhere")
    with pytest.raises(FileNotFoundError, match="has no config.json: expected a folder saved by timm"):
        ForeignImageTower.wrap(f"timm:{tmp_path}")
    with pytest.raises(ValueError, match="cannot read how to rebuild a Linear"):
        ForeignImageTower.wrap(nn.Linear(2, 2))
