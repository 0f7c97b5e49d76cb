"""Retrieval metrics between any two sets of embeddings, both ways, over full rankings.

Letters: N and M rows of the two sides, E embedding dim, Q queries, K places.
What is right is said by group numbers: a candidate is a positive of a query when their groups are equal, so
one caption per picture, five, or a caption shared by several pictures are the same case.
Source: Karpathy & Fei-Fei 2015 for the protocol (any positive within K counts, never averaged over a query's
positives); names of the metrics as CLIP_benchmark writes them.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvit.evaluators.ranking import NONE, chance_at, positive_ranks, score_blocks
from mmvit.search import SearchIndex

KS = (1, 5, 10)


def retrieval_metrics(
    a: Tensor,
    b: Tensor,
    group_a: Tensor,
    group_b: Tensor,
    names: tuple[str, str] = ("image", "text"),
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Metrics of both directions; "text_retrieval_recall@1" asks with images for texts (default names).

    Per direction: recall@K, chance@K (0..1, of a random order), mrr, map (0..1), median_rank, mean_rank (of
    the best positive), n (queries), candidates, without_positive (queries left out because nothing is
    right). "rsum" is the sum of all recalls in percent.

    Args:
        a: (N,E) any length but zero.
        b: (M,E) likewise.
        group_a: (N,) int64.
        group_b: (M,) int64; equal to a group of `a` = right.
        names: what `a` and `b` are.
        ks: the K of recall@K.

    Raises:
        ValueError: shapes that disagree, bad rows, or nothing that is right.
    """
    metrics: dict[str, float] = {}
    for queries, candidates, group_q, group_c, found in (
        (b, a, group_b, group_a, names[0]),
        (a, b, group_a, group_b, names[1]),
    ):
        one_way = direction_metrics(queries, candidates, group_q, group_c, ks)
        metrics |= {f"{found}_retrieval_{key}": value for key, value in one_way.items()}
    metrics["rsum"] = 100 * sum(value for key, value in metrics.items() if "_recall@" in key)
    return metrics


def direction_metrics(
    queries: Tensor,
    candidates: Tensor,
    group_q: Tensor,
    group_c: Tensor,
    ks: Sequence[int] = KS,
    same: bool = False,
) -> dict[str, float]:
    """Metrics of one direction: the names of `retrieval_metrics` without their prefix.

    Args:
        queries: (Q,E).
        candidates: (M,E).
        group_q: (Q,) int64.
        group_c: (M,) int64.
        ks: the K of recall@K.
        same: both sides are the same rows in the same order; a query then never finds itself.

    Raises:
        ValueError: shapes that disagree, bad rows, or no query with a positive.
    """
    for rows, group, what in ((queries, group_q, "queries"), (candidates, group_c, "candidates")):
        if group.shape != (len(rows),):
            raise ValueError(f"{what}: {len(rows)} rows but groups of shape {tuple(group.shape)}")
    if same and len(queries) != len(candidates):
        raise ValueError(f"same=True needs equal sides, got {len(queries)} and {len(candidates)} rows")
    best, precision, positives = [], [], []
    group_c = group_c.to(queries.device)
    for start, scores in score_blocks(queries, candidates):
        right = group_q[start : start + len(scores), None].to(scores.device) == group_c[None]
        if same:
            here = torch.arange(len(scores), device=scores.device)
            right[here, here + start] = False
            scores[here, here + start] = -torch.inf
        ranks = positive_ranks(scores, right)
        positives.append(right.sum(1).cpu())
        precision.append(_average_precision(ranks).cpu())
        best.append((ranks[:, 0] if ranks.shape[1] else torch.full((len(ranks),), NONE)).cpu())
    count = torch.cat(positives)
    asked = count > 0
    if not asked.any():
        raise ValueError("no query has a positive among the candidates: the groups of both sides never agree")
    rank, count = torch.cat(best)[asked].double(), count[asked]
    pool = len(candidates) - int(same)
    metrics = {f"recall@{k}": (rank <= k).double().mean().item() for k in ks}
    metrics |= {f"chance@{k}": chance_at(k, count, pool).mean().item() for k in ks}
    metrics |= {
        "mrr": (1 / rank).mean().item(),
        "map": torch.cat(precision)[asked].mean().item(),
        "median_rank": rank.quantile(0.5).item() if len(rank) < 2**24 else rank.median().item(),
        "mean_rank": rank.mean().item(),
        "n": len(rank),
        "candidates": pool,
        "without_positive": int((~asked).sum()),
    }
    return metrics


