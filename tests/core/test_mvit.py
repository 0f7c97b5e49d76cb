"""The staged attention core: relative positions against loops, poolings, stages, invariances, errors."""

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from mmvit.core.axis_positions import AxisPositions, relative_rows
from mmvit.core.mvit import Mvit
from mmvit.core.pooling_attention import GridPool, PoolingAttention, pooled
from mmvit.types import Tokens
from tests.core.recomputed import gradients

V1 = {"q_pool_always": False, "relative": False, "residual_pool": False, "widen": "mlp"}
FLAT = {
    "width": 8,
    "num_heads": 1,
    "depths": (1, 2, 1),
    "grid": (8, 8),
    "q_stride": (2, 2),
    "kv_stride": (4, 4),
}
DEEP = FLAT | {"grid": (2, 8, 8), "q_stride": (1, 2, 2), "kv_stride": (1, 4, 4)}


def make(**fields) -> Mvit:
    torch.manual_seed(0)
    core = Mvit(**{**FLAT, **fields})
    for p in core.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return core


def tokens(grid=(8, 8), prefix=1, B=2) -> Tokens:
    return Tokens(torch.randn(B, prefix + math.prod(grid), 8), grid, prefix)


def distance(i: int, j: int, q: int, k: int) -> int:
    """The row of a pair as the paper's code means it, in exact arithmetic."""
    up, down = max(Fraction(k, q), 1), max(Fraction(q, k), 1)
    return int(i * up - j * down + (k - 1) * down)


@pytest.mark.parametrize(("q", "k"), [(4, 4), (8, 4), (8, 1), (3, 5), (7, 2), (78, 10), (39, 10), (1, 1)])
def test_rows_are_those_of_a_loop(q, k):
    table = torch.randn(2 * max(q, k) - 1, 3)
    rows = relative_rows(table, q, k)
    assert rows.shape == (q, k, 3)
    for i, j in product(range(q), range(k)):
        assert torch.equal(rows[i, j], table[distance(i, j, q, k)])


def test_a_table_of_another_length_is_resampled_linearly():
    table = torch.arange(7.0)[:, None].repeat(1, 2)
    wanted = F.interpolate(table.T[None], size=15, mode="linear")[0].T
    rows = relative_rows(table, 8, 8)
    assert torch.equal(rows[:, 7], wanted[7 - 7 : 15 - 7])
    assert torch.equal(relative_rows(table.bfloat16(), 8, 8), wanted.bfloat16()[_all_rows(8)])


def _all_rows(n: int) -> torch.Tensor:
    return torch.arange(n)[:, None] - torch.arange(n) + n - 1


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("q_grid", "k_grid"), [((4, 6), (2, 3)), ((3, 4, 2), (3, 2, 2)), ((2, 2), (4, 4))])
def test_extra_channels_are_the_relative_logits(q_grid, k_grid, prefix):
    torch.manual_seed(0)
    d, scale = 5, 0.3
    positions = AxisPositions([max(a, b) for a, b in zip(q_grid, k_grid, strict=True)], d)
    for table in positions.parameters():
        torch.nn.init.normal_(table)
    q = torch.randn(2, 3, prefix + math.prod(q_grid), d)
    k = torch.randn(2, 3, prefix + math.prod(k_grid), d)
    wide_q, wide_k = positions(q, k, q_grid, k_grid, scale)
    logits = scale * wide_q @ wide_k.transpose(-2, -1)
    wanted = scale * q @ k.transpose(-2, -1)
    queries, keys = (list(product(*map(range, grid))) for grid in (q_grid, k_grid))
    for (n, a), (m, b) in product(enumerate(queries), enumerate(keys)):
        for axis, table in enumerate(positions.parameters()):
            row = table[distance(a[axis], b[axis], q_grid[axis], k_grid[axis])]
            wanted[:, :, prefix + n, prefix + m] += q[:, :, prefix + n] @ row
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_pooling_leaves_special_tokens_to_the_norm_alone():
    pool = GridPool(4, 3, (2, 2), 1e-6)
    x = torch.randn(2, 3, 2 + 35, 4)
    out = pool(x, (5, 7))
    assert out.shape == (2, 3, 2 + 12, 4)
    assert pooled((5, 7), (2, 2)) == (3, 4)
    torch.testing.assert_close(out[:, :, :2], pool.norm(x[:, :, :2]), rtol=0, atol=1e-6)
    maps = x[:, 1, 2:].transpose(1, 2).reshape(2, 4, 5, 7)
    wanted = pool.norm(pool.conv(maps).flatten(2).transpose(1, 2))
    torch.testing.assert_close(out[:, 1, 2:], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("whole", [False, True])
def test_attention_equals_its_formula(prefix, whole):
    torch.manual_seed(0)
    options = {"kernel": 3, "q_stride": (2, 2), "kv_stride": (4, 4), "q_pool": True, "norm_eps": 1e-6}
    flags = {"relative": False, "residual_pool": True, "residual_pool_prefix": whole}
    layer = PoolingAttention(8, 12, 2, grid=(8, 8), **options, **flags)
    x = torch.randn(2, prefix + 64, 8)
    q, k, v = layer.qkv(x).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
    q, k, v = layer.pool_q(q, (8, 8)), layer.pool_k(k, (8, 8)), layer.pool_v(v, (8, 8))
    y = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1) @ v
    start = 0 if whole else prefix
    y = torch.cat([y[:, :, :start], (y + q)[:, :, start:]], 2)
    wanted = layer.proj(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, (8, 8)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [{}, V1])
