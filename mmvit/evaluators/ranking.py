"""Ranks of the right answers, counted in full and pessimistically: what every metric here is made of.

Letters: Q queries, M candidates, E embedding dim, P most positives of one query.
A rank is 1 + candidates that score higher + wrong ones that score the same, so that a collapsed model, to
which everything looks alike, scores zero and not one. Scores are float64: a process that lets float32
products round to TF32 or bfloat16 for training gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Scores this near count as equal: float32 embeddings say no more.
TIE = 1e-7
# A rank that does not exist: padding after a query's last positive.
NONE = torch.iinfo(torch.int64).max
_CELLS = 2**24


def score_blocks(queries: Tensor, candidates: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first query, (n,M) float64 cosines) block by block, so that memory stays near 400 MB at any size.

    Args:
        queries: (Q,E), any length but zero.
        candidates: (M,E), likewise, on the same device.

    Raises:
        ValueError: a row that is not finite or is zero (its number is named), or dimensions that differ.
    """
    left, right = _unit(queries, "queries"), _unit(candidates, "candidates")
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"queries have {left.shape[1]} dimensions, candidates {right.shape[1]}")
    step = max(1, _CELLS // max(1, len(right)))
    for start in range(0, len(left), step):
        yield start, left[start : start + step] @ right.T


def positive_ranks(scores: Tensor, positive: Tensor) -> Tensor:
    """(Q,P) int64 ranks of each query's positives, rising, from 1; `NONE` after the last one.

    Equal scores of a positive and a wrong candidate put the wrong one first; equal positives keep distinct
    ranks.

    Args:
        scores: (Q,M), larger is better; -inf takes a candidate out.
        positive: (Q,M) bool.
    """
    count = positive.sum(1)
    most = int(count.max()) if len(count) else 0
    right = _right_scores(scores, positive, count, most)
    if most <= 16:
        # The right ones are counted along and taken away again: no second copy of the scores is masked.
        bars = [right[:, p : p + 1] - TIE for p in range(most)]
        columns = [(scores >= bar).sum(1) - (right >= bar).sum(1) for bar in bars]
        above = torch.stack(columns, 1) if columns else right.long()
    else:
        wrong = scores.masked_fill(positive, -torch.inf)
        above = wrong.shape[1] - torch.searchsorted(wrong.sort(1).values, right - TIE)
    place = torch.arange(1, most + 1, device=scores.device)
    return (above + place).masked_fill(place > count[:, None], NONE)


def _right_scores(scores: Tensor, positive: Tensor, count: Tensor, most: int) -> Tensor:
    """(Q,P) scores of each query's positives, falling; -inf after the last one."""
    query, candidate = positive.nonzero(as_tuple=True)
    place = torch.arange(len(query), device=scores.device) - (count.cumsum(0) - count)[query]
    right = scores.new_full((len(scores), most), -torch.inf)
    right[query, place] = scores[query, candidate]
    return right.sort(1, descending=True).values


def chance_at(k: int, positives: Tensor, candidates: int) -> Tensor:
    """(Q,) float64 probability that a random order has a positive among its first k.

    Args:
        k: places looked at.
        positives: (Q,) count of positives of each query.
        candidates: how many candidates there are.
    """
    miss = torch.ones_like(positives, dtype=torch.float64)
    for i in range(min(k, candidates)):
        miss *= (candidates - positives - i).clamp(min=0).double() / (candidates - i)
    return 1 - miss


def _unit(x: Tensor, what: str) -> Tensor:
    """(N,E) float64 rows of length one."""
    if x.ndim != 2:
        raise ValueError(f"{what} must have shape (rows, dim), got {tuple(x.shape)}")
    x = x.double()
    length = x.norm(dim=1)
    bad = ~torch.isfinite(length) | (length == 0)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"{what}: row {row} is zero, NaN or infinite ({int(bad.sum())} such rows)")
    return x / length[:, None]