def approximate_metrics(
    queries: Tensor,
    candidates: Tensor,
    group_q: Tensor,
    group_c: Tensor,
    factory: str,
    ks: Sequence[int] = KS,
    recall: float = 0.95,
) -> dict[str, Any]:
    """What an approximate index, tuned on these queries, would have answered: never the headline.

    "recall@K" is the retrieval metric over what the index found, "overlap@K" the share of the exact first K
    that it found; "parameters", "curve", "ms_per_query" and "bytes_per_vector" say at what cost.

    Args:
        queries: (Q,E).
        candidates: (M,E).
        group_q: (Q,) int64.
        group_c: (M,) int64.
        factory: FAISS factory string.
        ks: the K of recall@K.
        recall: overlap that tuning aims at.

    Raises:
        ValueError: a factory string that FAISS cannot make for these rows, or as `direction_metrics`.
    """
    index = SearchIndex.build(candidates, range(len(candidates)), factory)
    curve = index.tune(queries, recall, max(ks), embeddings=candidates)
    started = time.perf_counter()
    found, _ = index.search_ids(queries, max(ks))
    seconds = time.perf_counter() - started
    truth, _ = SearchIndex.build(candidates, range(len(candidates)), "flat").search_ids(queries, max(ks))
    ids = torch.from_numpy(found)
    right = (group_c.cpu()[ids] == group_q.cpu()[:, None]) & (ids >= 0)
    asked = torch.isin(group_q.cpu(), group_c.cpu())
    metrics: dict[str, Any] = {"factory": index.factory, "parameters": index.parameters, "curve": curve}
    for k in ks:
        metrics[f"recall@{k}"] = right[asked, :k].any(1).double().mean().item()
        metrics[f"overlap@{k}"] = float((found[:, :k, None] == truth[:, None, :k]).any(1).mean())
    metrics["ms_per_query"] = round(1e3 * seconds / len(queries), 4)
    metrics["bytes_per_vector"] = round(index.nbytes / len(candidates), 1)
    return metrics


def rank_chance(group_q: Tensor, group_c: Tensor) -> dict[str, float]:
    """{"chance_mean_rank", "chance_median_rank"}: what a random order of the candidates gives, exactly.

    With P right among M candidates the best of them has the rank (M + 1) / (P + 1) on average. The median is
    the first rank that at least half of all random orders and queries reach.

    Args:
        group_q: (Q,) int64.
        group_c: (M,) int64; at least one agrees with a query's.
    """
    kinds, count = group_c.unique(return_counts=True)
    place = torch.searchsorted(kinds, group_q).clamp(max=len(kinds) - 1)
    positives = count[place][kinds[place] == group_q]
    pool = len(group_c)
    kind, queries = positives.unique(return_counts=True)
    missed, share = torch.ones(len(kind), dtype=torch.float64), queries.double() / queries.sum()
    for rank in range(1, pool + 1):
        missed *= (pool - kind - rank + 1).clamp(min=0).double() / (pool - rank + 1)
        if float((missed * share).sum()) <= 0.5 + 1e-9:  # a half, but for rounding
            break
    mean = ((pool + 1) / (positives.double() + 1)).mean().item()
    return {"chance_mean_rank": mean, "chance_median_rank": float(rank)}


def group_numbers(*sides: Sequence[Hashable]) -> list[Tensor]:
    """One (rows,) int64 per side; equal numbers where the values (captions, labels, keys) are equal."""
    number: dict[Hashable, int] = {}
    numbered = ([number.setdefault(value, len(number)) for value in side] for side in sides)
    return [torch.tensor(side, dtype=torch.int64) for side in numbered]


def first_of_each(values: Sequence[Hashable]) -> Tensor:
    """(U,) int64 rising positions at which a value stands for the first time: rows without repeats."""
    first: dict[Hashable, int] = {}
    for i, value in enumerate(values):
        first.setdefault(value, i)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _average_precision(ranks: Tensor) -> Tensor:
    """(Q,) float64: mean over a query's positives of (positives so far) / rank; 0 without positives."""
    found = ranks != NONE
    place = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    return (place / ranks.double() * found).sum(1) / found.sum(1).clamp(min=1)
