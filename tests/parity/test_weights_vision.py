"""Image towers converted from peers give the peers' own features. Usual difference 1e-7, limit 1e-5."""

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from mmvit.hub.convert.from_timm import from_timm
from mmvit.hub.convert.from_torchvision import from_torchvision
from mmvit.hub.convert.from_transformers import from_transformers

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TIMM_TINY = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 5}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, gains around 1: biases and norms too, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        value.data = 0.1 * torch.randn(value.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            value.data += 1
    return model.eval()


def pixels(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(ours: torch.Tensor, theirs: torch.Tensor, limit: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "the peer's output is too flat to tell anything"
    assert (ours - theirs).abs().max() < limit


TIMM = {
    "cls token": ({}, {}),
    "average, norm behind": ({"global_pool": "avg"}, {}),
    "average, norm before": ({"global_pool": "avg", "fc_norm": False}, {}),
    "no class token": ({"class_token": False, "global_pool": "avg"}, {}),
    "map, as SigLIP": ({"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}, {}),
    "class token without position, as DeiT-III": ({"no_embed_class": True, "init_values": 0.1}, {}),
    "registers without positions, as DINOv2": (
        {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.1},
        {},
    ),
    "registers with positions": ({"reg_tokens": 3}, {}),
    "norm before the blocks, as CLIP": ({"pre_norm": True, "act_layer": "quick_gelu"}, {}),
    "no qkv bias": ({"qkv_bias": False}, {}),
}


@pytest.mark.parametrize("case", TIMM)
@torch.no_grad()
def test_timm_features(case: str) -> None:
    peer = randomise(timm.models.VisionTransformer(**TIMM_TINY, **TIMM[case][0]))
    tower = from_timm(peer, head=False)
    theirs = peer.forward_head(peer.forward_features(pixels()), pre_logits=True)
    close(tower.features(pixels()), theirs)
    assert set(tower.report.left_out) == {"head.weight", "head.bias"}


@torch.no_grad()
def test_timm_registered_names_keep_their_constants() -> None:
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}
    clip = from_timm(
        "vit_base_patch16_clip_224", weights=False, head=False, **{"image_size": (224, 224), "depth": 1}
    )
    assert clip.config.core.norm_eps == 1e-5
    assert clip.config.core.norm_first
    assert clip.config.mean[0] == pytest.approx(0.48145466)
    assert not clip.config.patch_bias
    augreg = from_timm(timm.create_model("vit_tiny_patch16_224", **small), head=False)
    assert augreg.config.core.norm_eps == 1e-6
    assert augreg.config.mean == (0.5, 0.5, 0.5)
    deit = from_timm(timm.create_model("deit_tiny_patch16_224", **small), head=False)
    assert deit.config.mean == (0.485, 0.456, 0.406)


def test_timm_variants_that_are_not_plain_are_refused() -> None:
    with pytest.raises(ValueError, match="ResNet"):
        from_timm(timm.create_model("resnet10t"))
    pooled = {"global_pool": "map", "class_token": True}
    with pytest.raises(ValueError, match="attention pooling that leaves out class token"):
        from_timm(timm.models.VisionTransformer(**TIMM_TINY, **pooled))
    normed = timm.models.VisionTransformer(**TIMM_TINY, qk_norm=True)
    with pytest.raises(ValueError, match="q_norm"):
        from_timm(normed)


TRANSFORMERS = {
    "ViTModel": lambda: transformers.ViTConfig(**TINY, intermediate_size=64),
    "ViTForImageClassification": lambda: transformers.ViTConfig(**TINY, intermediate_size=64),
    "Dinov2Model": lambda: transformers.Dinov2Config(**TINY, mlp_ratio=2),
    "Dinov2WithRegistersModel": lambda: transformers.Dinov2WithRegistersConfig(**TINY, mlp_ratio=2),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_transformers_vision_models_in_memory_and_from_their_files(name: str, tmp_path) -> None:
    peer = randomise(getattr(transformers, name)(TRANSFORMERS[name]()))
    body = getattr(peer, "vit", peer)
    theirs = body(pixels()).last_hidden_state[:, 0]
    close(from_transformers(peer, head=False).features(pixels()), theirs)
    # Files carry other names than the model in memory.
    peer.save_pretrained(tmp_path)
    close(from_transformers(tmp_path, head=False).features(pixels()), theirs)


@torch.no_grad()
def test_positions_follow_another_picture_size_as_the_peer_does() -> None:
    peer = randomise(transformers.Dinov2Model(TRANSFORMERS["Dinov2Model"]()))
    theirs = peer(pixels(48)).last_hidden_state[:, 0]
    close(from_transformers(peer, head=False).features(pixels(48)), theirs)
    stored = from_transformers(peer, image_size=48, head=False)
    close(stored.features(pixels(48)), theirs)
    assert stored.report.resized == {"pos_embed": ((1, 17, 32), (1, 37, 32))}


@torch.no_grad()
def test_fewer_blocks_and_no_final_norm_give_the_inner_layer() -> None:
    peer = randomise(transformers.Dinov2Model(TRANSFORMERS["Dinov2Model"]()))
    inner = peer(pixels(), output_hidden_states=True).hidden_states[1][:, 0]
    tower = from_transformers(peer, depth=1, norm_last=False, head=False)
    close(tower.features(pixels()), inner)
    left_out = tower.report.left_out
    assert left_out["layernorm.weight"] == "norm_last is off"
    assert any(name.startswith("encoder.layer.1.") and why == "depth is 1" for name, why in left_out.items())


@torch.no_grad()
def test_torchvision_vit() -> None:
    peer = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    randomise(peer)
    peer.conv_proj.bias.data.normal_()
    tower = from_torchvision(peer, head=False)
    peer.heads = nn.Identity()
    close(tower.features(pixels()), peer(pixels()))


@pytest.mark.parametrize("broken", ["q and k swapped", "epsilon", "activation"])
@torch.no_grad()
def test_a_wrong_conversion_would_be_seen(broken: str) -> None:
    """The comparison above is sharp enough to notice each of the silent mistakes."""
    peer = randomise(transformers.ViTModel(TRANSFORMERS["ViTModel"]()))
    theirs = peer(pixels()).last_hidden_state[:, 0]
    tower = from_transformers(peer, head=False)
    if broken == "epsilon":
        tower = from_transformers(peer, norm_eps=1e-3, head=False)
    elif broken == "activation":
        tower = from_transformers(peer, activation="gelu_tanh", head=False)
    else:
        weight = tower.core.blocks[0].attn.qkv.weight
        weight.data = torch.cat([weight[32:64], weight[:32], weight[64:]])
    assert (tower.features(pixels()) - theirs).abs().max() > 1e-5
