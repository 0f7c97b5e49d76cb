"""Texts of similar length together: the padding of a batch without most of its cost.

Shape letters: B texts, L length of the longest, G groups.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

# What one more pass costs beside its tokens, in tokens: the calls of a small tower on a CPU.
PASS = 128


def length_groups(mask: Tensor, cost: int = PASS) -> list[tuple[Tensor, int]]:
    """Rows (n,) int64 and width of each group, narrowest first: together every row once.

    The groups minimise the tokens that are computed, sum of n * width, plus `cost` for each group; a row's
    width is the position after its last real token, at least 1.

    Args:
        mask: (B,L) bool, True = real token.
        cost: tokens that a group must save to be worth it.
    """
    L = mask.shape[1]
    widths = (mask * torch.arange(1, L + 1, device=mask.device)).amax(1).clamp(min=1)
    found, counts = (values.tolist() for values in widths.unique(return_counts=True))
    before = [0, *itertools.accumulate(counts)]
    # best[k]: least cost of the k narrowest widths; the last of their groups begins at width number begin[k].
    best, begin = [0], [0]
    for k in range(1, len(found) + 1):
        total, j = min((best[j] + (before[k] - before[j]) * found[k - 1] + cost, j) for j in range(k))
        best.append(total)
        begin.append(j)
    groups, k = [], len(found)
    while k:
        low = found[begin[k] - 1] if begin[k] else 0
        rows = ((widths > low) & (widths <= found[k - 1])).nonzero().squeeze(1)
        groups.append((rows, found[k - 1]))
        k = begin[k]
    return groups[::-1]
