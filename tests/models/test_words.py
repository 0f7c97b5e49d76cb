"""Word towers: both styles, padding, where AGG stands, word vectors, mistakes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from mmvit.models.config import WordTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.words import WordTower

CORE = CoreConfig(width=32, depth=2, num_heads=4, mlp_dim=48)
T5 = CoreConfig(
    width=32,
    depth=2,
    num_heads=4,
    mlp_dim=48,
    norm_type="rms",
    qkv_bias=False,
    proj_bias=False,
    mlp_bias=False,
    attn_scale=1.0,
    relative="buckets",
    relative_distance=64,
)
STYLES = {
    "shared": WordTowerConfig(core=CORE, vocab_size=20, word_width=12, post_projection=24),
    "t5": WordTowerConfig(core=T5, vocab_size=20, word_width=12, style="t5", embed_dim=8),
}


def tower(style, **fields):
    torch.manual_seed(0)
    made = WordTower(dataclasses.replace(STYLES[style], **fields))
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made.eval()


def test_names_of_the_weights():
    common = {"tok_embed.weight", "agg_token", "word_proj.weight"}
    shared = {n for n in tower("shared").state_dict() if not n.startswith("core.")}
    norm = {"pos_norm.weight", "pos_norm.bias", "post.0.weight", "post.0.bias"}
    assert shared == common | norm | {"word_proj.bias", "pos_embed"}
    t5 = {n for n in tower("t5").state_dict() if not n.startswith("core.blocks")}
    assert t5 == common | {"head.weight", "head.bias", "core.norm.weight", "core.relative.table"}
    assert not any(n.endswith("bias") for n in tower("t5").core.state_dict()), "T5's core has no biases"


@pytest.mark.parametrize("style", STYLES)
def test_padding_changes_nothing(style):
    model = tower(style)
    ids = torch.tensor([[3, 4, 5], [6, 7, 0]])
    longer = F.pad(ids, (0, 6))
    wanted = model(ids)
    torch.testing.assert_close(model(longer), wanted, rtol=0, atol=1e-5)
    mask = longer != 0
    torch.testing.assert_close(model(torch.where(mask, longer, 9), mask), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(ids[1:, :2]), wanted[1:], rtol=0, atol=1e-5)
    assert torch.isfinite(model(torch.zeros(1, 4, dtype=torch.int64))).all(), "no word at all: AGG is there"


@pytest.mark.parametrize("style", STYLES)
def test_the_order_of_words_matters(style):
    model = tower(style)
    one, two = model(torch.tensor([[3, 4, 5]])), model(torch.tensor([[5, 4, 3]]))
    assert (one - two).abs().max() > 1e-3


@pytest.mark.parametrize("style", STYLES)
def test_features_are_the_output_at_agg(style):
    model, ids = tower(style), torch.tensor([[3, 4, 5], [6, 7, 0]])
    encoded = model.forward_tokens(ids, layers=(-1,))
    assert encoded.values.shape == (2, 4, model.width)
    assert encoded.prefix == 1
    assert set(encoded.layers) == {2}
    torch.testing.assert_close(model.features(ids), encoded.values[:, 0], rtol=0, atol=1e-5)
    assert model(ids).shape == (2, model.embed_dim)


def test_where_agg_stands():
    shared, t5, ids = tower("shared"), tower("t5"), torch.tensor([[3, 4]])
    tokens = shared.tokens(ids)
    assert torch.equal(tokens.values[0, 0], shared.agg_token[0, 0]), "no position, no projection"
    words = F.gelu(shared.word_proj(shared.tok_embed(ids)))
    assert torch.equal(tokens.values[:, 1:], words + shared.pos_norm(shared.pos_embed[:, :2]))
    assert t5.agg_token.shape == (1, 1, 12)
    raw = torch.cat([t5.agg_token, t5.tok_embed(ids)], 1)
    torch.testing.assert_close(t5.tokens(ids).values, F.gelu(t5.word_proj(raw)))


def test_word_vectors_fill_the_known_rows():
    model = tower("shared")
    before = model.tok_embed.weight.detach().clone()
    vectors, known = torch.full((20, 12), 7.0), torch.zeros(20, dtype=torch.bool)
    known[[3, 5]] = True
    model.set_vectors(vectors, known)
    after = model.tok_embed.weight
    assert (after[[3, 5]] == 7).all()
    assert torch.equal(after[6:], before[6:])
    assert (after[0] == 0).all()
    with pytest.raises(ValueError, match=r"word vectors are \(20, 11\), the table is \(20, 12\)"):
        model.set_vectors(torch.zeros(20, 11))


def test_mistakes():
    model = tower("t5")
    with pytest.raises(ValueError, match=r"word ids are \(1, 17\), expected \(B,L\) with L at most"):
        model(torch.ones(1, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"text mask is \(1, 3\), expected \(1, 4\)"):
        model(torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="causal is True, expected False"):
        tower("shared", core=dataclasses.replace(CORE, causal=True))
