"""Classifiers and the BEiT family converted whole: logits equal the peer's, and what is left out is said."""

import pytest
import timm
import torch
import torchvision
import transformers

from mmvit.hub.convert.from_timm import from_timm
from mmvit.hub.convert.from_torchvision import from_torchvision
from mmvit.hub.convert.from_transformers import from_transformers
from tests.parity.case import randomise

TIMM_TINY = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 5}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def pixels(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "the peer's output is too flat to tell anything"
    assert (ours - theirs).abs().max() < 1e-5


BEIT = {
    "table per block": {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1},
    "one table, class token": {
        "use_abs_pos_emb": False,
        "use_shared_rel_pos_bias": True,
        "global_pool": "token",
    },
    "absolute positions too": {"use_rel_pos_bias": True},
    "absolute positions alone, no bias": {"qkv_bias": False},
    "norm before the mean": {"use_fc_norm": False, "use_rel_pos_bias": True},
}


@pytest.mark.parametrize("case", BEIT)
@torch.no_grad()
def test_timm_beit(case):
    peer = randomise(timm.models.beit.Beit(**TIMM_TINY, **BEIT[case]))
    model = from_timm(peer, head=True)
    close(model(pixels()), peer(pixels()))
    close(model.forward_tokens(pixels()).values, peer.forward_features(pixels()))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters())
    tower = from_timm(peer, head=False)
    close(tower(pixels()), model.features(pixels()))
    assert set(tower.report.left_out) == {"head.weight", "head.bias"}


@torch.no_grad()
def test_tables_are_resampled_when_another_picture_is_asked_for():
    peer = randomise(timm.models.beit.Beit(**TIMM_TINY, **BEIT["table per block"]))
    model, large = from_timm(peer, head=False), from_timm(peer, image_size=(48, 40), head=False)
    assert large.report.resized["core.blocks.0.relative.table"] == ((52, 4), (102, 4))
    close(large(pixels(48, 40)), model(pixels(48, 40)))


def test_two_kinds_of_relative_position_are_refused():
    both = timm.models.beit.Beit(**TIMM_TINY, use_rel_pos_bias=True, use_shared_rel_pos_bias=True)
    with pytest.raises(ValueError, match="per block and shared ones at once"):
        from_timm(both)


HF = {
    "ViTForImageClassification": {},
    "DeiTForImageClassification": {},
    "DeiTForImageClassificationWithTeacher": {},
    "BeitForImageClassification": {"use_relative_position_bias": True},
    "BeitForImageClassification, shared": {"use_shared_relative_position_bias": True},
    "BeitForImageClassification, class token": {
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": False,
    },
    "Data2VecVisionForImageClassification": {"use_relative_position_bias": True},
    "Data2VecVisionForImageClassification, shared": {"use_shared_relative_position_bias": True},
}


@pytest.mark.parametrize("case", HF)
@torch.no_grad()
def test_transformers_classifiers_in_memory_and_from_their_files(case, tmp_path):
    name = case.split(",")[0]
    config = getattr(transformers, f"{name.partition('For')[0]}Config")(**TINY, **HF[case])
    peer = randomise(getattr(transformers, name)(config))
    theirs = peer(pixels()).logits
    close(from_transformers(peer, head=True)(pixels()), theirs)
    peer.save_pretrained(tmp_path)
    close(from_transformers(tmp_path, head=True)(pixels()), theirs)
    assert any(
        "head=True keeps it" in why for why in from_transformers(peer, head=False).report.left_out.values()
    )


@torch.no_grad()
def test_a_pretrained_beit_is_a_tower_with_its_norm():
    config = transformers.BeitConfig(**TINY, use_shared_relative_position_bias=True, use_mask_token=True)
    peer = randomise(transformers.BeitForMaskedImageModeling(config))
    tower = from_transformers(peer, head=False)
    theirs = peer.layernorm(peer.beit(pixels()).last_hidden_state)
    close(tower.forward_tokens(pixels()).values, theirs)
    assert tower.config.pool == "cls"
    assert {"embeddings.mask_token", "lm_head.weight", "lm_head.bias"} <= set(tower.report.left_out)


@torch.no_grad()
def test_transformers_deit_without_a_head_reads_both_tokens():
    peer = randomise(transformers.DeiTModel(transformers.DeiTConfig(**TINY)))
    tower = from_transformers(peer, head=False)
    tokens = peer(pixels()).last_hidden_state
    close(tower.forward_tokens(pixels()).values, tokens)
    close(tower.features(pixels()), tokens[:, :2].mean(1))


@torch.no_grad()
def test_torchvision_classifier():
    peer = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    peer = randomise(peer)
    close(from_torchvision(peer, head=True)(pixels()), peer(pixels()))


# timm's name -> (epsilon, activation, pool, class token, first mean, flexible)
NAMES = {
    "vit_base_patch16_siglip_224": (1e-6, "gelu", "map", False, 0.5, None),
    "vit_base_patch32_siglip_256": (1e-6, "gelu_tanh", "map", False, 0.5, None),
    "vit_base_patch16_siglip_gap_224": (1e-6, "gelu", "mean", False, 0.5, None),
    "vit_base_patch32_clip_224": (1e-5, "gelu", "cls", True, 0.48145466, None),
    "vit_base_patch32_clip_quickgelu_224": (1e-5, "quick_gelu", "cls", True, 0.48145466, None),
    "vit_base_patch16_gap_224": (1e-6, "gelu", "mean", False, 0.5, None),
    "vit_small_patch14_reg4_dinov2": (1e-6, "gelu", "cls", True, 0.485, None),
    "deit3_small_patch16_224": (1e-6, "gelu", "cls", True, 0.485, None),
    "flexivit_small": (1e-6, "gelu", "cls", True, 0.5, "pi"),
}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_timm_names_keep_their_constants_and_outputs(name):
    eps, activation, pool, class_token, mean, flexible = NAMES[name]
    peer = randomise(timm.create_model(name, depth=1, embed_dim=64, num_heads=2, num_classes=0))
    tower = from_timm(peer, head=False)
    config = tower.config
    assert (config.core.norm_eps, config.core.activation, config.pool) == (eps, activation, pool)
    assert (config.class_token, config.patch_resample) == (class_token, flexible)
    assert config.mean[0] == pytest.approx(mean)
    x = torch.randn(1, 3, *config.image_size)
    close(tower(x), peer(x))
