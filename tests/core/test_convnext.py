"""The convolutional core: response normalisation against a loop, stages, neighbourhoods, errors."""

import pytest
import torch

from mmvit.core.convnext import ConvNext, ConvNextBlock, ResponseNorm
from mmvit.types import Tokens
from tests.core.recomputed import gradients

SMALL = {"widths": (8, 12, 16), "depths": (1, 2, 1), "kernel": 3}


def make(**fields) -> ConvNext:
    torch.manual_seed(0)
    core = ConvNext(**{**SMALL, **fields})
    for p in core.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return core


def tokens(grid=(8, 12), B=2) -> Tokens:
    return Tokens(torch.randn(B, grid[0] * grid[1], 8), grid)


def test_response_norm_is_that_of_a_loop():
    layer = ResponseNorm(5)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 4, 5)
    out = layer(x)
    for b in range(2):
        norms = [x[b, :, :, c].square().sum().sqrt() for c in range(5)]
        mean = sum(norms) / 5
        for c in range(5):
            n = norms[c] / (mean + 1e-6)
            wanted = x[b, :, :, c] + layer.weight[c] * x[b, :, :, c] * n + layer.bias[c]
            torch.testing.assert_close(out[b, :, :, c], wanted, rtol=0, atol=1e-6)


def test_response_norm_starts_as_identity_and_survives_empty_maps():
    layer, x = ResponseNorm(5), torch.randn(2, 3, 4, 5)
    assert torch.equal(layer(x), x)
    zero = torch.zeros(1, 2, 2, 5, requires_grad=True)
    torch.nn.init.ones_(layer.weight)
    layer(zero).sum().backward()
    assert zero.grad.isfinite().all()
    assert layer(torch.full((1, 64, 64, 5), 200.0, dtype=torch.float16)).isfinite().all()


def test_a_block_is_its_formula():
    torch.manual_seed(0)
    block = ConvNextBlock(6, kernel=3, norm_eps=1e-6, activation="gelu", drop_path=0.0)
    x = torch.randn(2, 5, 4, 6)
    y = block.conv(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
    y = block.fc2(block.response(torch.nn.functional.gelu(block.fc1(block.norm(y)))))
    torch.testing.assert_close(block(x), x + y, rtol=0, atol=1e-6)


def test_stages_halve_the_grid_and_layers_are_before_any_norm():
    core, t = make().eval(), tokens()
    out = core(t, layers=(1, 2, 3, -1))
    assert out.grid == (2, 3)
    assert out.prefix == 0
    shapes = [tuple(out.layers[n].shape[1:]) for n in (1, 2, 3, 4)]
    assert shapes == [(96, 8), (24, 12), (24, 12), (6, 16)]
    assert torch.equal(out.layers[4], out.values)
    assert core(tokens((9, 7))).grid == (2, 1)  # an odd last line is dropped


def test_a_far_token_is_seen_through_the_response_norm_only():
    """Convolutions read neighbours; with gamma at zero a distant change does not arrive."""
    core = make(widths=(8,), depths=(1,)).eval()
    t = tokens((8, 8))
    changed = t.values.clone()
    changed[:, 0] = torch.randn(2, 8)
    for gamma, moves in ((0.0, False), (1.0, True)):
        torch.nn.init.constant_(core.blocks[0].response.weight, gamma)
        a, b = core(t).values, core(Tokens(changed, (8, 8))).values
        assert bool((a - b)[:, -1].abs().max() > 1e-6) is moves
        assert (a - b)[:, 1].abs().max() > 1e-3


def test_checkpointing_changes_nothing_and_every_parameter_learns():
    core, t = make(drop_path=0.3).train(), tokens(B=8)
    for name, grad in gradients(core, t).items():
        assert grad.abs().max() > 0, name


def test_drop_path_is_linear_over_all_blocks():
    core = make(drop_path=0.3)
    assert [b.drop_path for b in core.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    t = tokens()
    assert torch.equal(core.eval()(t).values, make().train()(t).values)
    assert not torch.equal(core.train()(t).values, core.eval()(t).values)


def test_half_types_stay_close():
    torch.manual_seed(0)
    core, t = ConvNext(**SMALL), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        low = core(t).values
    low.float().sum().backward()
    assert core.blocks[0].fc1.weight.grad.dtype == torch.float32
    assert (low - core(t).values).abs().max() < 0.05
    assert core.bfloat16()(Tokens(t.values.bfloat16(), t.grid)).values.dtype == torch.bfloat16


def test_mistakes_name_the_option():
    core, t = make(), tokens()
    with pytest.raises(ValueError, match="tokens are masked or dropped"):
        core(Tokens(t.values[:, :5], t.grid, kept=torch.arange(5).expand(2, -1)))
    with pytest.raises(ValueError, match="set class_token=False, registers=0"):
        core(Tokens(torch.randn(2, 97, 8), t.grid, prefix=1))
    with pytest.raises(ValueError, match="of at least 4x4"):
        core(tokens((3, 8)))
    with pytest.raises(ValueError, match="expected this core's width=8"):
        core(Tokens(torch.zeros(1, 96, 4), (8, 12)))
    with pytest.raises(ValueError, match="expected as many widths"):
        make(depths=(1, 2))
    with pytest.raises(ValueError, match="drop_path is 1.5"):
        make(drop_path=1.5)
    with pytest.raises(ValueError, match="activation is 'selu'"):
        make(activation="selu")
