"""The focal sums against torchvision's elementwise loss, in value and gradient, and known numbers."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from mmvit.losses import focal as module
from mmvit.losses.focal import focal, focal_sums


def draw(B=3, N=5, Q=4, K=6, dtype=torch.float64, spread=4.0):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(B, N, Q, generator=g, dtype=dtype) * spread
    rows = torch.randperm(B * N, generator=g)[:K]
    wanted = (torch.rand(K, Q, generator=g) > 0.5).to(dtype)
    return logits, rows // N, rows % N, wanted


def slow(logits, picture, token, wanted, query_mask, token_mask, alpha, gamma):
    """Torchvision's loss of a dense target, masked."""
    dense = torch.zeros_like(logits)
    dense[picture, token] = wanted
    values = sigmoid_focal_loss(logits, dense, alpha, gamma)
    values = values * query_mask[:, None] * token_mask[..., None]
    return values.sum(dim=(1, 2))


@pytest.mark.parametrize("tile", [1, 40, 1 << 20])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.3, 2.0), (0.25, 1.5), (0.5, 0.0)])
def test_values_and_gradients_equal_torchvision(monkeypatch, tile, alpha, gamma):
    monkeypatch.setattr(module, "TILE_CPU", tile)
    logits, picture, token, wanted = draw()
    logits[0, 0, 0], logits[1, 1, 1] = 60.0, -60.0
    query_mask = torch.ones(3, 4, dtype=torch.bool)
    token_mask = torch.ones(3, 5, dtype=torch.bool)
    query_mask[1, 3], token_mask[2, 4] = False, False
    keep = token_mask[picture, token]  # only tokens that count can have been matched
    picture, token, wanted = picture[keep], token[keep], wanted[keep]
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = []
    for call in (focal_sums, slow):
        x = logits.clone().requires_grad_()
        sums = call(x, picture, token, wanted, query_mask, token_mask, alpha, gamma)
        (sums * weights).sum().backward()
        found.append((sums.detach(), x.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-12)


def test_soft_targets_and_the_derivative():
    logits, picture, token, wanted = draw(spread=1.0)
    wanted = wanted * 0.7 + 0.1
    assert torch.autograd.gradcheck(
        lambda x: focal_sums(x, picture, token, wanted), logits.clone().requires_grad_()
    )
    one = torch.tensor([[[0.4]]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.int64)
    positive, negative = focal(one, 0.3, 2.0)
    half = focal_sums(one, zero, zero, torch.full((1, 1), 0.25))
    assert half.item() == pytest.approx(0.25 * positive.item() + 0.75 * negative.item(), rel=1e-12)


def test_known_numbers():
    """Every probability 0.01, as at the start: 0.041, 0.162, 0.253 before dividing; one positive 1.354."""
    start = math.log(0.01 / 0.99)
    none = torch.zeros(0, dtype=torch.int64)
    for tokens, want in ((576, 0.041), (2304, 0.162), (3600, 0.253)):
        sums = focal_sums(torch.full((1, tokens, 100), start), none, none, torch.zeros(0, 100))
        assert sums.item() == pytest.approx(want, abs=5e-4)
    assert focal(torch.tensor(start), 0.3, 2.0)[0].item() == pytest.approx(1.354, abs=5e-4)


def test_masked_numbers_are_never_read():
    logits, picture, token, wanted = draw()
    token_mask = torch.ones(3, 5, dtype=torch.bool)
    query_mask = torch.ones(3, 4, dtype=torch.bool)
    open_row = next((b, n) for b in range(3) for n in range(5) if not ((picture == b) & (token == n)).any())
    token_mask[open_row] = False
    query_mask[:, 2] = False
    logits[open_row] = math.nan
    logits[..., 2] = math.inf
    x = logits.requires_grad_()
    sums = focal_sums(x, picture, token, wanted, query_mask, token_mask)
    sums.sum().backward()
    assert torch.isfinite(sums).all()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[open_row].any()
    assert not x.grad[..., 2].any()


def test_the_backward_can_run_twice():
    logits, picture, token, wanted = draw()
    x = logits.requires_grad_()
    total = focal_sums(x, picture, token, wanted).sum()
    (first,) = torch.autograd.grad(total, x, retain_graph=True)
    (second,) = torch.autograd.grad(3 * total, x)
    torch.testing.assert_close(second, 3 * first, rtol=1e-12, atol=0)
