"""Known answers, a slow and obviously correct version, invariances, and the peers' values."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmvit.losses import chance_level, contrastive_loss, contrastive_terms

MODES = ["negative", "mask", "positive"]
KINDS = ["softmax", "sigmoid"]


def slow_loss(z_a, z_b, log_scale, bias, kind, ids, duplicates):
    """Two Python loops over pairs; nothing shared with the implementation."""
    a, b = F.normalize(z_a, dim=-1), F.normalize(z_b, dim=-1)
    n = len(a)
    logits = [[log_scale.exp() * (a[i] * b[j]).sum() + bias for j in range(n)] for i in range(n)]
    twin = [[bool(ids[i] == ids[j]) for j in range(n)] for i in range(n)]
    total = 0.0
    if kind == "sigmoid":
        for i in range(n):
            for j in range(n):
                if i != j and twin[i][j] and duplicates == "mask":
                    continue
                positive = i == j or (duplicates == "positive" and twin[i][j])
                total = total - F.logsigmoid(logits[i][j] if positive else -logits[i][j])
        return total / n
    for transpose in (False, True):
        for i in range(n):
            line = [logits[j][i] if transpose else logits[i][j] for j in range(n)]
            race = [j for j in range(n) if not (duplicates == "mask" and twin[i][j] and j != i)]
            right = [j for j in range(n) if twin[i][j]] if duplicates == "positive" else [i]
            norm = torch.stack([line[j] for j in race]).logsumexp(0)
            total = total + sum(norm - line[j] for j in right) / len(right)
    return total / (2 * n)


def draw(n=7, e=5, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    z_a, z_b = (torch.randn(n, e, generator=g, dtype=dtype) * 3 for _ in range(2))
    ids = torch.tensor([0, 1, 2, 1, 0, 3, 1, 4, 5, 6, 7])[:n]
    log_scale = torch.tensor(1.3, dtype=dtype)
    bias = torch.tensor(-2.0, dtype=dtype)
    return z_a, z_b, log_scale, bias, ids


@pytest.mark.parametrize("block", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("duplicates", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_equal_the_double_loop(kind, duplicates, block):
    z_a, z_b, log_scale, bias, ids = draw()
    leaves = [t.clone().requires_grad_() for t in (z_a, z_b, log_scale, bias)]
    other = [t.clone().requires_grad_() for t in (z_a, z_b, log_scale, bias)]
    zero = torch.zeros(())
    want = slow_loss(*leaves[:3], leaves[3] if kind == "sigmoid" else zero, kind, ids, duplicates)
    got = contrastive_loss(
        *other[:3],
        other[3] if kind == "sigmoid" else None,
        kind=kind,
        block=block,
        same=ids,
        duplicates=duplicates,
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    want.backward()
    (got * 1.0).backward()
    for a, b in zip(leaves, other, strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("locked", ["a", "b"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_locked_side_changes_neither_value_nor_gradient(kind, locked):
    z_a, z_b, log_scale, bias, ids = draw()
    bias = bias if kind == "sigmoid" else None

    def run(grad_a, grad_b):
        a, b, s = z_a.clone(), z_b.clone(), log_scale.clone().requires_grad_()
        a.requires_grad_(grad_a)
        b.requires_grad_(grad_b)
        terms = contrastive_terms(a, b, s, bias, kind=kind, same=ids, duplicates="positive")
        terms.loss.backward()
        return terms, a.grad, b.grad, s.grad

    both, grad_a, grad_b, grad_s = run(True, True)
    one, one_a, one_b, one_s = run(locked == "b", locked == "a")
    torch.testing.assert_close(one.loss, both.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(one_s, grad_s, rtol=0, atol=1e-12)
    free, want = (one_b, grad_b) if locked == "a" else (one_a, grad_a)
    torch.testing.assert_close(free, want, rtol=0, atol=1e-12)
    assert (one_a if locked == "a" else one_b) is None
    assert torch.equal(one.hits_a, both.hits_a)
    assert torch.equal(one.hits_b, both.hits_b)


def test_known_answers():
    same = torch.ones(9, 4)
    zero = torch.zeros(())
    assert contrastive_loss(same, same, torch.tensor(2.0)).item() == pytest.approx(math.log(9), abs=1e-6)
    one = torch.randn(1, 4)
    assert contrastive_loss(one, torch.randn(1, 4), torch.tensor(2.6593)).item() == pytest.approx(0, abs=1e-6)
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(256, 512, generator=g), torch.randn(256, 512, generator=g)
    chance = contrastive_loss(a, b, torch.tensor(math.log(1 / 0.07))).item()
    assert chance == pytest.approx(math.log(256) + 0.2, abs=0.15)
    ten = torch.tensor(math.log(10))
    assert contrastive_loss(a, b, ten, torch.tensor(-10.0), "sigmoid").item() == pytest.approx(10.0, abs=0.1)
    assert contrastive_loss(a, b, ten, zero, "sigmoid").item() == pytest.approx(183, abs=2)


def test_sigmoid_limit_of_a_very_negative_bias():
    z_a, z_b, log_scale, _, _ = draw()
    bias = torch.tensor(-60.0, dtype=torch.float64)
    diagonal = log_scale.exp() * (F.normalize(z_a, dim=-1) * F.normalize(z_b, dim=-1)).sum(-1) + bias
    got = contrastive_loss(z_a, z_b, log_scale, bias, "sigmoid")
    torch.testing.assert_close(got, -diagonal.mean(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicates", MODES)
def test_swapping_sides_permuting_pairs_and_scaling_rows_change_nothing(kind, duplicates):
    z_a, z_b, log_scale, bias, ids = draw(n=9)
    bias = bias if kind == "sigmoid" else None
    options = {"kind": kind, "duplicates": duplicates}
    base = contrastive_loss(z_a, z_b, log_scale, bias, same=ids, **options)
    swapped = contrastive_loss(z_b, z_a, log_scale, bias, same=ids, **options)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    shuffled = contrastive_loss(z_a[order], z_b[order], log_scale, bias, same=ids[order], **options)
    scaled = contrastive_loss(z_a * 7.0, z_b * 0.1, log_scale, bias, same=ids, **options)
    for other in (swapped, shuffled, scaled):
        torch.testing.assert_close(other, base, rtol=0, atol=1e-12)


def test_open_clip_gives_the_same_values():
    from open_clip.loss import ClipLoss, SigLipLoss

    z_a, z_b, log_scale, bias, _ = draw(n=11, dtype=torch.float32)
    a, b = F.normalize(z_a, dim=-1), F.normalize(z_b, dim=-1)
    torch.testing.assert_close(
        contrastive_loss(z_a, z_b, log_scale), ClipLoss()(a, b, log_scale.exp()), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        contrastive_loss(z_a, z_b, log_scale, bias, "sigmoid"),
        SigLipLoss()(a, b, log_scale.exp(), bias),
        rtol=1e-6,
        atol=1e-6,
    )


def test_transformers_gives_the_same_values():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss as clip_loss

    z_a, z_b, log_scale, bias, _ = draw(n=11, dtype=torch.float32)
    cosines = F.normalize(z_b, dim=-1) @ F.normalize(z_a, dim=-1).T
    torch.testing.assert_close(
        contrastive_loss(z_a, z_b, log_scale), clip_loss(cosines * log_scale.exp()), rtol=1e-6, atol=1e-6
    )
    logits = cosines * log_scale.exp() + bias  # SiglipModel's loss, as written in its forward
    signs = 2 * torch.eye(11) - 1
    want = -F.logsigmoid(signs * logits).sum(-1).mean()
    got = contrastive_loss(z_a, z_b, log_scale, bias, "sigmoid")
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_float32_inside_autocast_and_for_half_inputs():
    z_a, z_b, log_scale, _, _ = draw(n=11, dtype=torch.float32)
    z_a.requires_grad_()
    plain = contrastive_loss(z_a, z_b, log_scale)
    plain.backward()
    want, z_a.grad = z_a.grad, None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = contrastive_loss(z_a, z_b, log_scale)
        mixed.backward()
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)
    assert torch.equal(z_a.grad, want)
    assert contrastive_loss(z_a.half(), z_b.half(), log_scale).dtype == torch.float32


def test_hits_are_counted_pessimistically():
    z = torch.eye(4)
    s = torch.tensor(1.0)
    perfect = contrastive_terms(z, z, s)
    assert perfect.hits_a.all()
    assert perfect.hits_b.all()
    collapsed = contrastive_terms(torch.ones(4, 3), torch.ones(4, 3), s)
    assert not collapsed.hits_a.any()
    assert not collapsed.hits_b.any()
    swapped = contrastive_terms(z, z[[1, 0, 2, 3]], s)
    assert swapped.hits_a.tolist() == [False, False, True, True]
    twins = torch.tensor([0, 0, 1, 2])
    known = contrastive_terms(z, z[[1, 0, 2, 3]], s, same=twins, block=2)
    assert known.hits_a.tolist() == [
        False,
        False,
        True,
        True,
    ]  # own pair still scores below the others' zeros
    doubled = contrastive_terms(z[[0, 0, 2, 3]], z[[0, 0, 2, 3]], s, same=twins)
    assert doubled.hits_a.all()
    assert not contrastive_terms(z[[0, 0, 2, 3]], z[[0, 0, 2, 3]], s).hits_a[:2].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"z_b": torch.zeros(3, 5)}, "one shape"),
        ({"kind": "hinge"}, "'hinge'"),
        ({"duplicates": "ignore"}, "'ignore'"),
        ({"duplicates": "mask"}, "needs the ids"),
        ({"same": torch.zeros(3)}, "one id per row"),
        ({"block": 0}, "at least 1"),
        ({"logit_bias": torch.zeros(())}, "sigmoid"),
    ],
)
def test_wrong_arguments_say_what_was_expected(change, words):
    arguments = {"z_a": torch.zeros(4, 5), "z_b": torch.zeros(4, 5), "logit_scale": torch.zeros(())}
    with pytest.raises(ValueError, match=words):
        contrastive_loss(**{**arguments, **change})


@pytest.mark.parametrize("B", [2, 7, 64])
def test_chance_level_is_the_best_that_equal_embeddings_can_get(B):
    z = torch.ones(B, 3, dtype=torch.float64)
    scale = torch.zeros((), dtype=torch.float64)
    assert contrastive_loss(z, z, scale).item() == pytest.approx(chance_level("softmax", B), abs=1e-12)
    best = math.log(1 / (B - 1)) - 1  # sigmoid(1 + c) = 1/B
    losses = [
        contrastive_loss(z, z, scale, torch.tensor(best + off, dtype=torch.float64), "sigmoid").item()
        for off in (0.0, 0.1, -0.1)
    ]
    assert losses[0] == pytest.approx(chance_level("sigmoid", B), abs=1e-12)
    assert losses[0] < min(losses[1:])
