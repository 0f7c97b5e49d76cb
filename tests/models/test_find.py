"""The best pairs of candidates and queries: as if every logit had been sorted, whatever the block size."""

import dataclasses

import pytest
import torch

from mmvit.heads.detect import query_logits
from mmvit.models.find import find
from mmvit.types import Candidates

B, N, Q, E = 2, 6, 7, 5


@pytest.fixture
def candidates():
    torch.manual_seed(0)
    return Candidates(
        torch.randn(B, N, E), torch.randn(B, N) * 0.1, torch.rand(B, N) * 4 + 1, torch.rand(B, N, 4), (2, 3)
    )


@pytest.fixture
def queries():
    return torch.randn(Q, E, generator=torch.Generator().manual_seed(1))


def logits_of(c, queries):
    return query_logits(c.embeddings, c.shift, c.scale, queries)


@pytest.mark.parametrize("block", [1, 30, 10**6])
def test_the_best_pairs_are_those_of_a_sort(candidates, queries, block):
    found = find(candidates, queries, top_k=9, block=block)
    logits = logits_of(candidates, queries)
    values, order = logits.flatten(1).sort(descending=True)
    torch.testing.assert_close(found.scores, values[:, :9].sigmoid())
    assert torch.equal(found.labels, order[:, :9] % Q)
    for b in range(B):
        assert torch.equal(found.boxes[b], candidates.boxes[b, order[b, :9] // Q])


def test_all_pairs_can_be_asked_for(candidates, queries):
    found = find(candidates, queries, top_k=10_000, block=20)
    assert found.scores.shape == (B, N * Q)
    assert (found.scores.diff() <= 0).all()
    for b in range(B):
        assert found.labels[b].bincount().tolist() == [N] * Q


def test_a_threshold_leaves_marked_places(candidates, queries):
    whole = find(candidates, queries, top_k=N * Q)
    threshold = float(whole.scores[0, 4])
    found = find(candidates, queries, top_k=N * Q, threshold=threshold)
    assert (found.labels[0] >= 0).sum() == 4
    assert torch.equal(found.labels >= 0, whole.scores > threshold)
    assert not found.scores[found.labels < 0].any()
    assert not found.boxes[found.labels < 0].any()


@pytest.mark.parametrize("block", [1, 10**6])
def test_one_result_a_candidate(candidates, queries, block):
    found = find(candidates, queries, per_token=True, block=block)
    best, labels = logits_of(candidates, queries).max(-1)
    assert found.scores.shape == (B, N)
    values, order = best.sort(descending=True)
    torch.testing.assert_close(found.scores, values.sigmoid())
    assert torch.equal(found.labels, labels.gather(1, order))


def test_missing_queries_and_padding_are_never_found(candidates, queries):
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[0, :4] = False
    asked = torch.ones(B, Q, dtype=torch.bool)
    asked[1, 2:] = False
    padded = dataclasses.replace(candidates, mask=mask)
    found = find(padded, queries, asked, top_k=N * Q, block=30)
    assert (found.labels >= 0).sum(1).tolist() == [2 * Q, N * 2]
    assert set(found.labels[1].tolist()) == {-1, 0, 1}
    same = find(candidates, queries[:2], top_k=N * 2)
    assert torch.equal(found.labels[1, : N * 2], same.labels[1])


def test_each_picture_may_have_its_own_queries(candidates, queries):
    other = queries.flip(0)
    own = find(candidates, torch.stack([queries, other]), top_k=5, block=30)
    for b, asked in enumerate((queries, other)):
        alone = find(candidates, asked, top_k=5)
        assert torch.equal(own.labels[b], alone.labels[b])
        torch.testing.assert_close(own.scores[b], alone.scores[b])


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_prompts_of_a_query_are_averaged(candidates, queries, block):
    rows = queries[:6]  # three queries of two prompts
    logits = logits_of(candidates, rows).unflatten(-1, (3, 2)).double()
    for ensemble, mean in (("logit", logits.mean(-1).sigmoid()), ("prob", logits.sigmoid().mean(-1))):
        found = find(candidates, rows, prompts=2, ensemble=ensemble, top_k=8, block=block)
        values, order = mean.flatten(1).sort(descending=True)
        torch.testing.assert_close(found.scores.double(), values[:, :8], atol=1e-6, rtol=0)
        assert torch.equal(found.labels, order[:, :8] % 3)


@pytest.mark.parametrize("ensemble", ["logit", "prob"])
def test_scores_that_round_to_zero_are_results_unless_a_threshold_is_set(candidates, queries, ensemble):
    c = dataclasses.replace(candidates, shift=torch.full((B, N), -900.0), scale=torch.ones(B, N))
    found = find(c, queries[:6], prompts=2, ensemble=ensemble, top_k=4)
    assert not found.scores.any()
    assert (found.labels >= 0).all()
    assert (find(c, queries[:6], prompts=2, ensemble=ensemble, threshold=1e-6).labels == -1).all()


def test_no_queries_find_nothing(candidates):
    found = find(candidates, torch.zeros(0, E))
    assert [tuple(value.shape) for value in found] == [(B, 0), (B, 0), (B, 0, 4)]


def test_bad_calls_are_refused(candidates, queries):
    with pytest.raises(ValueError, match="top_k=0 must be 1 or more"):
        find(candidates, queries, top_k=0)
    with pytest.raises(ValueError, match=r"threshold=2 must lie in 0\.\.1"):
        find(candidates, queries, threshold=2)
    with pytest.raises(ValueError, match="7 query rows are not divisible into 2 prompts"):
        find(candidates, queries, prompts=2)
