"""Poolings, projection and classifier: known answers, masks, initial values."""

import pytest
import torch

from mmvit.heads.classify import Classify
from mmvit.heads.pool import build_pool
from mmvit.heads.project import Head
from mmvit.types import Encoded

MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


def encoded(mask=None, prefix=1) -> Encoded:
    return Encoded(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), (4,), prefix, mask)


@pytest.mark.parametrize(
    ("name", "mask", "rows"),
    [
        ("cls", MASK, (0, 0)),
        ("last", MASK, (4, 4)),
        ("eos", MASK, (4, 2)),
        ("eos", None, (4, 4)),
        ("eos", MASK.flip(1), (4, 4)),  # padding in front
    ],
)
def test_one_token(name, mask, rows):
    e = encoded(mask)
    assert torch.equal(
        build_pool(name, 8, 2, 16)(e), torch.stack([e.values[0, rows[0]], e.values[1, rows[1]]])
    )


def test_mean_takes_real_grid_tokens_only():
    e = encoded(MASK)
    out = build_pool("mean", 8, 2, 16)(e)
    torch.testing.assert_close(out[0], e.values[0, 1:].mean(0))
    torch.testing.assert_close(out[1], e.values[1, 1:3].mean(0))
    e.values[1, 3:] = torch.nan  # what padding holds does not matter
    assert torch.equal(build_pool("mean", 8, 2, 16)(e), out)
    everything = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(
        build_pool("mean", 8, 2, 16)(encoded(everything)), build_pool("mean", 8, 2, 16)(encoded())
    )


def test_the_norm_of_a_mean_is_not_the_mean():
    pool = build_pool("mean_norm", 8, 2, 16)
    e = encoded()
    torch.testing.assert_close(pool(e), pool.norm(e.values[:, 1:].mean(1)))
    assert {name for name, _ in pool.named_parameters()} == {"norm.weight", "norm.bias"}


def test_map_ignores_padding_and_order():
    torch.manual_seed(0)
    pool = build_pool("map", 8, 2, 16)
    names = {"latent", "q", "kv", "proj", "norm", "mlp"}
    assert {name.split(".")[0] for name, _ in pool.named_parameters()} == names
    D, M = 8, 16
    assert sum(p.numel() for p in pool.parameters()) == D + 4 * D * D + 4 * D + 2 * D + 2 * D * M + M + D
    e = encoded(MASK)
    out = pool(e)
    short = Encoded(e.values[1:, :3], (2,), 1)
    torch.testing.assert_close(out[1:], pool(short), rtol=0, atol=1e-6)
    shuffled = Encoded(e.values[:1, [3, 1, 0, 4, 2]], (4,), 1)
    torch.testing.assert_close(out[:1], pool(shuffled), rtol=0, atol=1e-6)


def test_map_query_starts_with_its_own_limit():
    torch.manual_seed(0)
    pool = build_pool("map", 768, 12, 64)
    assert 0.98 * (6 / 769) ** 0.5 < pool.latent.abs().max().item() <= (6 / 769) ** 0.5
    for part in (pool.q.weight, *pool.kv.weight.chunk(2)):
        assert 0.99 * (6 / 1536) ** 0.5 < part.abs().max().item() <= (6 / 1536) ** 0.5


def test_unknown_pool_lists_the_known():
    with pytest.raises(
        ValueError, match="pool is 'max', expected one of cls, last, eos, mean, mean_norm, .*map, seq"
    ):
        build_pool("max", 8, 2, 16)
    with pytest.raises(ValueError, match="multiple of num_heads=3"):
        build_pool("map", 8, 3, 16)


def test_head_centres_projects_and_stays_float32():
    torch.manual_seed(0)
    head = Head(8, 4, center=True)
    head.mean.copy_(torch.randn(8))
    x = torch.randn(3, 8)
    torch.testing.assert_close(head(x), (x - head.mean) @ head.weight.T + head.bias)
    with torch.autocast("cpu", torch.bfloat16):
        inside = head(x)
    assert torch.equal(inside, head(x))
    assert head(x.bfloat16()).dtype == torch.float32
    assert set(head.state_dict()) == {"weight", "bias", "mean"}


def test_head_without_a_map_is_the_identity():
    head, x = Head(8, None), torch.randn(3, 8)
    assert torch.equal(head(x), x)
    assert head.embed_dim == 8
    assert not head.state_dict()
    assert Head(8, 4, bias=False).bias is None


def test_head_starts_away_from_zero():
    torch.manual_seed(0)
    head = Head(512, 512)
    assert head.weight.std().item() == pytest.approx(512**-0.5, rel=0.01)
    assert not head.bias.any()


def test_classifier_starts_at_its_constant():
    layer = Classify(8, 5, bias_init=-6.9)
    assert torch.equal(layer(torch.randn(3, 8)), torch.full((3, 5), -6.9))
