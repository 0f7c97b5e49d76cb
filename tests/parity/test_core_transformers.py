"""Core, poolings and positions against transformers, every parameter random."""

import pytest
import torch

from mmvit.core.vit import ViT
from mmvit.heads.pool import build_pool
from mmvit.models.config import CoreConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.image import ImageTower
from mmvit.models.text import TextTower
from mmvit.types import Encoded, Tokens

transformers = pytest.importorskip("transformers")


def randomise(module: torch.nn.Module) -> dict:
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return {name: p.detach() for name, p in module.named_parameters()}


def renamed(state: dict, names: dict) -> dict:
    """`state` with parts of its names replaced, and separate q, k, v put together."""
    out: dict = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        out[key] = value
    for prefix in {k.rsplit(".q.", 1)[0] for k in out if ".q." in k}:
        for part in ("weight", "bias"):
            out[f"{prefix}.qkv.{part}"] = torch.cat([out.pop(f"{prefix}.{n}.{part}") for n in "qkv"])
    return out


@pytest.mark.parametrize("padded", [False, True])
def test_bert_is_a_post_norm_text_tower(padded):
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        attn_implementation="eager",
    )
    peer = transformers.BertModel(config, add_pooling_layer=False).eval()
    state = randomise(peer)
    core = CoreConfig(
        width=32, depth=3, num_heads=4, mlp_dim=64, norm="post", norm_eps=1e-12, norm_first=True
    )
    ours = TextTower(TextTowerConfig(core=core, vocab_size=60, context_length=16, pool="cls")).eval()
    # one segment only, so its embedding is part of every position
    positions = state.pop("embeddings.position_embeddings.weight")
    segment = state.pop("embeddings.token_type_embeddings.weight")[0]
    names = {
        "embeddings.word_embeddings": "tok_embed",
        "embeddings.LayerNorm": "core.norm_pre",
        "encoder.layer.": "core.blocks.",
        "attention.self.query": "attn.q",
        "attention.self.key": "attn.k",
        "attention.self.value": "attn.v",
        "attention.output.dense": "attn.proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    ours.load_state_dict(renamed(state, names) | {"pos_embed": (positions + segment)[None]})
    ids = torch.randint(0, 60, (3, 9))
    mask = (
        torch.arange(9) < torch.tensor([9, 5, 2])[:, None] if padded else torch.ones(3, 9, dtype=torch.bool)
    )
    with torch.no_grad():
        theirs = peer(ids, attention_mask=mask.long()).last_hidden_state
        tokens = ours.forward_tokens(ids, mask).values
        assert (tokens - theirs)[mask].abs().max() < 1e-5
        assert (ours.features(ids, mask) - theirs[:, 0]).abs().max() < 1e-5


def test_map_pool_equals_siglips():
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    config = transformers.SiglipVisionConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, hidden_act="gelu"
    )
    peer = SiglipMultiheadAttentionPoolingHead(config).eval()
    state = randomise(peer)
    pool = build_pool("map", 32, 4, 64)
    q, kv = (
        {p: state[f"attention.in_proj_{p}"].split([32, 64])[i] for p in ("weight", "bias")} for i in (0, 1)
    )
    out = {"latent": state["probe"]}
    out |= {f"q.{p}": q[p] for p in q} | {f"kv.{p}": kv[p] for p in kv}
    for old, new in {
        "attention.out_proj": "proj",
        "layernorm": "norm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items():
        out |= {f"{new}.{p}": state[f"{old}.{p}"] for p in ("weight", "bias")}
    pool.load_state_dict(out)
    x = torch.randn(3, 7, 32)
    assert (pool(Encoded(x, (7,))) - peer(x)).abs().max() < 1e-5


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [(32, 32), (56, 24)])
def test_dinov2_at_its_own_and_another_resolution(registers, size):
    config_class, model_class = (
        (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel)
        if registers
        else (transformers.Dinov2Config, transformers.Dinov2Model)
    )
    extra = {"num_register_tokens": registers} if registers else {}
    config = config_class(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=32,
        patch_size=8,
        **extra,
    )
    peer = model_class(config).eval()
    state = randomise(peer)
    state.pop("embeddings.mask_token")
    core = CoreConfig(width=32, depth=3, num_heads=4, mlp_dim=64, layer_scale=1.0)
    ours = ImageTower(
        ImageTowerConfig(
            core=core,
            image_size=(32, 32),
            patch_size=8,
            registers=registers,
            position_resample="bicubic_antialias" if registers else "bicubic",
        )
    ).eval()
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer.": "core.blocks.",
        "attention.attention.query": "attn.q",
        "attention.attention.key": "attn.k",
        "attention.attention.value": "attn.v",
        "attention.output.dense": "attn.proj",
        "attention.q_proj": "attn.q",  # the names in memory since transformers 5
        "attention.k_proj": "attn.k",
        "attention.v_proj": "attn.v",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm.": "core.norm.",
    }
    ours.load_state_dict(renamed(state, names))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        theirs = peer(x)
        assert (ours.forward_tokens(x).values - theirs.last_hidden_state).abs().max() < 1e-5
        assert (ours.features(x) - theirs.pooler_output).abs().max() < 1e-5


def test_post_norm_core_without_any_adapter_is_finite_under_a_full_mask():
    core = ViT(width=16, depth=2, num_heads=2, mlp_dim=32, norm="post")
    mask = torch.zeros(1, 4, dtype=torch.bool)
    assert core(Tokens(torch.randn(1, 4, 16), (4,), mask=mask)).values.isfinite().all()
