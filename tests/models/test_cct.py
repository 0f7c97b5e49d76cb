"""CCT: counts, tokens a size, sequence pooling, positions, weights under the repository's names."""

import math

import pytest
import torch

import mmvit
from mmvit.heads.pool import SeqPool, build_pool
from mmvit.hub.convert.from_cct import from_cct
from mmvit.models.presets import preset
from mmvit.types import Encoded
from tests.parity.case import randomise
from tests.parity.slow_cct import SlowCct

# preset: millions of parameters with the classes of the repository's model of that name, tokens along a side
PUBLISHED = {
    "cct_2_3x2_32": (10, 0.284, 8),
    "cct_4_3x2_32": (10, 0.482, 8),
    "cct_6_3x1_32": (10, 3.234, 16),
    "cct_6_3x2_32": (10, 3.327, 8),
    "cct_7_3x1_32": (10, 3.760, 16),
    "cct_7_3x2_32": (10, 3.853, 8),
    "cct_7_7x2_224": (102, 4.574, 14),
    "cct_14_7x2_224": (1000, 22.367, 14),
    "cct_14_7x2_384": (1000, 22.513, 24),
}
TINY = {"depth": 2, "width": 32, "num_heads": 2, "mlp_dim": 64, "channels": 8}


def make(name: str = "cct_2_3x2_32", **fields):
    torch.manual_seed(0)
    return randomise(mmvit.create_model(name, num_classes=5, **{**TINY, **fields}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_tokens(name):
    classes, millions, side = PUBLISHED[name]
    with torch.device("meta"):
        model = mmvit.create_model(name, num_classes=classes)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions
        assert model.tower.grid == (side, side)
        pixels = torch.zeros(2, 3, *model.tower.config.image_size)
        assert model.forward_tokens(pixels).values.shape == (2, side**2, model.width)


def test_fixed_positions_take_the_place_of_the_table():
    plain, sine = (mmvit.create_model(n) for n in ("cct_7_3x1_32", "cct_7_3x1_32_sine"))
    count = [sum(p.numel() for p in m.parameters()) for m in (plain, sine)]
    assert count[0] - count[1] == 256 * 256
    table = sine.pos_embed
    assert table.shape == plain.pos_embed.shape == (1, 256, 256)
    for p, i in ((0, 0), (0, 1), (7, 4), (200, 33), (255, 255)):
        angle = p / 10_000 ** (2 * (i // 2) / 256)
        wanted = math.cos(angle) if i % 2 else math.sin(angle)
        assert table[0, p, i].item() == pytest.approx(wanted, abs=1e-6)
    # Of another grid they are computed, not resampled: row 1 of the picture starts at another position.
    grid = sine.tokens(torch.zeros(1, 3, 32, 16)).values - sine.patch_embed(torch.zeros(1, 3, 32, 16)).values
    assert grid.shape == (1, 128, 256)
    torch.testing.assert_close(grid, table[:, :128], rtol=0, atol=1e-6)


def test_starts_as_published():
    torch.manual_seed(0)
    tower = mmvit.create_model("cct_7_3x1_32")
    assert tower.pos_embed.std().item() == pytest.approx(0.2, rel=0.02)
    kernel = tower.patch_embed.convs[0].weight
    assert kernel.shape == (256, 3, 3, 3)
    assert kernel.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.05)
    assert tower.core.blocks[0].attn.qkv.bias is None
    assert tower.core.blocks[0].attn.proj.bias is not None


def test_sequence_pooling_is_a_weighted_mean():
    torch.manual_seed(0)
    pool = build_pool("seq", 8, 0, 0)
    assert isinstance(pool, SeqPool)
    pool.attention.weight.data.normal_()
    x = torch.randn(3, 5, 8)
    weights = pool.weights(Encoded(x, (5,)))
    assert weights.shape == (3, 5)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    wanted = sum(weights[:, n, None] * x[:, n] for n in range(5))
    torch.testing.assert_close(pool(Encoded(x, (5,))), wanted)
    mask = torch.arange(5).expand(3, -1) < 3
    torch.testing.assert_close(pool(Encoded(x, (5,), mask=mask)), pool(Encoded(x[:, :3], (3,))))
    pool.attention.weight.data.zero_()  # equal scores
    torch.testing.assert_close(pool(Encoded(x, (5,))), x.mean(1))
    torch.testing.assert_close(pool.weights(Encoded(x, (5,))), torch.full((3, 5), 0.2))


def test_every_parameter_learns_and_recomputation_changes_nothing():
    model = make(drop_path=0.3, dropout=0.1).train()
    x = torch.randn(4, 3, 32, 32)
    results = []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).logsumexp(1).sum().backward()
        results.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])
    # Equal to all scores of the pooling, its bias cannot matter.
    still = {n for n, g in results[0].items() if g.abs().max() < 1e-6}
    assert still <= {"tower.pool.attention.bias"}


