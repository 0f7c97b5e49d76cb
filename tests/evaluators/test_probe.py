"""The linear probe: known answers, scikit-learn's weights, folds that split no object, views averaged."""

import pytest
import torch

from mmvit.evaluators.classification import average_views, by_class, class_metrics, interval
from mmvit.evaluators.folds import crossing, given_folds, k_folds, split_off
from mmvit.evaluators.probe import choose_strength, fit_logistic, fit_low_rank
from mmvit.evaluators.probe_split import cross_validate, hold_out
from mmvit.evaluators.zero_shot import zero_shot_metrics


def clusters(n=120, classes=4, dim=10, spread=0.3, seed=0):
    """Features in `classes` well separated heaps, and their labels."""
    g = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, dim, generator=g), labels


def test_separable_features_are_named_right():
    x, y = clusters()
    probe = fit_logistic(x, y, 4)
    new, truth = clusters(seed=1)
    assert class_metrics(probe(new), truth)["acc1"] == 1
    found = cross_validate(x[:, None], y, 4, k_folds(range(120), 5), groups=range(120))
    assert found.metrics["acc1"] == 1
    assert found.metrics["acc1_std"] == 0


def test_random_labels_stay_at_chance():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 8, generator=g), torch.randint(0, 4, (400,), generator=g)
    found = cross_validate(x[:, None], y, 4, k_folds(range(400), 5), groups=range(400))
    assert found.metrics["chance_acc1"] == 0.25
    # four standard deviations of 400 guesses
    assert abs(found.metrics["acc1"] - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert max(found.strengths) <= 1e-2  # it learns to say little


def test_weights_equal_scikit_learn():
    x = torch.tensor([[0.0, 1], [1, 0], [2, 1], [3, 5], [1, 4], [5, 2], [0, 3], [4, 4]])
    y = torch.tensor([0, 0, 1, 2, 2, 1, 2, 1])
    probe = fit_logistic(x, y, 3, 0.5)
    # sklearn.linear_model.LogisticRegression(C=0.5) of scikit-learn 1.9.1 on the standardised features
    weight = [[-0.355092, -0.549401], [0.668765, -0.13171], [-0.313673, 0.681112]]
    torch.testing.assert_close(probe.weight, torch.tensor(weight).double(), atol=2e-5, rtol=0)
    bias = torch.tensor([-0.390636, 0.217635, 0.173002]).double()
    torch.testing.assert_close(probe.bias - probe.bias.mean(), bias, atol=2e-5, rtol=0)


def test_units_and_constant_features_do_not_matter():
    x, y = clusters()
    new, _ = clusters(seed=1)
    scaled = torch.cat([x * torch.logspace(-3, 3, 10) + 100, torch.full((120, 1), 0.1)], 1)
    other = torch.cat([new * torch.logspace(-3, 3, 10) + 100, torch.full((120, 1), 0.1)], 1)
    a, b = fit_logistic(x, y, 4)(new), fit_logistic(scaled, y, 4)(other)
    torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)  # float32 at 100 +- 0.001


def test_several_labels_use_one_loss_a_class():
    x, y = clusters(classes=3)
    labels = torch.stack([y == 0, y <= 1, y == 2], 1)
    probe = fit_logistic(x, labels, 3, 10.0)
    new, truth = clusters(classes=3, seed=1)
    assert ((probe(new) > 0) == torch.stack([truth == 0, truth <= 1, truth == 2], 1)).all()
    found = cross_validate(x[:, None], labels, 3, k_folds(range(120), 3), groups=range(120))
    assert found.metrics["map"] == found.metrics["auc"] == 1


def test_strength_is_chosen_without_splitting_groups():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 40, generator=g), torch.randint(0, 2, (200,), generator=g)
    doubled, twice = x.repeat(2, 1), y.repeat(2)
    # Each sample stands there twice: split by rows the copy is learnt by heart, split by groups nothing is.
    by_group = choose_strength(doubled, twice, 2, [*range(200), *range(200)])
    by_row = choose_strength(doubled, twice, 2, range(400))
    assert by_group < by_row


def test_head_of_low_rank():
    x, y = clusters()
    new, truth = clusters(seed=1)
    a = fit_low_rank(x, y, 4, rank=16, keep=0.5, steps=300, lr=5e-3)
    assert class_metrics(a(new), truth)["acc1"] == 1
    assert torch.linalg.matrix_rank(fit_low_rank(x, y, 4, rank=2, steps=20).weight) == 2
    b = fit_low_rank(x, y, 4, rank=16, keep=0.5, steps=300, lr=5e-3)
    assert torch.equal(a.weight, b.weight)


def test_folds_split_no_group_and_are_even():
    groups = [f"object {i % 23}" for i in range(230)]
    fold = k_folds(groups, 5)
    assert crossing(groups, fold) == 0
    assert crossing(range(230), fold) == 0
    assert crossing(groups, torch.arange(230) % 5) > 0
    assert fold.bincount().max() - fold.bincount().min() <= 10
    order = torch.randperm(230, generator=torch.Generator().manual_seed(0))
    assert torch.equal(k_folds([groups[i] for i in order], 5), fold[order])
    assert not torch.equal(k_folds(groups, 5, seed=1), fold)
    held = split_off(groups)
    assert crossing(groups, held.long()) == 0
    assert 0.1 < held.double().mean() < 0.3
    assert given_folds([2, 1, 5, 1]).tolist() == [1, 0, 2, 0]


