"""BERT encoders in our post-norm core give the peer's hidden states. Usual difference 1e-7, limit 1e-5."""

import pytest
import torch
import transformers
from torch import nn

from mmvit.hub.convert.from_transformers import from_transformers


def bert(**fields) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=20,
        **fields,
    )
    peer = transformers.BertModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in peer.named_parameters():
        value.data = 0.1 * torch.randn(value.shape, generator=generator) + (
            1 if "LayerNorm.weight" in name else 0
        )
    return peer


IDS = torch.randint(3, 50, (3, 12), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(12) < torch.tensor([[12], [5], [1]])


@pytest.mark.parametrize("pool", ["cls", "mean"])
@torch.no_grad()
def test_pooled_states_equal_with_padding(pool: str, tmp_path) -> None:
    peer = bert()
    hidden = peer(IDS, attention_mask=MASK.long()).last_hidden_state
    mean = (hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    theirs = hidden[:, 0] if pool == "cls" else mean
    assert (from_transformers(peer, pool=pool).features(IDS, MASK) - theirs).abs().max() < 1e-5
    peer.save_pretrained(tmp_path)
    assert (from_transformers(tmp_path, pool=pool).features(IDS, MASK) - theirs).abs().max() < 1e-5


@torch.no_grad()
def test_a_shorter_context_is_cut_and_reported() -> None:
    peer = bert()
    tower = from_transformers(peer, context_length=12)
    assert tower.report.resized == {"pos_embed": ((1, 20, 32), (1, 12, 32))}
    theirs = peer(IDS, attention_mask=MASK.long()).last_hidden_state[:, 0]
    assert (tower.features(IDS, MASK) - theirs).abs().max() < 1e-5


def test_what_is_left_out_is_said() -> None:
    report = from_transformers(bert()).report
    assert set(report.left_out) == {
        "embeddings.token_type_embeddings.weight",
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    assert "left out pooler.dense.weight" in str(report)


def test_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match="only BERT encoders"):
        from_transformers(bert(is_decoder=True))
