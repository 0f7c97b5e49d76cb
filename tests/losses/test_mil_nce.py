"""Known answers, a slow and obviously correct version, masks, ties, gradients by finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

import mmvit.losses.mil_nce as module
from mmvit.losses import mil_nce_chance, mil_nce_loss, mil_nce_terms


def slow_loss(video, texts, valid, candidates, temperature, symmetric, video_valid, ids, duplicates):
    """Python loops over rows and candidates; nothing shared with the implementation."""
    b, P, _ = texts.shape
    v, t = F.normalize(video, dim=-1), F.normalize(texts, dim=-1)
    spoken = [[p for p in range(P) if valid[j] and candidates[j, p]] for j in range(b)]
    total, count = 0.0 * (video.sum() + texts.sum()), 0
    for i in range(b):
        if not video_valid[i] or not spoken[i]:
            continue
        count += 1
        others = [j for j in range(b) if j == i or duplicates == "negative" or ids[i] != ids[j]]
        row = [v[i] @ t[j, p] / temperature for j in others for p in spoken[j]]
        col = [v[j] @ t[i, p] / temperature for j in others if video_valid[j] for p in spoken[i]]
        own = torch.stack([v[i] @ t[i, p] / temperature for p in spoken[i]]).exp().sum().log()
        if symmetric:
            total = total + sum(torch.stack(side).exp().sum().log() - own for side in (row, col))
        else:
            total = total + torch.stack(row + col).exp().sum().log() - own
    return total / max(1, count)


def draw(b=6, P=3, e=5, seed=0, dtype=torch.float64):
    """(video, texts, valid, candidates, video_valid, ids), masks at random."""
    g = torch.Generator().manual_seed(seed)
    video = torch.randn(b, e, generator=g, dtype=dtype)
    texts = torch.randn(b, P, e, generator=g, dtype=dtype)
    valid, present = (torch.rand(b, generator=g) > 0.3 for _ in range(2))
    return video, texts, valid, torch.rand(b, P, generator=g) > 0.4, present, torch.arange(b) // 2


def waves():
    """v (4,8) and t (4,5,8) of which the numbers below are known."""
    return torch.arange(32).double().sin().view(4, 8), torch.arange(160).double().cos().view(4, 5, 8)


@pytest.mark.parametrize(
    ("options", "P", "loss"),
    [
        ({}, 5, 2.868080),
        ({}, 1, 22.882545),
        ({"valid": torch.tensor([True, False, True, True])}, 5, 2.535028),
        ({"symmetric": True}, 5, 4.124370),
        ({"symmetric": True}, 1, 43.007408),
    ],
)
def test_known_numbers(options, P, loss):
    v, t = waves()
    assert mil_nce_loss(v, t[:, :P], **options).item() == pytest.approx(loss, rel=1e-6)
    assert mil_nce_loss(v.float(), t[:, :P].float(), **options).item() == pytest.approx(loss, rel=2e-6)


@pytest.mark.parametrize("block", [None, 1, 2, 6])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("duplicates", ["negative", "mask"])
def test_value_and_gradients_equal_the_loops(duplicates, symmetric, block):
    for seed in range(4):
        video, texts, valid, candidates, present, ids = draw(seed=seed)
        mine, other = ([video.clone().requires_grad_(), texts.clone().requires_grad_()] for _ in range(2))
        want = slow_loss(*mine, valid, candidates, 0.2, symmetric, present, ids, duplicates)
        options = {"video_valid": present, "same": ids, "duplicates": duplicates, "block": block}
        got = mil_nce_loss(*other, valid, candidates, 0.2, symmetric, **options)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        want.backward()
        got.backward()
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_equal_finite_differences(symmetric):
    video, texts, valid, candidates, present, _ = draw(b=4, P=2, e=3, seed=1)
    video.requires_grad_()
    texts.requires_grad_()
    assert (valid & candidates.any(1) & present).any()
    assert torch.autograd.gradcheck(
        lambda v, t: mil_nce_loss(v, t, valid, candidates, 0.3, symmetric, video_valid=present),
        (video, texts),
    )


def test_the_least_loss_is_ln_2_and_symmetric_it_is_0():
    axes = torch.eye(6, dtype=torch.float64)
    assert mil_nce_loss(axes, axes[:, None]).item() == pytest.approx(math.log(2), abs=1e-5)
    assert mil_nce_loss(axes, axes[:, None].expand(-1, 5, -1)).item() == pytest.approx(math.log(2), abs=1e-5)
    assert mil_nce_loss(axes, axes[:, None], symmetric=True).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("P", [1, 5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equal_vectors_are_at_chance(P, symmetric):
    loss = mil_nce_loss(torch.ones(4, 7), torch.ones(4, P, 7), symmetric=symmetric)
    assert loss.item() == pytest.approx(mil_nce_chance(4, symmetric), abs=1e-5)
    assert mil_nce_chance(4) == pytest.approx(2.07944, abs=1e-5)


def test_one_candidate_is_the_sum_of_two_cross_entropies():
    video, texts, *_ = draw(P=1)
    logits = F.normalize(video, dim=-1) @ F.normalize(texts[:, 0], dim=-1).T / 0.07
    target = torch.arange(len(video))
    want = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    torch.testing.assert_close(mil_nce_loss(video, texts, symmetric=True), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_row_without_either_modality_changes_nothing_whatever_it_holds(symmetric):
    video, texts, valid, candidates, present, _ = draw(seed=3)
    nothing = torch.full((1, 5), float("nan"), dtype=torch.float64)
    grads, losses = [], []
    for more in (False, True):
        v = torch.cat([video, nothing]) if more else video
        t = torch.cat([texts, nothing[:, None].expand(-1, 3, -1)]) if more else texts
        leaves = [v.clone().requires_grad_(), t.clone().requires_grad_()]
        off = torch.zeros(int(more), dtype=torch.bool)
        loss = mil_nce_loss(
            *leaves,
            torch.cat([valid, off]),
            torch.cat([candidates, ~off[:, None].expand(-1, 3)]),
            symmetric=symmetric,
            video_valid=torch.cat([present, off]),
        )
        loss.backward()
        losses.append(loss)
        grads.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    for few, many in zip(*grads, strict=True):
        torch.testing.assert_close(many[: len(few)], few, rtol=0, atol=1e-12)
        assert not many[len(few) :].any()


def test_an_empty_candidate_is_as_one_that_is_not_there():
    video, texts, *_ = draw(P=4)
    real = torch.tensor([True, True, False, False]).expand(6, 4)
    got = mil_nce_loss(video, texts, candidates=real)
    torch.testing.assert_close(got, mil_nce_loss(video, texts[:, :2]), rtol=0, atol=1e-12)
    none = real.clone()
    none[2] = False  # a row without any candidate is a row without text
    valid = torch.arange(6) != 2
    torch.testing.assert_close(
        mil_nce_loss(video, texts, candidates=none), mil_nce_loss(video, texts, valid, real)
    )


@pytest.mark.parametrize("lacks", ["texts", "videos", "candidates"])
def test_without_a_row_that_counts_loss_and_gradients_are_0(lacks):
    video, texts, *_ = draw()
    video.requires_grad_()
    texts.requires_grad_()
    off = torch.zeros(6, dtype=torch.bool)
    options = {"texts": {"valid": off}, "videos": {"video_valid": off}}
    terms = mil_nce_terms(video, texts, **options.get(lacks, {"candidates": off[:, None].expand(-1, 3)}))
    terms.loss.backward()
    assert terms.loss.item() == 0
    assert torch.equal(video.grad, torch.zeros_like(video))
    assert torch.equal(texts.grad, torch.zeros_like(texts))
    assert not torch.stack([terms.counted, terms.hits, terms.hits_back]).any()


def test_a_vector_of_zeros_has_no_direction_and_no_gradient():
    video, texts, *_ = draw()
    video[2] = texts[1] = 0.0
    video.requires_grad_()
    texts.requires_grad_()
    mil_nce_loss(video, texts).backward()
    assert not video.grad[2].any()
    assert not texts.grad[1].any()
    assert 0 < video.grad.abs().max() < 100


def test_lengths_and_the_order_of_rows_and_candidates_change_nothing():
    video, texts, valid, candidates, present, ids = draw(seed=5)
    options = {"same": ids, "duplicates": "mask"}
    base = mil_nce_loss(video, texts, valid, candidates, video_valid=present, **options)
    scaled = mil_nce_loss(video * 9, texts * 0.1, valid, candidates, video_valid=present, **options)
    order, turn = torch.randperm(6, generator=torch.Generator().manual_seed(1)), [2, 0, 1]
    moved = mil_nce_loss(
        video[order],
        texts[order][:, turn],
        valid[order],
        candidates[order][:, turn],
        video_valid=present[order],
        same=ids[order],
        duplicates="mask",
    )
    for other in (scaled, moved):
        torch.testing.assert_close(other, base, rtol=0, atol=1e-12)


def test_equal_rows_can_be_left_out_of_each_others_negatives():
    axes = torch.eye(6, dtype=torch.float64)[[0, 0, 1, 1, 2, 2]]
    ids = torch.tensor([7, 7, 8, 8, 9, 9])
    against = mil_nce_loss(axes, axes[:, None], same=ids)
    left_out = mil_nce_loss(axes, axes[:, None], same=ids, duplicates="mask")
    assert against.item() == pytest.approx(math.log(4), abs=1e-5)
    assert left_out.item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("block", [None, 2])
def test_hits_are_ranks_of_one(block):
    video, texts, valid, candidates, present, ids = draw(b=9, seed=2)
    video = video + 1.5 * texts[:, 0]
    terms = mil_nce_terms(video, texts, valid, candidates, video_valid=present, same=ids, block=block)
    v, t = F.normalize(video, dim=-1), F.normalize(texts, dim=-1)
    scores = torch.einsum("id,jpd->ijp", v, t)
    real = candidates & valid[:, None]
    counted = real.any(1) & present
    assert torch.equal(terms.counted, counted)
    assert terms.share.item() == pytest.approx(1 / counted.sum().item())
    for i in range(9):
        own = scores[i, i][real[i]].max() if counted[i] else None
        apart = [j for j in range(9) if ids[j] != ids[i]]
        forth = counted[i] and all(s < own for j in apart for s in scores[i, j][real[j]])
        back = counted[i] and all(s < own for j in apart if present[j] for s in scores[j, i][real[i]])
        assert bool(terms.hits[i]) == bool(forth)
        assert bool(terms.hits_back[i]) == bool(back)
    assert 0 < terms.hits.sum() < 9
    same = mil_nce_terms(torch.ones(4, 3), torch.ones(4, 2, 3))
    assert not torch.stack([same.hits, same.hits_back]).any()  # collapsed vectors score nothing


def test_half_precision_and_autocast_do_not_reach_the_loss():
    video, texts, valid, *_ = draw(dtype=torch.float32)
    want = mil_nce_loss(video.bfloat16().float(), texts.bfloat16().float(), valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = mil_nce_loss(video.bfloat16(), texts.bfloat16(), valid)
        tiled = mil_nce_loss(video.bfloat16(), texts.bfloat16(), valid, block=1)
    assert got.dtype == torch.float32
    assert mil_nce_loss(video.double(), texts.double()).dtype == torch.float64
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(tiled, want)


def test_tiles_are_computed_anew_and_not_kept(monkeypatch):
    calls = []
    inner = module._Tile.__call__
    monkeypatch.setattr(module._Tile, "__call__", lambda *a: calls.append(len(a[3])) or inner(*a))
    video, texts, *_ = draw(b=8)
    mil_nce_loss(video.requires_grad_(), texts, block=3).backward()
    assert sorted(calls) == [2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": torch.zeros(6, 5)}, r"texts\[:, None\]\), got \(6, 5\) and \(6, 5\)"),
        ({"texts": torch.zeros(5, 3, 5)}, r"got \(6, 5\) and \(5, 3, 5\)"),
        ({"texts": torch.zeros(6, 0, 5)}, "P >= 1"),
        ({"valid": torch.ones(5, dtype=torch.bool)}, r"valid is \(5,\) torch.bool, expected \(6,\)"),
        ({"valid": torch.ones(6)}, r"valid is \(6,\) torch.float32, expected \(6,\) torch.bool"),
        ({"candidates": torch.ones(6, 2, dtype=torch.bool)}, r"candidates is \(6, 2\)"),
        ({"video_valid": torch.ones(6, 1, dtype=torch.bool)}, r"video_valid is \(6, 1\)"),
        ({"temperature": 0.0}, "temperature is what cosines are divided by, above 0, got 0.0"),
        ({"normalization": "mean"}, "'global' or 'local', got 'mean'"),
        ({"duplicates": "positive"}, "'negative' or 'mask', got 'positive'"),
        ({"duplicates": "mask"}, "needs the ids"),
        ({"same": torch.zeros(3)}, r"one id per row: expected \(6,\), got \(3,\)"),
        ({"block": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_inputs_are_named(options, message):
    video, texts, *_ = draw()
    with pytest.raises(ValueError, match=message) as caught:
        mil_nce_loss(**{"video": video, "texts": texts, **options})
    assert "\n" not in str(caught.value)
