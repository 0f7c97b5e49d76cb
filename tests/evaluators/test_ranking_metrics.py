"""Zero-shot and retrieval metrics against hand-made answers, slow oracles and invariances."""

import itertools

import numpy as np
import pytest
import torch

from mmvit.evaluators import ranking
from mmvit.evaluators.ranking import NONE, chance_at, positive_ranks
from mmvit.evaluators.retrieval import (
    approximate_metrics,
    direction_metrics,
    first_of_each,
    group_numbers,
    retrieval_metrics,
)
from mmvit.evaluators.zero_shot import label_numbers, predictions, zero_shot_metrics


def rows(n, dim=16, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def embeddings_with_scores(scores):
    """(a, b) whose cosines are half of `scores` (Q,M): one axis per query, the rest of each b elsewhere."""
    q, m = scores.shape
    b = torch.zeros(m, q + m)
    b[:, :q] = scores.T / 2
    b[:, q:] = torch.diag((1 - (b[:, :q] ** 2).sum(1)).sqrt())
    return torch.eye(q, q + m), b


TOY = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.3, 0.7, 0.6, 0.5]])  # 2 images x 4 texts, two texts an image


def test_toy_numbers():
    image, text = embeddings_with_scores(TOY)
    m = retrieval_metrics(image, text, torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1]), ks=(1, 2))
    assert m["image_retrieval_recall@1"] == 1.0
    assert m["text_retrieval_recall@1"] == 0.5
    assert m["text_retrieval_recall@2"] == 1.0
    assert m["text_retrieval_mrr"] == pytest.approx(0.75)
    assert m["text_retrieval_map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert m["text_retrieval_median_rank"] == m["text_retrieval_mean_rank"] == 1.5
    assert m["rsum"] == pytest.approx(100 * (1 + 1 + 0.5 + 1))
    assert (m["image_retrieval_n"], m["text_retrieval_n"]) == (4, 2)
    assert m["image_retrieval_chance@1"] == pytest.approx(0.5)
    assert m["text_retrieval_chance@2"] == pytest.approx(1 - (2 / 4) * (1 / 3))


def slow_ranks(scores, positive):
    """Ranks by sorting, wrong answers before right ones of the same score."""
    out = []
    for score, right in zip(scores.tolist(), positive.tolist(), strict=True):
        order = sorted(range(len(score)), key=lambda j: (-score[j], right[j]))
        out.append([1 + place for place, j in enumerate(order) if right[j]])
    return out


@pytest.mark.parametrize("share", [0.05, 0.5])  # few positives: counting; many: sorting
def test_ranks_equal_sorting_with_many_ties(share):
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 12, (40, 60), generator=g).double() / 12
    positive = torch.rand(40, 60, generator=g) < share
    ranks = positive_ranks(scores, positive)
    assert [[r for r in row if r != NONE] for row in ranks.tolist()] == slow_ranks(scores, positive)


def slow_metrics(queries, candidates, group_q, group_c, k):
    cosine = torch.nn.functional.cosine_similarity(
        queries[:, None].double(), candidates[None].double(), dim=-1
    )
    ranks = slow_ranks(cosine, group_q[:, None] == group_c[None])
    ranks = [r for r in ranks if r]
    best = np.array([r[0] for r in ranks])
    ap = [np.mean([(i + 1) / x for i, x in enumerate(r)]) for r in ranks]
    return (best <= k).mean(), (1 / best).mean(), np.mean(ap), np.median(best), best.mean(), len(ranks)


def test_metrics_equal_the_slow_oracle(monkeypatch):
    monkeypatch.setattr(ranking, "_CELLS", 1000)  # many small blocks
    g = torch.Generator().manual_seed(3)
    group_q, group_c = torch.randint(0, 30, (83,), generator=g), torch.randint(3, 33, (121,), generator=g)
    centres = rows(33, seed=1)
    queries, candidates = centres[group_q] + 2 * rows(83, seed=4), centres[group_c] + 2 * rows(121, seed=5)
    m = direction_metrics(queries, candidates, group_q, group_c, (5,))
    expected = slow_metrics(queries, candidates, group_q, group_c, 5)
    got = [m[name] for name in ("recall@5", "mrr", "map", "median_rank", "mean_rank", "n")]
    assert got == pytest.approx(expected, abs=1e-12)
    assert m["n"] + m["without_positive"] == 83
    assert m["without_positive"] > 0


