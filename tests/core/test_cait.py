"""CaiT's core: talking heads against loops, what the class token sees, masks, gains, stochastic depth."""

import math

import pytest
import torch

from mmvit.core.cait import Cait, CaitBlock, TalkingHeads
from mmvit.types import Tokens
from tests.core.recomputed import gradients

SMALL = {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}


def make(**fields) -> Cait:
    torch.manual_seed(0)
    core = Cait(**{**SMALL, **fields})
    for p in core.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return core


def tokens(B=2, N=6, mask=None) -> Tokens:
    return Tokens(torch.randn(B, N, 16), (N,), mask=mask)


def test_talking_heads_follow_the_definition():
    """Number by number: a mixing of the heads on either side of the softmax."""
    torch.manual_seed(0)
    B, N, H, K = 2, 3, 4, 2
    layer = TalkingHeads(H * K, H).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(B, N, H * K, dtype=torch.float64)
    w, b = layer.qkv.weight, layer.qkv.bias
    q, k, v = (x @ w[i * 8 : i * 8 + 8].T + b[i * 8 : i * 8 + 8] for i in range(3))
    out = torch.zeros(B, N, H * K, dtype=torch.float64)
    for s in range(B):
        score = torch.zeros(H, N, N, dtype=torch.float64)
        for h in range(H):
            part = slice(h * K, h * K + K)
            for n in range(N):
                for m in range(N):
                    score[h, n, m] = (q[s, n, part] / math.sqrt(K)) @ k[s, m, part]
        mixed = torch.stack([sum(layer.proj_l.weight[g, h] * score[h] for h in range(H)) for g in range(H)])
        weight = (mixed + layer.proj_l.bias[:, None, None]).softmax(-1)
        mixed = torch.stack([sum(layer.proj_w.weight[g, h] * weight[h] for h in range(H)) for g in range(H)])
        mixed = mixed + layer.proj_w.bias[:, None, None]
        for h in range(H):
            part = slice(h * K, h * K + K)
            out[s, :, part] = mixed[h] @ v[s, :, part]
    out = out @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x), out, rtol=0, atol=1e-12)


def test_the_class_token_leads_the_output_and_only_there():
    core, t = make().eval(), tokens()
    out = core(t, layers=(1, -1))
    assert out.values.shape == (2, 7, 16)
    assert (out.prefix, out.grid, out.mask) == (1, (6,), None)
    # Grid tokens go through the second stage untouched.
    torch.testing.assert_close(out.values[:, 1:], core.norm(out.layers[3][:, 1:]), rtol=0, atol=1e-6)
    assert torch.equal(out.layers[1][:, :1], core.cls_token.expand(2, -1, -1))
    first = core.blocks[0](t.values)
    torch.testing.assert_close(out.layers[1][:, 1:], first, rtol=0, atol=0)
    with pytest.raises(ValueError, match="layer 4 was asked for, expected 1..3"):
        core(t, layers=(4,))


def test_appended_padding_changes_nothing():
    """In both stages; the bias behind the softmax would give hidden tokens a weight again."""
    core, t = make().eval(), tokens()
    longer = torch.cat([t.values, 100 * torch.randn(2, 3, 16)], 1)
    mask = torch.arange(9).expand(2, -1) < 6
    out = core(Tokens(longer, (9,), mask=mask))
    torch.testing.assert_close(out.values[:, :7], core(t).values, rtol=0, atol=1e-5)
    assert torch.equal(out.mask, torch.arange(10).expand(2, -1) < 7)


def test_kept_tokens_are_the_masked_ones_reversed():
    core, t = make().eval(), tokens()
    keep = torch.tensor([[0, 2, 5], [1, 3, 4]])
    few = core(Tokens(t.values.gather(1, keep[..., None].expand(-1, -1, 16)), (6,), kept=keep))
    hidden = torch.zeros(2, 6, dtype=torch.bool).scatter(1, keep, True)
    all_of_them = core(Tokens(t.values, (6,), mask=hidden))
    torch.testing.assert_close(few.values[:, 0], all_of_them.values[:, 0], rtol=0, atol=1e-5)
    assert few.kept is keep


