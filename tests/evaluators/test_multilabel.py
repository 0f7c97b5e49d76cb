"""Average precision, AUC and d' against scikit-learn's numbers, slow counts and examples done by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from mmvit.evaluators.multilabel import average_precision, chance_ap, d_prime, multilabel_metrics, roc_auc

# scores, right, scikit-learn 1.9.1's average_precision_score and roc_auc_score; many ties
SKLEARN = [
    ([4, 3, 2, 1, 1, 0, 0, 0, 0, 4, 3, 4], [0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0], 0.2777777778, 0.3703703704),
    ([0, 1, 2, 2, 2, 0, 0, 0, 0, 3, 2, 3], [0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1], 0.3630952381, 0.421875),
    ([2, 2, 3, 4, 0, 4, 2, 1, 3, 2, 1, 1], [0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1], 0.4507575758, 0.3333333333),
]  # fmt: skip


def tensors(scores, right):
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(right, dtype=torch.bool)


@pytest.mark.parametrize(("scores", "right", "ap", "auc"), SKLEARN)
def test_scikit_learn_says_the_same(scores, right, ap, auc):
    assert average_precision(*tensors(scores, right)) == pytest.approx(ap, abs=1e-10)
    assert roc_auc(*tensors(scores, right)) == pytest.approx(auc, abs=1e-10)


def test_examples_by_hand():
    # right, wrong, right, wrong: precision 1/1 at the first, 2/3 at the second; 3 of 4 pairs in order
    scores, right = tensors([4, 3, 2, 1], [1, 0, 1, 0])
    assert average_precision(scores, right) == pytest.approx((1 + 2 / 3) / 2)
    assert roc_auc(scores, right) == pytest.approx(3 / 4)
    # the middle two tied: threshold 4 gives 1/1, threshold 2.5 gives 2/3; the tie is half a pair
    scores, right = tensors([4, 2.5, 2.5, 1], [1, 0, 1, 0])
    assert average_precision(scores, right) == pytest.approx((1 + 2 / 3) / 2)
    assert roc_auc(scores, right) == pytest.approx(3.5 / 4)
    everything_equal = torch.zeros(4)
    assert average_precision(everything_equal, right) == pytest.approx(0.5)
    assert roc_auc(everything_equal, right) == pytest.approx(0.5)


def test_auc_is_the_share_of_pairs_in_order():
    g = torch.Generator().manual_seed(0)
    scores, right = torch.randint(0, 9, (60,), generator=g).float(), torch.rand(60, generator=g) < 0.3
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in itertools.product(scores[right].tolist(), scores[~right].tolist())
    ]
    assert roc_auc(scores, right) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_d_prime_both_ways():
    assert d_prime(0.971) == pytest.approx(2.681, abs=5e-4)
    assert d_prime(0.5) == 0
    assert d_prime(0.2) == pytest.approx(-d_prime(0.8))
    # Two classes, AUC 1/2 and 3/4: the mean of d' is not d' of the mean.
    scores = torch.tensor([[4.0, 4], [3, 3], [2, 2], [1, 1]])
    labels = torch.tensor([[1, 1], [0, 0], [0, 1], [1, 0]], dtype=torch.bool)
    m = multilabel_metrics(scores, labels).metrics
    assert m["auc"] == pytest.approx(0.625)
    assert m["d_prime"] == pytest.approx((0 + math.sqrt(2) * 0.6744897501960817) / 2)
    assert m["d_prime_of_mean_auc"] == pytest.approx(math.sqrt(2) * 0.31863936396437514)
    assert m["d_prime"] > m["d_prime_of_mean_auc"] + 0.02


def test_perfect_and_inverted_orders_are_limited_and_counted():
    assert d_prime(1.0) == math.inf
    assert d_prime(0.0) == -math.inf
    assert d_prime(1.0, 50) == d_prime(0.99)
    assert d_prime(0.0, 50) == -d_prime(1.0, 50)
    scores = torch.tensor([[3.0, 1], [2, 2], [1, 3]])
    labels = torch.tensor([[1, 1], [0, 0], [0, 0]], dtype=torch.bool)
    m = multilabel_metrics(scores, labels).metrics
    assert m["d_prime_limited"] == 2
    assert m["d_prime"] == 0
    perfect = multilabel_metrics(scores[:, :1], labels[:, :1]).metrics
    assert (perfect["map"], perfect["auc"]) == (1, 1)
    assert perfect["d_prime"] == perfect["d_prime_of_mean_auc"] == d_prime(0.75)  # half of its two pairs


def test_classes_that_cannot_be_measured_are_dropped_and_counted():
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(6, 4, dtype=torch.bool)
    labels[:2, 0], labels[:, 2] = True, True
    found = multilabel_metrics(scores, labels, ["a", "b", "c", "d"])
    assert list(found.classes) == ["a", "c"]
    assert "AUC" not in found.classes["c"]
    assert (found.metrics["classes"], found.metrics["without_positive"]) == (2, 2)
    assert found.metrics["without_negative"] == 1
    assert found.metrics["map"] == pytest.approx((found.classes["a"]["AP"] + 1) / 2)
    assert found.metrics["auc"] == found.classes["a"]["AUC"]
    only = multilabel_metrics(scores[:, 2:3], labels[:, 2:3]).metrics
    assert "auc" not in only
    assert "d_prime" not in only


@pytest.mark.parametrize(("positives", "samples"), [(1, 1), (1, 5), (2, 6), (6, 6)])
def test_chance_is_the_mean_over_all_orders(positives, samples):
    scores = torch.arange(samples, 0, -1).float()
    every = []
    for places in itertools.combinations(range(samples), positives):
        right = torch.zeros(samples, dtype=torch.bool)
        right[list(places)] = True
        every.append(average_precision(scores, right))
    assert chance_ap(positives, samples) == pytest.approx(np.mean(every), abs=1e-12)


def test_a_rising_map_changes_nothing():
    g = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(40, 5, generator=g).double(), torch.rand(40, 5, generator=g) < 0.3
    a, b = multilabel_metrics(scores, labels), multilabel_metrics(scores.sigmoid(), labels)
    assert a.metrics == pytest.approx(b.metrics, abs=1e-12)
    order = torch.randperm(40, generator=g)
    assert multilabel_metrics(scores[order], labels[order]).metrics == pytest.approx(a.metrics, abs=1e-12)


def test_bad_input_is_refused():
    scores, labels = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="labels must be bool"):
        multilabel_metrics(scores, labels.long())
    with pytest.raises(ValueError, match="sample 1 has NaN for class 0"):
        multilabel_metrics(
            scores.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(torch.nan)), labels
        )
    with pytest.raises(ValueError, match="none of the 3 samples"):
        multilabel_metrics(scores, ~labels)
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        multilabel_metrics(scores, labels, ["a"])
    with pytest.raises(ValueError, match="needs a positive and a negative"):
        roc_auc(scores[:, 0], labels[:, 0])
    with pytest.raises(ValueError, match="at least one positive"):
        average_precision(scores[:, 0], ~labels[:, 0])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        d_prime(1.2)
