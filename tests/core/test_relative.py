"""The relative bias: its index against the rule written out, its resampling against both peers, its use."""

import math

import pytest
import torch

from mmvit.core.relative import RelativeBias, places_of, relative_index, resample_table
from mmvit.core.vit import ViT
from mmvit.types import Tokens

GRID = (3, 4)


def small_vit(relative, **fields) -> ViT:
    torch.manual_seed(0)
    core = ViT(
        width=16,
        depth=3,
        num_heads=2,
        mlp_dim=32,
        key_bias=False,
        relative=relative,
        relative_grid=GRID,
        **fields,
    )
    for p in core.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return core.eval()


def batch(grid=GRID, prefix=1, **fields) -> Tokens:
    return Tokens(torch.randn(2, prefix + math.prod(grid), 16), grid, prefix, **fields)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_index_is_the_published_rule(prefix):
    h, w = GRID
    index = relative_index(GRID, prefix)
    rows = (2 * h - 1) * (2 * w - 1)
    for i in range(prefix + h * w):
        for j in range(prefix + h * w):
            a, b = i - prefix, j - prefix
            if a < 0 and b < 0:
                expected = rows + 2
            elif a < 0 or b < 0:
                expected = rows if a < 0 else rows + 1
            else:
                dy, dx = a // w - b // w + h - 1, a % w - b % w + w - 1
                expected = dy * (2 * w - 1) + dx
            assert index[i, j] == expected


def test_index_of_three_axes_tells_all_offsets_apart():
    index = relative_index((2, 3, 2), 0)
    places = [(t, y, x) for t in range(2) for y in range(3) for x in range(2)]
    seen: dict[int, tuple[int, ...]] = {}
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            offset = tuple(p - q for p, q in zip(a, b, strict=True))
            assert seen.setdefault(int(index[i, j]), offset) == offset
    assert len(seen) == 3 * 5 * 3


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # timm's
@pytest.mark.parametrize("new", [(5, 4), (2, 6), (7, 7)])
def test_resampled_as_timm_does(new):
    timm = pytest.importorskip("timm")
    table = torch.randn(5 * 7 + 3, 2)
    theirs = timm.layers.resize_rel_pos_bias_table(
        table,
        new_window_size=new,
        new_bias_shape=((2 * new[0] - 1) * (2 * new[1] - 1) + 3, 2),
        old_window_size=GRID,
    )
    assert (resample_table(table, GRID, new, "geometric") - theirs).abs().max() < 1e-5
    assert (resample_table(table, GRID, new, "bilinear") - theirs).abs().max() > 0.1


@pytest.mark.parametrize("new", [(5, 4), (2, 6), (7, 7)])
def test_resampled_as_transformers_does(new):
    """Their code reads a stored table as (width, height), so only square ones are comparable."""
    modeling = pytest.importorskip("transformers.models.beit.modeling_beit")
    from transformers import BeitConfig

    theirs = modeling.BeitRelativePositionBias(BeitConfig(image_size=32, patch_size=8, num_attention_heads=2))
    ours = RelativeBias((4, 4), 2)
    torch.nn.init.normal_(theirs.relative_position_bias_table)
    ours.table.data.copy_(theirs.relative_position_bias_table)
    with torch.no_grad():
        bias = ours(places_of(new, 1, None, torch.device("cpu")))
        assert (bias - theirs(new, interpolate_pos_encoding=True, dim_size=bias.shape[-1])).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["bilinear", "geometric"])
def test_resampling_keeps_special_rows_and_constants(mode):
    table = torch.full((38, 2), 0.5)
    table[-3:] = torch.tensor([[1.0], [2.0], [3.0]])
    new = resample_table(table, GRID, (6, 2), mode)
    assert new.shape == (11 * 3 + 3, 2)
    assert torch.equal(new[-3:], table[-3:])
    assert (new[:-3] - 0.5).abs().max() < 1e-6
    assert resample_table(table, GRID, GRID, mode) is table


