"""Our pair against open_clip's CLIP, both towers, every parameter random: within 1e-5 in float32."""

import pytest
import torch

from mmvit.models.config import CoreConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.lit import DualEncoder

open_clip = pytest.importorskip("open_clip")


def peer_and_ours(quick_gelu: bool):
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "mlp_ratio": 2.0}
    text = {"context_length": 12, "vocab_size": 60, "width": 24, "heads": 3, "layers": 2}
    peer = open_clip.CLIP(embed_dim=20, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu).eval()
    for p in peer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    common = {"norm_eps": 1e-5, "activation": "quick_gelu" if quick_gelu else "gelu"}
    head = {"embed_dim": 20, "head_bias": False}
    image = ImageTowerConfig(
        core=CoreConfig(width=32, depth=3, num_heads=4, mlp_dim=64, norm_first=True, **common),
        image_size=(32, 32),
        patch_size=8,
        patch_bias=False,
        **head,
    )
    core = CoreConfig(width=24, depth=2, num_heads=3, mlp_dim=96, causal=True, **common)
    words = TextTowerConfig(core=core, vocab_size=60, context_length=12, pad_mask=False, **head)
    ours = DualEncoder(DualEncoderConfig(image=image, text=words)).eval()
    ours.load_state_dict(renamed(peer.state_dict()))
    return peer, ours


def renamed(state: dict) -> dict:
    names = {
        "ln_1.": "norm1.",
        "ln_2.": "norm2.",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "transformer.resblocks": "core.blocks",
        "visual.ln_pre": "visual.core.norm_pre",
        "visual.ln_post": "visual.core.norm",
        "ln_final": "core.norm",
        "visual.conv1": "visual.patch_embed.proj",
        "token_embedding": "tok_embed",
        "positional_embedding": "pos_embed",
        "visual.class_embedding": "visual.cls_token",
    }
    out = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        if key in ("visual.proj", "text_projection"):
            key, value = (
                key.replace("proj", "head.weight").replace("text_head.weightection", "head.weight"),
                value.T,
            )
        if key.endswith("pos_embed"):
            value = value[None]
        if key.endswith("cls_token"):
            value = value[None, None]
        side = "" if key == "logit_scale" else "image." if key.startswith("visual.") else "text."
        out[side + key.removeprefix("visual.")] = value
    return out


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_both_towers_equal(quick_gelu):
    peer, ours = peer_and_ours(quick_gelu)
    pixels = torch.randn(3, 3, 32, 32)
    ids = torch.randint(1, 58, (3, 12))
    lengths = torch.tensor([12, 7, 2])
    ids[torch.arange(3), lengths - 1] = 59  # the peer looks for the largest id, we for the last real token
    mask = torch.arange(12) < lengths[:, None]
    ids[~mask] = 0
    with torch.no_grad():
        assert (ours.encode_image(pixels) - peer.encode_image(pixels, normalize=True)).abs().max() < 1e-5
        assert (ours.encode_text(ids, mask) - peer.encode_text(ids, normalize=True)).abs().max() < 1e-5
        # and without normalisation, where a scale could hide
        assert (ours.image(pixels) - peer.encode_image(pixels)).abs().max() < 1e-5
        assert (ours.text(ids, mask) - peer.encode_text(ids)).abs().max() < 1e-5
    assert torch.equal(ours.logit_scale, peer.logit_scale)
