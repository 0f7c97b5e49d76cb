"""Which samples are held out together: folds in which no object stands on both sides.

Letters: N samples, K folds.
A fold is decided by a hash of the group's name, so it depends on no order of files and on no generator.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mmvit.evaluators.retrieval import group_numbers


def k_folds(groups: Sequence[Hashable], folds: int, seed: int = 0) -> Tensor:
    """(N,) int64 fold numbers 0..folds-1: equal groups share a fold, and folds are as even as groups allow.

    Large groups are placed first, each where fewest samples are; a hash of (seed, group) orders equal ones.

    Args:
        groups: N values; what must not be split: objects, recordings, keys.
        folds: K.
        seed: of the hash.

    Raises:
        ValueError: fewer than two folds, or fewer groups than folds.
    """
    size = Counter(groups)
    if folds < 2 or len(size) < folds:
        raise ValueError(
            f"{folds} folds of {len(size)} groups: expected at least 2 folds and a group for each"
        )
    order = sorted(size, key=lambda g: (-size[g], hashlib.sha256(f"{seed}\0{g}".encode()).digest()))
    filled, place = [0] * folds, {}
    for group in order:
        place[group] = min(range(folds), key=lambda fold: filled[fold])
        filled[place[group]] += size[group]
    return torch.tensor([place[group] for group in groups])


def given_folds(values: Sequence[Hashable]) -> Tensor:
    """(N,) int64 fold numbers from a field that states them (as ESC-50 does), in the order of their values.

    Raises:
        ValueError: a sample without the field, or fewer than two distinct values.
    """
    missing = sum(value is None for value in values)
    distinct = sorted({value for value in values if value is not None}, key=lambda v: (str(type(v)), v))
    if missing or len(distinct) < 2:
        raise ValueError(
            f"the folds have {len(distinct)} values and {missing} samples have none: need 2 or more"
        )
    return torch.tensor([distinct.index(value) for value in values])


def split_off(groups: Sequence[Hashable], share: float = 0.2, seed: int = 0) -> Tensor:
    """(N,) bool, True = held out: about `share` of the samples in whole groups, at least one group.

    Args:
        groups: N values of at least two kinds.
        share: 0..0.5 of the samples.
        seed: of the hash.

    Raises:
        ValueError: a single group.
    """
    parts = max(2, min(round(1 / share), len(set(groups))))
    return k_folds(groups, parts, seed) == 0


def crossing(groups: Sequence[Hashable], fold: Tensor) -> int:
    """How many groups have samples in more than one fold; 0 is what a fair split has."""
    (numbers,) = group_numbers(groups)
    pairs = torch.stack([numbers, fold.to(numbers)], 1).unique(dim=0)
    return int((pairs[:, 0].bincount() > 1).sum())
