"""The core with shifted windows: against a loop over tokens and transformers' Swin; stages, errors."""

import math

import pytest
import torch
import transformers

from mmvit.core.swin import Merge, Swin, SwinBlock
from mmvit.core.window_attention import WindowAttention, seams
from mmvit.types import Tokens
from tests.core.recomputed import gradients
from tests.parity.case import randomise

SMALL = {"width": 12, "num_heads": (2, 4), "depths": (2, 2), "window": 4}


def make(**fields) -> Swin:
    torch.manual_seed(0)
    core = Swin(**{**SMALL, **fields})
    for p in core.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return core.eval()


def tokens(grid=(8, 12), B=2, width=12) -> Tokens:
    return Tokens(torch.randn(B, math.prod(grid), width), grid)


def slow(layer: WindowAttention, x: torch.Tensor, shift: int) -> torch.Tensor:
    """Window attention one token at a time, over those of its window that did not roll over an edge."""
    h, w, C = x.shape
    side, heads = min(layer.window, h, w), layer.num_heads
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in layer.qkv(x).chunk(3, dim=-1))
    out = torch.zeros_like(x)

    def window(n: int, size: int) -> tuple[int, bool]:
        rolled = (n - shift) % size
        return rolled // side, n < shift  # tokens rolled over the edge see only each other

    for i in range(h):
        for j in range(w):
            seen = [
                (a, b)
                for a in range(h)
                for b in range(w)
                if window(a, h) == window(i, h) and window(b, w) == window(j, w)
            ]
            for head in range(heads):
                scores = []
                for a, b in seen:
                    # On the rolled map, where windows are: offsets there are offsets here inside one region.
                    row = (i - a + layer.window - 1) * (2 * layer.window - 1) + (j - b + layer.window - 1)
                    score = (q[i, j, head] * k[a, b, head]).sum() / math.sqrt(C // heads)
                    scores.append(score + layer.table[row, head])
                weights = torch.stack(scores).softmax(0)
                mixed = sum(p * v[a, b, head] for p, (a, b) in zip(weights, seen, strict=True))
                out[i, j, head * (C // heads) : (head + 1) * (C // heads)] = mixed
    return layer.proj(out)


@pytest.mark.parametrize(("grid", "shift"), [((8, 4), 0), ((8, 12), 2), ((8, 8), 1), ((3, 3), 0)])
@torch.no_grad()
def test_window_attention_is_that_of_a_loop(grid, shift):
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, 4).double()
    torch.nn.init.normal_(layer.table)
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    mask = seams(grid, 4, shift, x.device) if shift else None
    out = layer(x, shift, mask)
    for b in range(2):
        torch.testing.assert_close(out[b], slow(layer, x[b], shift), rtol=0, atol=1e-12)


def test_without_the_seams_the_ends_of_the_map_see_each_other():
    torch.manual_seed(0)
    layer, x = WindowAttention(8, 2, 4), torch.randn(1, 8, 8, 8)
    other = x.clone()
    other[:, -1, -1] = torch.randn(8)
    mask = seams((8, 8), 4, 2, x.device)
    assert torch.equal(layer(x, 2, mask)[:, 0, 0], layer(other, 2, mask)[:, 0, 0])
    assert not torch.equal(layer(x, 2)[:, 0, 0], layer(other, 2)[:, 0, 0])


def test_information_passes_from_window_to_window_in_shifted_blocks_alone():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8, 8)
    other = x.clone()
    other[:, 3, 3] = torch.randn(8)
    fields = {"window": 4, "mlp_ratio": 2.0, "qkv_bias": True, "norm_eps": 1e-5, "activation": "gelu"}
    for shifted in (False, True):
        block = SwinBlock(8, 2, shifted=shifted, drop_path=0.0, dropout=0.0, **fields)
        changed = (block(x) != block(other)).any(-1)[0]
        wanted = torch.zeros(8, 8, dtype=torch.bool)
        wanted[2:6, 2:6] = True
        assert torch.equal(changed, wanted if shifted else wanted.roll((-2, -2), (0, 1)))


def test_merging_takes_four_neighbours_and_pads_odd_maps():
    torch.manual_seed(0)
    merge, x = Merge(4, 1e-5), torch.randn(1, 5, 6, 4)
    out = merge(x)
    assert out.shape == (1, 3, 3, 8)
    four = torch.cat([x[0, 2, 4], x[0, 3, 4], x[0, 2, 5], x[0, 3, 5]])
    torch.testing.assert_close(out[0, 1, 2], merge.reduction(merge.norm(four)), rtol=0, atol=1e-6)
    last = torch.cat([x[0, 4, 0], torch.zeros(4), x[0, 4, 1], torch.zeros(4)])
    torch.testing.assert_close(out[0, 2, 0], merge.reduction(merge.norm(last)), rtol=0, atol=1e-6)


def renamed(state: dict[str, torch.Tensor], depths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """transformers' Swin under our names."""
    out, number = {}, 0
    for t in ("weight", "bias"):
        out[f"norm_pre.{t}"], out[f"norm.{t}"] = state[f"embeddings.norm.{t}"], state[f"layernorm.{t}"]
    same = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for stage, depth in enumerate(depths):
        for block in range(depth):
            theirs, ours = f"encoder.layers.{stage}.blocks.{block}.", f"blocks.{number}."
            for t in ("weight", "bias"):
                parts = [state[f"{theirs}attention.{n}_proj.{t}"] for n in "qkvo"]
                out[f"{ours}attn.qkv.{t}"], out[f"{ours}attn.proj.{t}"] = torch.cat(parts[:3]), parts[3]
                out |= {f"{ours}{b}.{t}": state[f"{theirs}{a}.{t}"] for a, b in same.items()}
            table = "attention.relative_position_bias.relative_position_bias_table"
            out[f"{ours}attn.table"] = state[theirs + table]
            number += 1
        for name in ("norm.weight", "norm.bias", "reduction.weight") if stage + 1 < len(depths) else ():
            out[f"merges.{stage}.{name}"] = state[f"encoder.layers.{stage}.downsample.{name}"]
    return out


@pytest.mark.parametrize("size", [(64, 64), (44, 60)])  # the second does not divide into windows: padded
@torch.no_grad()
def test_the_core_is_the_one_of_transformers_swin(size):
    depths, heads = (2, 3), (2, 4)
    config = transformers.SwinConfig(
        image_size=size, embed_dim=12, depths=depths, num_heads=heads, window_size=4, layer_norm_eps=1e-5
    )
    peer = randomise(transformers.SwinModel(config, add_pooling_layer=False))
    core = Swin(width=12, num_heads=heads, depths=depths, window=4).eval()
    core.load_state_dict(renamed(peer.state_dict(), depths))
    x = torch.randn(2, 3, *size)
    values = peer.embeddings.patch_embeddings.projection(x).flatten(2).transpose(1, 2)
    ours, theirs = core(Tokens(values, (size[0] // 4, size[1] // 4))).values, peer(x).last_hidden_state
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-5


def test_stages_halve_the_grid_and_layers_are_before_the_norm():
    core, t = make(), tokens()
    encoded = core(t, layers=(1, -1, 2))
    assert encoded.grid == (4, 6)
    assert encoded.values.shape == (2, 24, 24)
    assert {n: tuple(v.shape) for n, v in encoded.layers.items()} == {
        1: (2, 96, 12),
        2: (2, 96, 12),
        4: (2, 24, 24),
    }
    assert torch.equal(core.norm(encoded.layers[4]), encoded.values)


def test_recomputation_changes_no_gradient():
    core = make(drop_path=0.2, dropout=0.1).train()
    assert all(g.any() for g in gradients(core, tokens((8, 8))).values())


def test_drop_path_rates_rise_to_the_last_block():
    assert [b.drop_path for b in make(drop_path=0.3).blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": (2,)}, "as many heads as depths"),
        ({"window": 1}, "window of at least 2"),
        ({"num_heads": (5, 4)}, "expected a multiple of num_heads=5"),
        ({"drop_path": 1.0}, "expected 0 <= drop_path < 1"),
        ({"activation": "step"}, "activation is 'step'"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_tokens_that_are_no_full_grid_are_refused():
    core, t = make(), tokens()
    mask = torch.ones(2, 96, dtype=torch.bool)
    with pytest.raises(ValueError, match="masked or dropped"):
        core(Tokens(t.values, t.grid, mask=mask))
    with pytest.raises(ValueError, match="prefix 1"):
        core(Tokens(t.values, t.grid, prefix=1))
    with pytest.raises(ValueError, match=r"a grid \(h,w\)"):
        core(Tokens(t.values, (96,)))
    with pytest.raises(ValueError, match="this core's width=12"):
        core(Tokens(torch.randn(2, 96, 8), (8, 12)))
    with pytest.raises(ValueError, match="layer 5"):
        core(t, layers=(5,))