@pytest.mark.parametrize("relative", ["block", "shared"])
def test_equals_attention_written_out(relative):
    core, tokens = small_vit(relative), batch()
    x = tokens.values
    index = relative_index(GRID, 1)
    for block in core.blocks:
        attn = block.attn
        table = (core.relative if relative == "shared" else block.relative).table
        q, k, v = (block.norm1(x) @ attn.qkv.weight.T).chunk(3, dim=-1)
        q, k, v = (y.view(2, 13, 2, 8).transpose(1, 2) for y in (q + attn.q_bias, k, v + attn.v_bias))
        scores = q @ k.transpose(-2, -1) / math.sqrt(8) + table[index].permute(2, 0, 1)
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 13, 16)
        x = x + attn.proj(out)
        x = x + block.mlp(block.norm2(x))
    assert (core(tokens).values - core.norm(x)).abs().max() < 1e-5


@pytest.mark.parametrize("relative", ["block", "shared"])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_one_token_equals_all_tokens(relative, dropped, masked):
    core = small_vit(relative)
    kept = torch.stack([torch.randperm(12)[:7] for _ in range(2)]) if dropped else None
    N = 8 if dropped else 13
    mask = torch.arange(N) < torch.tensor([[N], [N - 3]]) if masked else None
    tokens = Tokens(torch.randn(2, N, 16), GRID, 1, mask, kept)
    everything = core(tokens).values
    assert (core.forward_one(tokens, 0) - everything[:, 0]).abs().max() < 1e-5
    where = torch.tensor([2, 4])
    assert (core.forward_one(tokens, where) - everything[torch.arange(2), where]).abs().max() < 1e-5


@pytest.mark.parametrize("relative", ["block", "shared"])
def test_dropped_tokens_are_as_hidden_ones(relative):
    """Keeping a subset reads the rows of its own offsets: the same as hiding the other keys."""
    core, tokens = small_vit(relative), batch()
    kept = torch.stack([torch.randperm(12)[:5] for _ in range(2)])
    mask = torch.zeros(2, 13, dtype=torch.bool)
    mask[:, 0] = True
    mask.scatter_(1, kept + 1, True)
    hidden = core(Tokens(tokens.values, GRID, 1, mask)).values
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.int64), kept + 1], 1)[..., None].expand(-1, -1, 16)
    subset = core(Tokens(tokens.values.gather(1, rows), GRID, 1, None, kept)).values
    assert (subset - hidden.gather(1, rows)).abs().max() < 1e-5


def test_zero_tables_change_nothing():
    core, plain = small_vit("block"), small_vit(None)
    plain.load_state_dict({k: v for k, v in core.state_dict().items() if "relative" not in k})
    for block in core.blocks:
        block.relative.reset_parameters()
    tokens = batch()
    assert (core(tokens).values - plain(tokens).values).abs().max() < 1e-6


def test_every_row_of_the_table_learns_on_its_grid_and_on_another():
    core = small_vit("block")
    for grid in (GRID, (5, 6)):
        core.zero_grad()
        core(batch(grid)).values.square().sum().backward()
        for block in core.blocks:
            assert (block.relative.table.grad != 0).all()


@pytest.mark.parametrize("relative", ["block", "shared"])
def test_recomputing_blocks_gives_the_same_gradients(relative):
    core, tokens = small_vit(relative), batch()
    core(tokens).values.square().sum().backward()
    plain = {n: p.grad.clone() for n, p in core.named_parameters()}
    core.zero_grad()
    core.set_checkpointing()
    core(tokens).values.square().sum().backward()
    for name, p in core.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], rtol=1e-5, atol=1e-5)


def test_half_types_follow():
    core, tokens = small_vit("block"), batch()
    full = core(tokens).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(tokens).values
        out.float().square().mean().backward()
    assert (out - full).abs().max() < 0.2
    assert torch.isfinite(core.blocks[0].relative.table.grad).all()
    half = core.bfloat16()(Tokens(tokens.values.bfloat16(), GRID, 1)).values
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.3


def test_wrong_settings_say_so():
    with pytest.raises(ValueError, match="relative_resample is 'nearest'"):
        RelativeBias(GRID, 2, resample="nearest")
    with pytest.raises(ValueError, match="relative is 'all'"):
        small_vit("all")
    with pytest.raises(ValueError, match="causal=True"):
        small_vit("block", causal=True)
    with pytest.raises(ValueError, match="grids with as many axes"):
        resample_table(torch.zeros(38, 2), GRID, (12,), "bilinear")
