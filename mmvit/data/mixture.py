"""Position in the global stream -> (source, position in that source), for sources mixed by weight.

A fixed cycle of slots, each owned by one source, repeats for ever: proportions are exact over every cycle, no
source waits for another to end, and the position of each source follows from the global one by arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from mmvit.errors import UserError

_LONGEST = 10_000


class Mixture:
    """Which source each position of the stream comes from.

    Args:
        weights: one positive number per source; only their proportions count.
        unit: consecutive positions that come from the same source: 1, or the batch size where every batch
            must be of one source.

    Raises:
        UserError: no weight, or one that is not a positive number.
    """

    def __init__(self, weights: Sequence[float], unit: int = 1):
        if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
            raise UserError(f"data weights must be positive numbers, one per source; got {list(weights)}")
        if unit < 1:
            raise UserError(f"the mixture's unit must be at least 1, got {unit}")
        self.unit = unit
        self.slots = _spread(_counts([float(w) for w in weights]))
        self.per_cycle = np.bincount(self.slots, minlength=len(weights))
        self._before = np.zeros(len(self.slots), dtype=np.int64)
        for source in range(len(weights)):
            mine = self.slots == source
            self._before[mine] = np.arange(int(mine.sum()))

    def locate(self, position: int) -> tuple[int, int]:
        """(source, position in that source's own stream) of a global position >= 0."""
        turn, inside = divmod(position, self.unit)
        cycle, slot = divmod(turn, len(self.slots))
        source = int(self.slots[slot])
        return source, (cycle * int(self.per_cycle[source]) + int(self._before[slot])) * self.unit + inside


def _counts(weights: list[float]) -> list[int]:
    """Slots per cycle: exactly proportional where that takes at most 10,000 slots, else within 0.01 %."""
    total = sum(weights)
    shares = [Fraction(w / total).limit_denominator(_LONGEST) for w in weights]
    cycle = math.lcm(*(s.denominator for s in shares))
    if sum(shares) == 1 and cycle <= _LONGEST:
        return [int(s * cycle) for s in shares]
    wanted = [w / total * _LONGEST for w in weights]
    counts = [max(1, math.floor(w)) for w in wanted]
    by_rest = sorted(range(len(weights)), key=lambda i: wanted[i] - counts[i], reverse=True)
    for i in by_rest[: max(0, _LONGEST - sum(counts))]:
        counts[i] += 1
    return counts


def _spread(counts: list[int]) -> np.ndarray:
    """(sum of counts,) int64: source of each slot, every source as evenly spaced as whole slots allow."""
    due = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
    owner = np.concatenate([np.full(n, source) for source, n in enumerate(counts)])
    return owner[np.argsort(due, kind="stable")].astype(np.int64)
