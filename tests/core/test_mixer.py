"""Mixer's core: against plain operations, what it is not invariant to, and the tokens that it refuses."""

import pytest
import torch

from mmvit.core.mixer import Mixer, MixerBlock
from mmvit.types import Tokens
from tests.core.recomputed import gradients

SMALL = {"width": 16, "depth": 3, "tokens": 4, "token_dim": 6, "mlp_dim": 32}


def make(**fields) -> Mixer:
    torch.manual_seed(0)
    core = Mixer(**{**SMALL, **fields})
    for p in core.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return core


def tokens(B=2, N=4, **fields) -> Tokens:
    return Tokens(torch.randn(B, N, 16), (2, 2), **fields)


def test_a_block_follows_the_definition():
    """Channel by channel along the tokens, then token by token along the channels."""
    block = make().double().blocks[0]
    x = torch.randn(2, 4, 16, dtype=torch.float64)

    def norm(layer, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * layer.weight + layer.bias

    def mlp(layer, x):
        hidden = layer.fc1.weight @ x + layer.fc1.bias
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        return layer.fc2.weight @ hidden + layer.fc2.bias

    out = x.clone()
    for s in range(2):
        y = norm(block.norm1, x[s])
        for c in range(16):
            out[s, :, c] += mlp(block.mlp_tokens, y[:, c])
        y = norm(block.norm2, out[s])
        for n in range(4):
            out[s, n] += mlp(block.mlp_channels, y[n])
    torch.testing.assert_close(block(x), out, rtol=0, atol=1e-12)


def test_layers_and_bookkeeping():
    core, t = make(), tokens()
    out = core(t, layers=(1, -1))
    assert sorted(out.layers) == [1, 3]
    assert (out.grid, out.prefix, out.mask, out.kept) == ((2, 2), 0, None, None)
    assert torch.equal(core.norm(out.layers[3]), out.values)
    assert torch.equal(core.blocks[0](t.values), out.layers[1])
    with pytest.raises(ValueError, match="layer 0 was asked for"):
        core(t, layers=(0,))


def test_shuffling_tokens_changes_even_their_mean():
    core, t = make(), tokens()
    shuffled = core(Tokens(t.values[:, [2, 0, 3, 1]], (2, 2))).values
    assert (shuffled.mean(1) - core(t).values.mean(1)).abs().max() > 0.05


def test_starts_as_flax_does():
    core = Mixer(width=64, depth=1, tokens=256, token_dim=128, mlp_dim=256)
    for layer in (core.blocks[0].mlp_tokens.fc1, core.blocks[0].mlp_channels.fc2):
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.02)
        assert layer.bias.abs().max() == 0


def test_stochastic_depth_is_linear_and_rescaled():
    core = make(depth=5, drop_path=0.4)
    assert [b.drop_path for b in core.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    block = MixerBlock(16, 4, 6, 32, drop_path=0.3).train()
    block.mlp_channels.fc2.weight.data.zero_()  # the branch along the tokens alone
    block.mlp_channels.fc2.bias.data.zero_()
    x = torch.randn(400, 4, 16)
    moved, branch = block(x) - x, block.eval()(x) - x
    still = (moved == 0).flatten(1).all(1)
    assert still.float().mean().item() == pytest.approx(0.3, abs=0.07)
    torch.testing.assert_close(moved[~still], branch[~still] / 0.7, rtol=0, atol=1e-5)


def test_checkpointing_changes_neither_outputs_nor_gradients_which_reach_everything():
    core = make(dropout=0.2, drop_path=0.5).train()
    t = tokens(B=8)
    assert all(g.abs().max() > 0 for g in gradients(core, t).values())


def test_bfloat16_autocast_stays_close():
    core, t = make(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        low = core(t).values
    assert (low.float() - core(t).values).abs().max() < 0.05
    low.sum().backward()
    assert all(p.grad.isfinite().all() for p in core.parameters())


def test_other_tokens_are_refused():
    core = make()
    with pytest.raises(ValueError, match="there are 5 tokens, expected this core's tokens=4$"):
        core(tokens(N=5))
    with pytest.raises(ValueError, match="there are 16 tokens, .* 2x2 times as many .* block-diagonally"):
        core(tokens(N=16))
    with pytest.raises(ValueError, match="some tokens are padded: .* need all 4 of them"):
        core(tokens(mask=torch.ones(2, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="some tokens are dropped"):
        core(tokens(N=3, kept=torch.tensor([[0, 1, 2]] * 2)))
    with pytest.raises(ValueError, match="led by 1 special ones, expected none.*class_token=False"):
        core(tokens(N=5, prefix=1))
    with pytest.raises(ValueError, match="expected this core's width=16"):
        core(Tokens(torch.zeros(1, 4, 8), (2, 2)))
    with pytest.raises(ValueError, match="tokens is 0"):
        make(tokens=0)
    with pytest.raises(ValueError, match="drop_path is -0.1"):
        make(drop_path=-0.1)
