"""Pairs converted from open_clip and transformers: same embeddings, temperature and bias (limit 1e-5)."""

import functools
import json

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from mmvit.hub.convert.from_open_clip import from_open_clip
from mmvit.hub.convert.from_transformers import from_transformers

VISION = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}
OPEN_CLIP = {
    "CLIP": {"vision_cfg": VISION, "text_cfg": TEXT},
    "CLIP with QuickGELU": {"vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True},
    "SigLIP": {
        "init_logit_bias": -10.0,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": TEXT
        | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    },
    "timm trunk with projection": {
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear"},
        "text_cfg": TEXT,
    },
}


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        value.data = 0.1 * torch.randn(value.shape, generator=generator)
        if ("ln_" in name or "norm" in name) and name.endswith("weight"):
            value.data += 1
    return model.eval()


def peer_of(case: str, monkeypatch) -> nn.Module:
    cfg = dict(OPEN_CLIP[case])
    custom = cfg.pop("custom_text", False)
    create = open_clip.timm_model.timm.create_model
    # Trunks at a size that a test can afford; open_clip has no option for it.
    small = functools.partial(create, depth=2, embed_dim=32, num_heads=4, patch_size=8, img_size=32)
    monkeypatch.setattr(open_clip.timm_model.timm, "create_model", small)
    return randomise((open_clip.CustomTextCLIP if custom else open_clip.CLIP)(embed_dim=32, **cfg))


def inputs(context: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 49, (3, context), generator=generator)
    ends = torch.tensor([context - 1, 6, 2])
    mask = torch.arange(context) <= ends[:, None]
    ids = torch.where(mask, ids, 0)
    ids[torch.arange(3), ends] = 49
    return torch.randn(3, 3, 32, 32, generator=generator), ids, mask


@pytest.mark.parametrize("case", OPEN_CLIP)
@torch.no_grad()
def test_open_clip_pairs(case: str, monkeypatch) -> None:
    peer = peer_of(case, monkeypatch)
    pixels, ids, mask = inputs()
    pair = from_open_clip(peer)
    for ours, theirs in (
        (pair.image(pixels), peer.encode_image(pixels)),
        (pair.text(ids, mask), peer.encode_text(ids)),
        (pair.encode_image(pixels), peer.encode_image(pixels, normalize=True)),
        (pair.encode_text(ids, mask), peer.encode_text(ids, normalize=True)),
    ):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-5
    assert pair.logit_scale == peer.logit_scale
    assert (pair.logit_bias is None) == (peer.logit_bias is None)
    assert pair.config.activation == ("sigmoid" if case == "SigLIP" else "softmax")


@torch.no_grad()
def test_open_clip_folder_without_network(tmp_path, monkeypatch) -> None:
    peer = peer_of("CLIP with QuickGELU", monkeypatch)
    model_cfg = {"embed_dim": 32, **OPEN_CLIP["CLIP with QuickGELU"]}
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    )
    save_file(peer.state_dict(), tmp_path / "open_clip_model.safetensors")
    pixels, ids, mask = inputs()
    pair = from_open_clip(tmp_path)
    assert (pair.image(pixels) - peer.encode_image(pixels)).abs().max() < 1e-5
    assert pair.config.image.mean == (0.5, 0.5, 0.5)
    assert pair.config.image.core.activation == "quick_gelu"


def test_open_clip_variants_without_a_converter_are_refused() -> None:
    resnet = open_clip.CLIP(
        embed_dim=32, vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, text_cfg=TEXT
    )
    with pytest.raises(ValueError, match="ModifiedResNet.*lock it as"):
        from_open_clip(resnet)
    with pytest.raises(ValueError, match="tag="):
        from_open_clip("ViT-B-32")


def transformers_pair(name: str) -> nn.Module:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {k: v for k, v in vision.items() if k not in ("image_size", "patch_size")}
    text |= {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 49}
    config = {"CLIPModel": transformers.CLIPConfig, "SiglipModel": transformers.SiglipConfig}[name]
    more = {"projection_dim": 24} if name == "CLIPModel" else {}
    return randomise(
        getattr(transformers, name)(
            config(text_config=text | {"pad_token_id": 0}, vision_config=vision, **more)
        )
    )


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
@torch.no_grad()
def test_transformers_pairs(name: str, tmp_path) -> None:
    peer = transformers_pair(name)
    pixels, ids, mask = inputs()
    peer.save_pretrained(tmp_path)
    for source in (peer, tmp_path):
        pair = from_transformers(source)
        assert (pair.image(pixels) - peer.get_image_features(pixels).pooler_output).abs().max() < 1e-5
        assert (pair.text(ids, mask) - peer.get_text_features(ids).pooler_output).abs().max() < 1e-5
        assert torch.equal(pair.logit_scale, peer.logit_scale.reshape(()))
        if name == "SiglipModel":
            assert torch.equal(pair.logit_bias, peer.logit_bias.reshape(()))
    logits = peer(input_ids=ids, pixel_values=pixels).logits_per_image
    z, w = pair.encode_image(pixels), pair.encode_text(ids, mask)
    bias = 0 if pair.logit_bias is None else pair.logit_bias
    assert (pair.logit_scale.exp() * z @ w.T + bias - logits).abs().max() < 1e-4