def test_a_collapsed_model_scores_zero():
    same = torch.ones(50, 7)
    m = retrieval_metrics(same, same, torch.arange(50), torch.arange(50))
    assert all(m[f"{side}_retrieval_recall@{k}"] == 0 for side in ("image", "text") for k in (1, 5, 10))
    assert m["image_retrieval_mean_rank"] == 50
    z = zero_shot_metrics(same, same[:10], torch.arange(50) % 10)
    assert (z["acc1"], z["acc5"], z["mean_per_class_recall"]) == (0, 0, 0)


def test_a_perfect_model_scores_one():
    x = rows(40)
    m = retrieval_metrics(x, 5 * x, torch.arange(40), torch.arange(40))
    assert m["rsum"] == 600
    assert m["text_retrieval_map"] == m["image_retrieval_mrr"] == m["text_retrieval_median_rank"] == 1


def test_one_positive_makes_map_equal_mrr_and_recall_grow_with_k():
    m = retrieval_metrics(rows(60), rows(60, seed=1), torch.arange(60), torch.arange(60), ks=(1, 2, 4, 8, 60))
    for side in ("image", "text"):
        assert m[f"{side}_retrieval_map"] == pytest.approx(m[f"{side}_retrieval_mrr"], abs=1e-12)
        recalls = [m[f"{side}_retrieval_recall@{k}"] for k in (1, 2, 4, 8, 60)]
        assert recalls == sorted(recalls)
        assert recalls[-1] == 1
        assert m[f"{side}_retrieval_chance@4"] == pytest.approx(4 / 60)


def test_ranks_do_not_change_under_a_rising_map():
    g = torch.Generator().manual_seed(0)
    scores, positive = torch.rand(20, 30, generator=g).double(), torch.rand(20, 30, generator=g) < 0.2
    assert torch.equal(positive_ranks(scores, positive), positive_ranks(3 * scores - 1, positive))


def test_order_of_rows_and_lengths_do_not_matter():
    a, b, g = rows(30), rows(45, seed=1), torch.arange(45) % 30
    m = retrieval_metrics(a, b, torch.arange(30), g)
    p, q = torch.randperm(30), torch.randperm(45)
    scaled = a[p] * torch.rand(30, 1).add(0.1)
    assert retrieval_metrics(scaled, b[q], torch.arange(30)[p], g[q]) == pytest.approx(m, abs=1e-12)


def test_training_precision_does_not_reach_the_numbers():
    a, b = rows(50, 256), rows(70, 256, seed=1)
    expected = retrieval_metrics(a, b, torch.arange(50), torch.arange(70) % 50)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert retrieval_metrics(a, b, torch.arange(50), torch.arange(70) % 50) == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("positives", "k"), [(1, 1), (1, 5), (3, 5), (8, 3), (3, 20)])
def test_chance_is_what_random_orders_reach(positives, k):
    draws = list(itertools.combinations(range(10), positives))
    expected = np.mean([any(place < k for place in d) for d in draws])
    assert chance_at(k, torch.tensor([positives]), 10).item() == pytest.approx(expected)


def test_a_query_never_finds_itself_in_its_own_set():
    x = torch.cat([rows(20), rows(20) + 0.01])
    groups = torch.arange(40) % 20
    m = direction_metrics(x, x, groups, groups, same=True)
    assert m["recall@1"] == 1
    assert m["candidates"] == 39
    alone = direction_metrics(
        x, x, torch.tensor([0, 0, *range(1, 39)]), torch.tensor([0, 0, *range(1, 39)]), same=True
    )
    assert (alone["n"], alone["without_positive"]) == (2, 38)