def test_permuting_tokens_permutes_outputs_and_leaves_the_class_token():
    core, t, order = make().eval(), tokens(), torch.tensor([3, 1, 5, 0, 2, 4])
    out, permuted = core(t).values, core(Tokens(t.values[:, order], (6,))).values
    torch.testing.assert_close(permuted[:, 1:], out[:, 1:][:, order], rtol=0, atol=1e-5)
    torch.testing.assert_close(permuted[:, 0], out[:, 0], rtol=0, atol=1e-5)


def test_without_gains_the_class_token_is_its_norm_alone():
    core = make()
    for name, p in core.named_parameters():
        if name.endswith("gamma"):
            p.data.zero_()
    wanted = core.norm(core.cls_token)[:, 0].expand(2, -1)
    for _ in range(2):
        torch.testing.assert_close(core(tokens()).values[:, 0], wanted, rtol=0, atol=0)


def test_starts_as_published():
    core = Cait(width=64, depth=2, num_heads=4, mlp_dim=256, class_depth=1, layer_scale=1e-6).bfloat16()
    assert core.blocks[0].ls1.gamma.dtype == torch.float32
    assert torch.equal(core.class_blocks[0].ls2.gamma, torch.full((64,), 1e-6))
    kernel = core.blocks[1].mlp.fc1.weight.float()
    assert kernel.std().item() == pytest.approx(0.02, rel=0.05)
    assert core.blocks[1].attn.proj_l.bias.abs().max() == 0
    out = core(Tokens(torch.randn(2, 5, 64).bfloat16(), (5,))).values
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_stochastic_depth_is_the_same_for_all_blocks_and_absent_in_class_attention():
    core = make(depth=4, drop_path=0.4)
    assert [b.drop_path for b in core.blocks] == [0.4] * 4
    assert [b.drop_path for b in core.class_blocks] == [0.0] * 2
    torch.manual_seed(0)
    block = CaitBlock(16, 2, 32, layer_scale=0.5, drop_path=0.4).train()
    block.mlp.fc2.weight.data.zero_()  # the attention branch alone
    block.mlp.fc2.bias.data.zero_()
    x = torch.randn(400, 4, 16)
    moved, branch = block(x) - x, block.eval()(x) - x
    still = (moved == 0).flatten(1).all(1)
    assert still.float().mean().item() == pytest.approx(0.4, abs=0.08)
    torch.testing.assert_close(moved[~still], branch[~still] / 0.6, rtol=0, atol=1e-5)
    core.eval()
    t = tokens()
    assert torch.equal(core(t).values, core(t).values)


def test_checkpointing_changes_neither_outputs_nor_gradients_which_reach_everything():
    core = make(dropout=0.2, drop_path=0.3).train().double()
    t = Tokens(torch.randn(8, 6, 16, dtype=torch.float64), (6,))
    grads = gradients(core, t)
    # These shift all scores of a query alike, which no softmax sees.
    still = {n for n, grad in grads.items() if grad.abs().max() < 1e-12}
    assert still == {f"blocks.{i}.attn.proj_l.bias" for i in range(3)} | {
        f"class_blocks.{i}.attn.k.bias" for i in range(2)
    }


def test_bfloat16_autocast_stays_close():
    core, t = make().eval(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        low = core(t, layers=(-1,))
    assert low.layers[3].dtype == torch.float32
    assert (low.values.float() - core(t).values).abs().max() < 0.05
    low.values.sum().backward()
    assert all(p.grad.isfinite().all() for p in core.parameters())


def test_mistakes_name_the_option():
    with pytest.raises(ValueError, match="class_depth is 0, expected at least 1"):
        make(class_depth=0)
    with pytest.raises(ValueError, match="drop_path is 1.0"):
        make(drop_path=1.0)
    with pytest.raises(ValueError, match="expected this core's width=16"):
        make()(Tokens(torch.zeros(1, 2, 8), (2,)))
    with pytest.raises(ValueError, match="led by 1 special ones, expected none.*class_token=False"):
        make()(Tokens(torch.zeros(1, 3, 16), (2,), prefix=1))