def test_a_leak_through_the_object_is_seen_only_by_folds_of_samples():
    # Every object has its own place and its own label, drawn by lot: nothing general can be learnt.
    g = torch.Generator().manual_seed(0)
    objects = torch.arange(240) % 30
    x = 3 * torch.randn(30, 20, generator=g)[objects] + 0.1 * torch.randn(240, 20, generator=g)
    y = torch.randint(0, 2, (30,), generator=g)[objects]
    apart = cross_validate(x[:, None], y, 2, k_folds(objects.tolist(), 5), groups=objects.tolist())
    mixed = cross_validate(x[:, None], y, 2, k_folds(range(240), 5), groups=range(240))
    assert mixed.metrics["acc1"] == 1
    assert apart.metrics["acc1"] < 0.75


def test_train_and_test_sets_and_views():
    x, y = clusters()
    new, truth = clusters(seed=1)
    # One of three views shows another class: its own count would be 2/3, averaged it is 1.
    views = torch.stack([new, new, new.roll(1, 0)], 1)
    found = hold_out(x[:, None], y, views, truth, 4, groups=range(120))
    assert (found.metrics["acc1"], found.metrics["n"]) == (1, 120)
    assert found.metrics["majority_acc1"] == 0.25


def test_views_are_averaged_as_said():
    logits = torch.tensor([[[8.0, 0], [-1, 1], [-1, 1]]])
    assert average_views(logits).argmax(1).item() == 0  # one loud view wins
    assert average_views(logits, "probs").argmax(1).item() == 1  # softmax lets each view say one thing
    torch.testing.assert_close(average_views(logits), torch.tensor([[2.0, 2 / 3]]))
    torch.testing.assert_close(average_views(logits, "probs"), logits.softmax(2).mean(1))
    with pytest.raises(ValueError, match="must be"):
        average_views(logits[0])
    with pytest.raises(ValueError, match="logits or probs"):
        average_views(logits, "sum")


def test_scores_and_cosines_give_the_same_numbers():
    g = torch.Generator().manual_seed(0)
    x, classes = torch.randn(50, 8, generator=g), torch.randn(6, 8, generator=g)
    labels = torch.randint(-1, 6, (50,), generator=g)
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(classes, dim=1).T
    assert class_metrics(cosine, labels) == pytest.approx(zero_shot_metrics(x, classes, labels))


def test_class_by_class():
    scores = torch.eye(3)[[0, 1, 1, 2, 2, 2]]
    found = by_class(scores, torch.tensor([0, 0, 0, 2, 1, -1]), ["a", "b", "c"])
    assert found["a"] == {"n": 3, "recall": pytest.approx(1 / 3), "most_taken_for": "b"}
    assert found["b"] == {"n": 1, "recall": 0, "most_taken_for": "c"}
    assert found["c"] == {"n": 1, "recall": 1}


def test_intervals_count_groups_and_not_samples():
    g = torch.Generator().manual_seed(0)
    right = (torch.rand(400, generator=g) < 0.6).double()
    low, high = interval(right, range(400))
    half = 1.96 * float(right.std()) / 20
    mean = float(right.mean())
    assert (low, high) == (pytest.approx(mean - half, abs=0.01), pytest.approx(mean + half, abs=0.01))
    assert interval(right, range(400)) == (low, high)
    objects = right[:40].repeat_interleave(10)  # 40 things, ten clips each, all alike
    narrow, wide = interval(objects, range(400)), interval(objects, [i // 10 for i in range(400)])
    assert wide[1] - wide[0] > 2.5 * (narrow[1] - narrow[0])
    assert interval(torch.ones(9), range(9)) == (1, 1)


def test_bad_input_is_refused():
    x, y = clusters(n=8)
    with pytest.raises(ValueError, match="row 3 is NaN"):
        fit_logistic(x.index_fill(0, torch.tensor([3]), torch.nan), y, 4)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        fit_logistic(x, y, 3)
    with pytest.raises(ValueError, match="strength=0"):
        fit_logistic(x, y, 4, 0)
    with pytest.raises(ValueError, match=r"\(N,4\) bool"):
        fit_logistic(x, torch.zeros(8, 3, dtype=torch.bool), 4)
    with pytest.raises(ValueError, match="keep=0"):
        fit_low_rank(x, y, 4, keep=0)
    with pytest.raises(ValueError, match="5 folds of 2 groups"):
        k_folds(["a", "b", "a"], 5)
    with pytest.raises(ValueError, match="1 samples have none"):
        given_folds([1, None, 2])
    with pytest.raises(ValueError, match="one group for each"):
        interval(torch.ones(2), ["a"])
    with pytest.raises(ValueError, match="sample 0 has NaN"):
        class_metrics(torch.full((2, 2), torch.nan), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="never in training"):
        cross_validate(x[:, None], y, 4, y, groups=range(8))