def test_bfloat16_stays_close_and_dropped_tokens_are_absent():
    model = make().eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    assert (low.float() - model(x)).abs().max() < 0.1
    keep = torch.stack([torch.randperm(64)[:20] for _ in range(4)])
    kept = model.forward_tokens(x, keep=keep)
    assert kept.values.shape == (4, 20, 32)
    everything = torch.stack([torch.randperm(64) for _ in range(4)])
    shuffled = model.tower.pool(model.forward_tokens(x, keep=everything))
    torch.testing.assert_close(shuffled, model.features(x), rtol=0, atol=1e-5)


def slow(**fields) -> SlowCct:
    return randomise(SlowCct(**{"depth": 2, "heads": 2, "ratio": 1, "width": 128} | fields))


@pytest.mark.parametrize("sine", [False, True])
def test_weights_of_the_repository(sine):
    """Names with "module." before them, a head kept or not, another size; the fixed table is not read."""
    name = "cct_2_3x2_32_sine" if sine else "cct_2_3x2_32"
    peer = slow(kernel=3, convolutions=2, side=32, classes=7, sine=sine).double()
    state = {f"module.{k}": v for k, v in peer.repository_state().items()}
    if sine:
        state["module.classifier.positional_emb"] = torch.full((1, 64, 128), torch.nan)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tower = from_cct(state, name, head=False).double()
    pooled = peer.pool(peer.forward_tokens(x))
    atol = 1e-6 if sine else 1e-11  # our fixed table is kept in float32
    torch.testing.assert_close(tower.features(x), pooled, rtol=0, atol=atol)
    assert tower.config == preset(name)
    left = {"module.classifier.fc.weight", "module.classifier.fc.bias"}
    left = {n.removeprefix("module.") for n in left} | ({"classifier.positional_emb"} if sine else set())
    assert set(tower.report.left_out) == left
    model = from_cct(state, name, head=True, image_size=48).double()
    assert model.head.out_features == 7
    assert model.tower.pos_embed.shape == (1, 144, 128)
    peer.goal = (12, 12)
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    wanted = peer.classify(peer.pool(peer.forward_tokens(x)))
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "shift"),
    [
        ({"norm": "pre"}, 1e-2),
        ({"norm_eps": 1e-3}, 1e-4),
        ({"activation": "gelu_tanh"}, 1e-5),
        ({"num_heads": 4}, 1e-3),
        ({"pool": "mean"}, 1e-3),
        ({"stride": (2, 2), "image_size": 61}, 1e-3),
    ],
)
def test_the_comparison_would_notice(change, shift):
    peer = slow(kernel=3, convolutions=2, side=32)
    state = peer.repository_state()
    if "pool" in change:
        state = {k: v for k, v in state.items() if "attention_pool" not in k}
    wrong = from_cct(state, "cct_2_3x2_32", head=False, **change)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (wrong.features(x) - peer.pool(peer.forward_tokens(x))).abs().max() > shift


def test_weights_of_another_model_are_refused():
    state = slow(kernel=3, convolutions=2, side=32).repository_state()
    with pytest.raises(ValueError, match="preset is 'vit_mu_patch16_224', expected the cct_"):
        from_cct(state, "vit_mu_patch16_224")
    with pytest.raises(ValueError, match="cct_4_3x2_32: .* tensors missing"):
        from_cct(state, "cct_4_3x2_32")
    with pytest.raises(ValueError, match="have no place in our model: classifier.class_emb"):
        from_cct({**state, "classifier.class_emb": torch.zeros(1, 1, 128)}, "cct_2_3x2_32")