def test_bad_input_is_refused():
    x, g = rows(4), torch.arange(4)
    with pytest.raises(ValueError, match="never agree"):
        direction_metrics(x, x, g, g + 10)
    with pytest.raises(ValueError, match="groups of shape"):
        direction_metrics(x, x, g[:3], g)
    with pytest.raises(ValueError, match="candidates: row 2 is zero, NaN"):
        direction_metrics(x, x.index_fill(0, torch.tensor([2]), torch.nan), g, g)
    with pytest.raises(ValueError, match="16 dimensions, candidates 8"):
        direction_metrics(x, x[:, :8], g, g)


def test_groups_and_first_rows():
    a, b = group_numbers(["fox", "cat", "fox"], ["cat", "dog"])
    assert a.tolist() == [0, 1, 0]
    assert b.tolist() == [1, 2]
    assert first_of_each(["x", "y", "x", "z", "y"]).tolist() == [0, 1, 3]


def test_approximate_index_is_compared_with_exact():
    centres = rows(100, 32)
    group = torch.arange(2000) % 100
    base, queries = centres[group] + 0.5 * rows(2000, 32, 1), centres + 0.5 * rows(100, 32, 2)
    m = approximate_metrics(queries, base, torch.arange(100), group, "IVF32,Flat", recall=0.9)
    exact = direction_metrics(queries, base, torch.arange(100), group)
    assert m["overlap@10"] >= 0.9
    assert m["recall@10"] == pytest.approx(exact["recall@10"], abs=0.05)
    assert m["bytes_per_vector"] > 128
    flat = approximate_metrics(queries, base, torch.arange(100), group, "flat")
    assert (flat["overlap@1"], flat["overlap@10"]) == (1, 1)
    assert flat["recall@5"] == exact["recall@5"]


def test_zero_shot_known_answers():
    classes = torch.eye(6)
    x = torch.eye(6)[[0, 0, 0, 1, 2, 3]] + 0.1 * torch.eye(6)[[5, 5, 5, 5, 5, 4]]
    labels = torch.tensor(
        [0, 0, 5, 1, 3, 4]
    )  # the third is second best, the fifth misses, the sixth is second best
    m = zero_shot_metrics(x, classes, labels)
    assert m["acc1"] == pytest.approx(3 / 6)
    assert m["acc5"] == pytest.approx(
        5 / 6
    )  # the fifth sample's class ties with other zeros: counted as last
    assert m["mean_per_class_recall"] == pytest.approx((1 + 1 + 0 + 0 + 0) / 5)  # classes 0, 1, 3, 4, 5 occur
    assert m["chance_acc1"] == pytest.approx(1 / 6)
    assert m["chance_acc5"] == pytest.approx(5 / 6)
    assert (m["n"], m["classes"], m["without_label"]) == (6, 6, 0)


def test_zero_shot_equals_argmax_and_topk():
    x, classes = rows(300), rows(20, seed=1)
    labels = torch.arange(300) % 20
    logits = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(classes, dim=1).T
    m = zero_shot_metrics(x, classes, labels)
    assert m["acc1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    assert m["acc5"] == pytest.approx(top5)
    assert m["mean_per_class_recall"] == pytest.approx(m["acc1"])  # balanced classes
    scores, ids = predictions(x, classes, 5)
    assert torch.equal(ids, logits.topk(5).indices)
    torch.testing.assert_close(scores, logits.topk(5).values, atol=1e-6, rtol=0)


def test_several_right_labels_and_samples_without_any():
    x, classes = torch.eye(4), torch.eye(4)
    labels = label_numbers(["a", ["b", "c"], [], "z"], ["a", "b", "c", "d"])
    m = zero_shot_metrics(x, classes, labels)
    assert (m["acc1"], m["n"], m["without_label"]) == (1.0, 2, 2)
    assert m["chance_acc1"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert "mean_per_class_recall" not in m
    one = label_numbers(["a", None, "z"], ["z", "a"])
    assert one.tolist() == [1, -1, 0]


def test_zero_shot_refuses_bad_labels():
    with pytest.raises(ValueError, match=r"-1\.\.3"):
        zero_shot_metrics(rows(2), rows(4), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="none of the 2 samples"):
        zero_shot_metrics(rows(2), rows(4), torch.tensor([-1, -1]))
    with pytest.raises(ValueError, match="labels must be"):
        zero_shot_metrics(rows(2), rows(4), torch.zeros(2, 3, dtype=torch.bool))
