"""Position in the endless stream of one source -> (epoch, sample), as a pure function.

So a run's data position is one integer, and ranks and workers cannot change what is drawn. Each epoch
permutes
the shards, lays them end to end, and shuffles the samples inside blocks of that line: reading touches few
shards at a time, and every sample comes exactly once per epoch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np

from mmvit.errors import UserError


class Order:
    """The seeded order of a source's samples.

    Args:
        samples_per_shard: how many samples each shard holds, in index order.
        seed: another seed, another order.
        shuffle_block: samples that are shuffled together; 1 leaves the order inside the shards as it is.

    Raises:
        UserError: no samples, or a block below 1.
    """

    def __init__(self, samples_per_shard: Sequence[int], seed: int | str, shuffle_block: int = 65536):
        self.sizes = np.asarray(samples_per_shard, dtype=np.int64)
        self.samples = int(self.sizes.sum())
        self.seed = seed
        self.block = shuffle_block
        if self.samples < 1:
            raise UserError("a data source holds no samples")
        if shuffle_block < 1:
            raise UserError(f"shuffle_block={shuffle_block} must be at least 1")
        self._first = np.cumsum(self.sizes) - self.sizes
        self._shards: tuple[int, np.ndarray, np.ndarray] | None = None
        self._blocks: dict[tuple[int, int], np.ndarray] = {}

    def sample(self, position: int) -> tuple[int, int]:
        """(epoch, i) of a position >= 0: the epoch it falls in and the sample's number in the index."""
        epoch, line = divmod(position, self.samples)
        block, inside = divmod(line, self.block)
        line = block * self.block + int(self._block(epoch, block)[inside])
        shards, ends = self._epoch(epoch)
        place = int(np.searchsorted(ends, line, side="right"))
        shard = int(shards[place])
        return epoch, int(self._first[shard] + line - (ends[place] - self.sizes[shard]))

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of one epoch the shards in order, and where each ends on the line of samples."""
        if self._shards is None or self._shards[0] != epoch:
            order = list(range(len(self.sizes)))
            random.Random(f"{self.seed}:{epoch}").shuffle(order)
            shards = np.array(order, dtype=np.int64)
            self._shards = (epoch, shards, np.cumsum(self.sizes[shards]))
        return self._shards[1:]

    def _block(self, epoch: int, block: int) -> np.ndarray:
        """The permutation of one block; the last three that were used stay in memory."""
        found = self._blocks.get((epoch, block))
        if found is None:
            size = min(self.block, self.samples - block * self.block)
            found = permutation(size, f"{self.seed}:{epoch}:{block}")
            while len(self._blocks) >= 3:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[epoch, block] = found
        return found


def permutation(size: int, seed: str) -> np.ndarray:
    """(size,) int64, 0..size-1 in an order that depends on the seed alone, on every machine.

    Source: numbers 0..size-1 sorted by their SplitMix64 hash (Steele, Lea and Flood 2014).
    """
    start = np.uint64(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little"))
    x = (np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) + start
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")
