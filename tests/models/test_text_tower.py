"""The text tower: padding, poolings, masks."""

import pytest
import torch

from mmvit.models.presets import create_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 1], [5, 6, 99, 1, 0, 0]])  # 99 is the largest id and not the end
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


def tower(**overrides):
    torch.manual_seed(0)
    model = create_model("text_mu", **{"vocab_size": 100, "context_length": 8, "depth": 2, **overrides})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


@pytest.mark.parametrize("pool", ["eos", "cls", "mean", "map"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_and_what_it_holds_change_nothing(pool, norm):
    model = tower(pool=pool, norm=norm)
    out = model(IDS, MASK)
    noisy = IDS.masked_fill(~MASK, 77)
    torch.testing.assert_close(model(noisy, MASK), out, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(IDS[1:, :4], MASK[1:, :4]), out[1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(IDS[1:, :4]), out[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["eos", "cls", "last", "mean", "map"])
@pytest.mark.parametrize("pad_mask", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_features_are_the_pooled_tokens(pool, pad_mask, causal):
    model = tower(pool=pool, pad_mask=pad_mask, causal=causal, context_length=6)
    encoded = model.forward_tokens(IDS, MASK)
    values = encoded.values
    wanted = {
        "eos": lambda: values[[0, 1], [5, 3]],
        "cls": lambda: values[:, 0],
        "last": lambda: values[:, 5],
        "mean": lambda: torch.stack([values[0].mean(0), values[1, :4].mean(0)]),
        "map": lambda: model.pool(encoded),
    }[pool]()
    torch.testing.assert_close(model.features(IDS, MASK), wanted, rtol=0, atol=1e-5)
    assert (encoded.mask is not None) is pad_mask


def test_padding_is_attended_only_where_the_model_says_so():
    noisy = IDS.masked_fill(~MASK, 77)
    attending, causal = tower(pad_mask=False), tower(pad_mask=False, causal=True)
    assert (attending(noisy, MASK) - attending(IDS, MASK)).abs().max() > 1e-3
    assert torch.equal(causal(noisy, MASK), causal(IDS, MASK))  # the end token never sees what follows


def test_last_position_needs_the_whole_context():
    with pytest.raises(ValueError, match="padded to 6 tokens, but pool='last'.*pad_to='context'"):
        tower(pool="last", pad_mask=False)(IDS, MASK)


def test_names_and_initial_values():
    torch.manual_seed(0)
    model = create_model("text_small", depth=1, embed_dim=64)
    names = set(model.state_dict())
    assert {"tok_embed.weight", "pos_embed", "core.blocks.0.attn.qkv.weight", "core.norm.bias"} < names
    assert {"head.weight", "head.bias"} < names
    assert model.pos_embed.shape == (1, 16, 384)
    assert model.pos_embed.std().item() == pytest.approx(384**-0.5, rel=0.03)
    assert model.tok_embed.weight.std().item() == pytest.approx(384**-0.5, rel=0.01)
    assert (model.width, model.embed_dim) == (384, 64)


def test_checkpointing_leaves_the_gradients():
    model = tower().train()
    grads = []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        model(IDS, MASK).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("pool", "pad_mask", "causal", "norm"),
    [("eos", True, False, "pre"), ("cls", True, False, "post"), ("mean", True, True, "pre")]
    + [("map", True, False, "pre"), ("eos", False, True, "pre"), ("mean", False, True, "pre")],
)
def test_lengths_apart_equal_lengths_together(pool, pad_mask, causal, norm, monkeypatch):
    model = tower(
        pool=pool, pad_mask=pad_mask, causal=causal, norm=norm, context_length=30, embed_dim=None
    ).double()
    ids = torch.randint(0, 100, (90, 30))
    mask = torch.arange(30) < torch.randint(1, 12, (90, 1))
    mask[7] = True
    seen = []
    model.core.register_forward_pre_hook(lambda module, args: seen.append(args[0].values.shape[:2]))
    monkeypatch.setattr(model.core, "forward_one", _seeing(model.core.forward_one, seen))
    found = {}
    for apart in (True, False):
        if not apart:
            monkeypatch.setattr(model, "_regroups", lambda mask: False)
        model.zero_grad()
        features = model.features(ids, mask)
        features.square().sum().backward()
        found[apart] = [features, *(p.grad for p in model.parameters() if p.grad is not None)]
        tokens = sum(rows * width for rows, width in seen)
        assert tokens < 0.6 * 90 * 30 if apart else tokens == 90 * 30
        seen.clear()
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


def _seeing(forward, seen):
    def wrapped(tokens, index):
        seen.append(tokens.values.shape[:2])
        return forward(tokens, index)

    return wrapped


@pytest.mark.parametrize(
    ("pool", "pad_mask", "causal"), [("last", True, False), ("map", False, True), ("mean", False, False)]
)
def test_padding_that_counts_is_never_cut_off(pool, pad_mask, causal):
    assert not tower(pool=pool, pad_mask=pad_mask, causal=causal).ignores_padding
