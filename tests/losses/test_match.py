"""The assignment against all permutations; padding, more targets than tokens, numbers that are not finite."""

import itertools
import math

import pytest
import torch

from mmvit.boxes import to_xyxy
from mmvit.losses import Targets
from mmvit.losses.match import TILE_CPU, cost, match


def draw(seed=0, B=2, N=6, Q=4, M=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, N, Q, generator=g, dtype=dtype) * 2
    boxes = torch.rand(B, N, 4, generator=g, dtype=dtype)
    labels = (torch.rand(B, M, Q, generator=g) > 0.6).to(dtype)
    corners = to_xyxy(torch.rand(B, M, 4, generator=g, dtype=dtype))
    return logits, boxes, Targets(labels, corners, torch.ones(B, M, dtype=torch.bool))


def slow_cost(logits, box, labels, true, alpha=0.3, gamma=2.0):
    """One number from lists of floats: a token's logits and cxcywh, a target's labels and corners."""
    total = 0.0
    for x, wanted in zip(logits, labels, strict=True):
        p = 1 / (1 + math.exp(-x))
        gain = -alpha * (1 - p) ** gamma * math.log(p) + (1 - alpha) * p**gamma * math.log(1 - p)
        total += wanted * gain
    cx, cy, w, h = box
    x0, y0, x1, y1 = true
    total += abs(cx - (x0 + x1) / 2) + abs(cy - (y0 + y1) / 2) + abs(w - (x1 - x0)) + abs(h - (y1 - y0))
    a = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    inter = max(0, min(a[2], x1) - max(a[0], x0)) * max(0, min(a[3], y1) - max(a[1], y0))
    union = w * h + (x1 - x0) * (y1 - y0) - inter
    hull = (max(a[2], x1) - min(a[0], x0)) * (max(a[3], y1) - min(a[1], y0))
    return total - (inter / (union + 1e-6) - (hull - union) / (hull + 1e-6))


def pairs_of(found, picture):
    own = found.picture == picture
    return dict(zip(found.target[own].tolist(), found.token[own].tolist(), strict=True))


def test_the_cost_equals_plain_floats():
    logits, boxes, targets = draw()
    found = cost(logits, boxes, targets.labels, targets.boxes)
    for b, i, m in itertools.product(range(2), range(6), range(3)):
        want = slow_cost(
            logits[b, i].tolist(),
            boxes[b, i].tolist(),
            targets.labels[b, m].tolist(),
            targets.boxes[b, m].tolist(),
        )
        assert found[b, i, m].item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_no_permutation_is_cheaper(seed):
    logits, boxes, targets = draw(seed)
    found = match(logits, boxes, targets)
    costs = cost(logits, boxes, targets.labels, targets.boxes)
    for b in range(2):
        chosen = pairs_of(found, b)
        best = min(
            itertools.permutations(range(6), 3),
            key=lambda rows: sum(costs[b, i, m] for m, i in enumerate(rows)),
        )
        assert [chosen[m] for m in range(3)] == list(best)


def test_padding_changes_nothing_and_never_matches():
    logits, boxes, targets = draw()
    plain = match(logits, boxes, targets)
    best = {b: pairs_of(plain, b) for b in range(2)}

    def wider(x, value):
        return torch.cat([x, torch.full_like(x, value)], dim=1)

    padded = Targets(wider(targets.labels, 1.0), wider(targets.boxes, math.nan), wider(targets.mask, False))
    again = match(logits, boxes, padded)
    assert {b: pairs_of(again, b) for b in range(2)} == best
    tokens = torch.ones(2, 6, dtype=torch.bool)
    tokens[0, list(best[0].values())] = False  # the three best are on padding now
    logits[0, list(best[0].values())] = math.nan
    rest = match(logits, boxes, padded, tokens)
    assert not set(pairs_of(rest, 0).values()) & set(best[0].values())
    assert len(pairs_of(rest, 0)) == 3
    assert pairs_of(rest, 1) == best[1]


def test_more_targets_than_tokens_and_none_at_all():
    logits, boxes, targets = draw(N=3, M=5)
    found = match(logits, boxes, targets)
    for b in range(2):
        assert sorted(pairs_of(found, b).values()) == [0, 1, 2]
        costs = cost(logits, boxes, targets.labels, targets.boxes)[b]
        best = min(sum(costs[i, m] for i, m in enumerate(c)) for c in itertools.permutations(range(5), 3))
        assert sum(costs[i, m] for m, i in pairs_of(found, b).items()).item() == pytest.approx(best.item())
    none = Targets(targets.labels, targets.boxes, torch.zeros(2, 5, dtype=torch.bool))
    assert len(match(logits, boxes, none).picture) == 0
    empty = Targets(targets.labels[:, :0], targets.boxes[:, :0], none.mask[:, :0])
    assert match(logits, boxes, empty).token.dtype == torch.int64
    nothing = match(logits, boxes, targets, torch.zeros(2, 3, dtype=torch.bool))
    assert len(nothing.picture) == 0
    half = targets.mask.clone()
    half[0] = False
    only = match(logits, boxes, Targets(targets.labels, targets.boxes, half))
    assert set(only.picture.tolist()) == {1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_last_choice(bad):
    logits, boxes, targets = draw()
    best = pairs_of(match(logits, boxes, targets), 0)
    logits[0, best[0]] = bad
    found = pairs_of(match(logits, boxes, targets), 0)
    assert sorted(found) == [0, 1, 2]
    if math.isnan(bad):
        assert best[0] not in found.values()
    logits[0] = math.nan
    assert sorted(pairs_of(match(logits, boxes, targets), 0)) == [0, 1, 2]


def test_a_target_that_is_not_finite_is_named():
    logits, boxes, targets = draw()
    targets.boxes[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match="box 2 of picture 1 has a number that is not finite"):
        match(logits, boxes, targets)


def test_degenerate_boxes_are_matched():
    logits, boxes, targets = draw()
    targets.boxes[0, 0] = torch.tensor([0.3, 0.3, 0.3, 0.3])  # a point
    targets.boxes[0, 1] = torch.tensor([-4.0, 2.0, 9.0, 3.0])  # outside of the picture
    boxes[0, :, 2:] = 0
    assert sorted(pairs_of(match(logits, boxes, targets), 0)) == [0, 1, 2]


def test_pictures_do_not_depend_on_each_other_nor_on_the_tile(monkeypatch):
    logits, boxes, targets = draw(B=5, dtype=torch.float32)
    whole = match(logits, boxes, targets)
    assert logits.numel() < TILE_CPU
    monkeypatch.setattr("mmvit.losses.match.TILE_CPU", 30)
    tiled = match(logits, boxes, targets)
    for b in range(5):
        alone = Targets(*(x[b : b + 1] for x in (targets.labels, targets.boxes, targets.mask)))
        assert pairs_of(match(logits[b : b + 1], boxes[b : b + 1], alone), 0) == pairs_of(whole, b)
        assert pairs_of(tiled, b) == pairs_of(whole, b)


def test_bfloat16_is_computed_in_float32():
    logits, boxes, targets = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cost(logits.bfloat16(), boxes.bfloat16(), targets.labels, targets.boxes)
    want = cost(logits.bfloat16().float(), boxes.bfloat16().float(), targets.labels, targets.boxes)
    assert found.dtype == torch.float32
    assert torch.equal(found, want)
