"""The core: invariances, stochastic depth, checkpointing, intermediate layers, precision."""

import pytest
import torch

from mmvit.core.block import Block, LayerScale, survivors
from mmvit.core.mlp import ACTIVATIONS, Mlp
from mmvit.core.vit import ViT
from mmvit.types import Tokens

SMALL = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}


def make(**fields) -> ViT:
    torch.manual_seed(0)
    core = ViT(**{**SMALL, **fields})
    for p in core.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return core


def tokens(B=2, N=6, mask=None) -> Tokens:
    return Tokens(torch.randn(B, N, 16), (N,), mask=mask)


@pytest.mark.parametrize("norm", ["pre", "post", "mid"])
@pytest.mark.parametrize("causal", [False, True])
def test_appended_padding_changes_nothing(norm, causal):
    core = make(norm=norm, causal=causal, norm_first=True, layer_scale=0.5).eval()
    t = tokens()
    longer = torch.cat([t.values, 100 * torch.randn(2, 3, 16)], 1)
    mask = torch.arange(9).expand(2, -1) < 6
    out = core(Tokens(longer, (9,), mask=mask)).values[:, :6]
    torch.testing.assert_close(out, core(t).values, rtol=0, atol=1e-6)


def test_permuting_tokens_permutes_outputs_unless_causal():
    t, order = tokens(), torch.tensor([3, 1, 5, 0, 2, 4])
    for causal in (False, True):
        core = make(causal=causal).eval()
        out = core(t).values[:, order]
        permuted = core(Tokens(t.values[:, order], (6,))).values
        assert torch.allclose(out, permuted, atol=1e-5) is not causal


def test_causal_tokens_do_not_see_the_future():
    core = make(causal=True).eval()
    t = tokens()
    changed = t.values.clone()
    changed[:, 4:] = torch.randn(2, 2, 16)
    before, after = core(t).values, core(Tokens(changed, (6,))).values
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=0)
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["pre", "post", "mid"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_one_token_equals_that_token_of_all_outputs(norm, causal, padded):
    core = make(norm=norm, causal=causal, layer_scale=0.5)
    mask = torch.arange(6) < torch.tensor([6, 3])[:, None] if padded else None
    t = tokens(mask=mask)
    t.values.requires_grad_()
    index = torch.tensor([5, 2])
    full = core(t).values
    for asked, rows in ((index, full[torch.arange(2), index]), (0, full[:, 0]), (-4, full[:, 2])):
        one = core.forward_one(t, asked)
        torch.testing.assert_close(one, rows, rtol=0, atol=1e-5)
        weight = torch.randn_like(rows)
        wanted = torch.autograd.grad((rows * weight).sum(), [t.values, *core.parameters()], retain_graph=True)
        got = torch.autograd.grad((one * weight).sum(), [t.values, *core.parameters()])
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="token 6 was asked for"):
        core.forward_one(t, 6)


@pytest.mark.parametrize("one", [False, True])
def test_checkpointing_changes_neither_outputs_nor_gradients(one):
    core = make(dropout=0.2, drop_path=0.5, layer_scale=0.5).train()
    t = tokens(B=8)
    results = []
    for on in (False, True):
        core.set_checkpointing(on)
        core.zero_grad()
        torch.manual_seed(1)
        out = core.forward_one(t, 0) if one else core(t).values
        out.square().mean().backward()
        results.append((out.detach(), [p.grad.clone() for p in core.parameters()]))
    (plain, grads), (recomputed, again) = results
    assert torch.equal(plain, recomputed)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    torch.manual_seed(2)
    other = core.forward_one(t, 0) if one else core(t).values
    assert not torch.equal(plain, other)  # the dropout did act