@pytest.mark.parametrize("shape", [FLAT, DEEP])
@pytest.mark.parametrize("prefix", [0, 1])
def test_stages_shrink_the_grid_and_double_the_width(version, shape, prefix):
    core, grid = make(**shape, **version), shape["grid"]
    t = tokens(grid, prefix)
    out = core(t, layers=(1, 2, 3, -1))
    assert out.values.shape[-1] == 32
    assert out.grid == (*grid[:-2], 2, 2)
    assert out.prefix == prefix
    time = math.prod(grid[:-2])
    widths = (16, 16, 32, 32) if version else (8, 16, 16, 32)
    counts = [prefix + time * n for n in (64, 16, 16, 4)]
    assert [tuple(out.layers[n].shape[1:]) for n in (1, 2, 3, 4)] == list(zip(counts, widths, strict=True))
    torch.testing.assert_close(core.norm(out.layers[4]), out.values, rtol=0, atol=0)


@pytest.mark.parametrize("version", [{}, V1])
def test_other_and_odd_grids_run(version):
    out = make(**version).eval()(tokens((7, 10)))
    assert out.grid == (2, 3)
    assert out.values.shape == (2, 1 + 6, 32)


def test_special_tokens_are_a_set():
    """Two registers in the other order: the same outputs in the other order, since nothing numbers them."""
    core, t = make().eval(), tokens(prefix=2)
    swapped = t.values[:, [1, 0, *range(2, 66)]]
    a, b = core(t).values, core(Tokens(swapped, (8, 8), 2)).values
    torch.testing.assert_close(a[:, 2:], b[:, 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(a[:, [1, 0]], b[:, :2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [{}, V1])
def test_one_time_equals_the_flat_grid(version):
    """Three axes at t = 1 read only the middle slices of their kernels: outputs of the flat core."""
    flat, deep = make(**version).eval(), make(**DEEP | {"grid": (1, 8, 8)}, **version).eval()
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        state[name] = torch.randn_like(state[name]) if value.ndim == 4 else value
        if value.ndim == 4:
            state[name][:, :, 1] = value
    deep.load_state_dict(
        {n: v if not n.endswith("rel_pos.t") else torch.zeros_like(v) for n, v in state.items()}
    )
    t = tokens()
    out = deep(Tokens(t.values, (1, 8, 8), 1)).values
    torch.testing.assert_close(out, flat(t).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [{}, V1])
@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_checkpointing_changes_nothing_and_every_parameter_learns(version, shape):
    core = make(**shape, **version, drop_path=0.3, dropout=0.1).train()
    t = tokens(shape["grid"], B=6)
    for name, grad in gradients(core, t).items():
        assert grad.abs().max() > 0, name


def test_drop_path_is_linear_over_all_blocks():
    core = make(drop_path=0.3)
    assert [b.drop_path for b in core.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    t = tokens()
    torch.testing.assert_close(core.eval()(t).values, make().train()(t).values, rtol=0, atol=0)
    assert not torch.equal(core.train()(t).values, core.eval()(t).values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_stay_close(dtype):
    torch.manual_seed(0)
    core, t = Mvit(**DEEP).eval(), tokens(DEEP["grid"])
    low = core.to(dtype)(Tokens(t.values.to(dtype), t.grid, 1)).values
    assert low.dtype == dtype
    assert (low - core.float()(t).values).abs().max() < (0.1 if dtype == torch.bfloat16 else 1e-4)


def test_autocast_and_its_gradients():
    torch.manual_seed(0)
    core, t = Mvit(**FLAT), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        low = core(t).values
    low.float().sum().backward()
    assert core.blocks[1].attn.rel_pos.h.grad.dtype == torch.float32
    assert (low - core(t).values).abs().max() < 0.1


def test_mistakes_name_the_option():
    core, t = make(), tokens()
    with pytest.raises(ValueError, match="tokens are masked or dropped, expected the whole grid"):
        core(Tokens(t.values, t.grid, 1, mask=torch.ones(2, 65, dtype=torch.bool)))
    with pytest.raises(ValueError, match="put mask tokens in the holes"):
        core(Tokens(t.values[:, :33], t.grid, 1, kept=torch.arange(32).expand(2, -1)))
    with pytest.raises(ValueError, match="65 tokens with prefix 0"):
        core(Tokens(t.values, t.grid))
    with pytest.raises(ValueError, match="expected a full grid of 2 axes"):
        core(Tokens(t.values, (1, 8, 8), 1))
    with pytest.raises(ValueError, match="layer 5 was asked for"):
        core(t, layers=(5,))
    with pytest.raises(ValueError, match="expected this core's width=8"):
        core(Tokens(torch.zeros(1, 65, 4), (8, 8), 1))
    with pytest.raises(ValueError, match="expected strides of 1 or even and an odd kernel"):
        make(q_stride=(3, 3))
    with pytest.raises(ValueError, match="expected the same two axes"):
        make(kv_stride=(1, 4, 4))
    with pytest.raises(ValueError, match="widen is 'both'"):
        make(widen="both")
    with pytest.raises(ValueError, match="drop_path is 1.0"):
        make(drop_path=1.0)
    with pytest.raises(ValueError, match="width is 8, expected a multiple of num_heads=3"):
        make(num_heads=3)
    with pytest.raises(ValueError, match="expected two axes"):
        AxisPositions((4,), 8)


def test_half_gradients_stay_close():
    """In half types on a CPU attention has another backward, and kernels of short axes need care."""
    torch.manual_seed(0)
    core, t = Mvit(**DEEP), tokens(DEEP["grid"])
    weight, found = torch.randn(2, 9, 32), []
    for dtype in (torch.float32, torch.bfloat16):
        core.to(dtype).zero_grad()
        (core(Tokens(t.values.to(dtype), t.grid, 1)).values * weight).sum().backward()
        found.append(torch.cat([p.grad.float().flatten() for p in core.parameters()]))
    assert F.cosine_similarity(found[0], found[1], dim=0) > 0.99