def test_drop_path_is_linear_in_depth_and_keeps_the_mean():
    core = make(depth=5, drop_path=0.4)
    assert [b.drop_path for b in core.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    gain = survivors(torch.ones(20_000, 2, 1), 0.3)
    assert gain.shape == (20_000, 1, 1)  # a sample goes as a whole
    assert gain.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert gain.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (gain == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dropped_branch_leaves_its_sample_alone_and_the_others_scaled(layer_scale, dtype):
    torch.manual_seed(0)
    block = Block(16, 2, 32, drop_path=0.5, layer_scale=layer_scale).to(dtype)
    block.mlp.fc2.weight.data.zero_()  # the attention branch alone
    block.mlp.fc2.bias.data.zero_()
    x = torch.randn(64, 4, 16).to(dtype)
    branch = block.eval()(x) - x
    moved = block.train()(x) - x
    assert moved.dtype == dtype
    still = (moved == 0).all(-1).all(-1)
    assert 16 < still.sum() < 48
    torch.testing.assert_close(
        moved[~still], 2 * branch[~still], rtol=0, atol=1e-6 if dtype == torch.float32 else 0.05
    )


def test_no_dropout_and_no_drop_path_means_train_equals_eval():
    core, t = make(), tokens()
    torch.testing.assert_close(core.train()(t).values, core.eval()(t).values, rtol=0, atol=0)
    core = make(drop_path=0.5)
    assert torch.equal(core.eval()(t).values, core(t).values)


def test_intermediate_layers_are_the_outputs_of_shorter_stacks():
    core, t = make(), tokens()
    encoded = core(t, layers=(1, -1, -2))
    assert sorted(encoded.layers) == [1, 2, 3]
    shorter = ViT(**{**SMALL, "depth": 2}, norm_last=False)
    shorter.load_state_dict({k: v for k, v in core.state_dict().items() if k in shorter.state_dict()})
    assert torch.equal(shorter(t).values, encoded.layers[2])
    assert torch.equal(core.norm(encoded.layers[3]), encoded.values)
    for wrong in (0, 4, -4):
        with pytest.raises(ValueError, match=f"layer {wrong} was asked for, expected 1..3"):
            core(t, layers=(wrong,))


def test_bookkeeping_travels():
    mask = torch.ones(2, 6, dtype=torch.bool)
    kept = torch.tensor([[0, 3, 4, 8], [1, 2, 5, 7]])
    out = make()(Tokens(torch.randn(2, 6, 16), (3, 3), prefix=2, mask=mask, kept=kept))
    assert (out.grid, out.prefix) == ((3, 3), 2)
    assert out.mask is mask
    assert out.kept is kept


def test_post_norm_has_no_final_norm_and_normed_outputs():
    core = ViT(**SMALL, norm="post")
    assert core.norm is None
    out = core(tokens()).values
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std(-1, unbiased=False), torch.ones(2, 6), rtol=0, atol=1e-4)


def test_layer_scale_stays_float32_and_starts_at_its_value():
    core = ViT(**SMALL, layer_scale=1e-5).bfloat16()
    assert core.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert core.blocks[0].ls1.gamma.dtype == torch.float32
    assert torch.equal(core.blocks[2].ls2.gamma, torch.full((16,), 1e-5))
    out = core(Tokens(torch.randn(2, 6, 16).bfloat16(), (6,))).values
    assert out.dtype == torch.bfloat16
    assert ViT(**SMALL, layer_scale=1.0).double().blocks[0].ls1.gamma.dtype == torch.float64
    assert LayerScale(4, 2.0).to("meta").gamma.is_meta


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_autocast_stays_close_and_keeps_the_residual_stream_in_float32(checkpointing):
    core = ViT(**SMALL)
    core.set_checkpointing(checkpointing)
    t = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        low = core(t, layers=(-1,))
    assert low.layers[3].dtype == torch.float32
    low.values.sum().backward()
    assert core.blocks[0].attn.qkv.weight.grad.dtype == torch.float32
    assert (low.values.float() - core(t).values).abs().max() < 0.05


def test_mlp_starts_xavier_and_activations_differ_by_what_is_known():
    mlp = Mlp(64, 256)
    limit = (6 / (64 + 256)) ** 0.5
    assert 0.98 * limit < mlp.fc1.weight.abs().max() <= limit
    assert 0 < mlp.fc1.bias.abs().max() < 1e-5
    x = torch.linspace(-6, 6, 10_001, dtype=torch.float64)
    exact, tanh, quick = (ACTIVATIONS[n](x) for n in ("gelu", "gelu_tanh", "quick_gelu"))
    assert (exact - tanh).abs().max().item() == pytest.approx(4.7e-4, rel=0.02)
    assert (exact - quick).abs().max().item() == pytest.approx(2.0e-2, rel=0.03)


def test_mistakes_name_the_option():
    with pytest.raises(ValueError, match="activation is 'selu', expected one of gelu"):
        ViT(**SMALL, activation="selu")
    with pytest.raises(ValueError, match="norm is 'sandwich', expected 'pre', 'post' or 'mid'"):
        ViT(**SMALL, norm="sandwich")
    with pytest.raises(ValueError, match="drop_path is 1.0"):
        ViT(**SMALL, drop_path=1.0)
    with pytest.raises(ValueError, match="expected this core's width=16"):
        ViT(**SMALL)(Tokens(torch.zeros(1, 2, 8), (2,)))
