"""Packets -> batches in the main process: counts what was skipped, stops where that is too much.

Workers only compute ahead; what comes, and in which order, was decided by (seed, position) before.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Self

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from mmvit.data.draws import Packet, unusable
from mmvit.data.workers import Workers, read_ahead, share
from mmvit.errors import UserError
from mmvit.types import Batch

log = logging.getLogger(__name__)


class Loader:
    """An iterable of batches that counts what it skipped; use it in a `with`, or call `close`.

    Attributes:
        dataset: the packets, before they are counted.
        samples: samples in one epoch.
        samples_seen: position in the stream after the last batch that was handed out.
        skipped: bad samples (and, as "box-…", bad boxes of good samples) so far on this rank, by reason.
        drawn: samples tried so far on this rank.
    """

    def __init__(
        self,
        dataset: Dataset[Packet],
        batches: int | None,
        *,
        samples: int,
        batch_size: int,
        start: int = 0,
        workers: int = 0,
        max_bad_rate: float = 1.0,
        prefetch: int = 2,
        start_method: str | None = None,
    ):
        if workers < 0:
            raise UserError(f"data.workers={workers} must be 0 or more")
        self.samples = samples
        self.samples_seen = start
        self.skipped: Counter[str] = Counter()
        self.drawn = 0
        self.dataset = dataset
        self._batches = batches
        self._batch_size = batch_size
        self._max_bad_rate = max_bad_rate
        self._workers = workers
        self._prefetch = prefetch
        self._start_method = start_method
        self._iterator: Workers[Packet] | Generator[Packet, None, None] | None = None
        if workers > (cores := len(os.sched_getaffinity(0))):
            log.warning("%d data workers share %d cores: fewer may be faster", workers, cores)

    def __len__(self) -> int:
        """Batches that an iteration hands out at most.

        Raises:
            TypeError: the loader is endless.
        """
        if self._batches is None:
            raise TypeError("this loader is endless: it has no length")
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        self._iterator = self._start()
        done = 0
        while self._batches is None or done < self._batches:
            packet = self._next()
            if packet is None:
                return
            done += 1
            self._account(packet)
            if packet.batch is not None:
                self.samples_seen = packet.batch.position + self._batch_size
                yield packet.batch

    def close(self) -> None:
        """Nothing; ends the workers. Iterating again starts from the beginning."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Workers[Packet] | Generator[Packet, None, None]:
        endless = itertools.count() if self._batches is None else range(self._batches)
        return read_ahead(
            self.dataset,
            None if isinstance(self.dataset, IterableDataset) else endless,
            self._workers,
            option="--data.workers",
            finish=_share,
            prefetch=self._prefetch,
            start_method=self._start_method,
        )

    def _next(self) -> Packet | None:
        """The next packet, None at the end."""
        if self._iterator is None:
            return None
        try:
            return next(self._iterator, None)
        except UserError:
            self.close()
            raise

    def _account(self, packet: Packet) -> None:
        """Nothing; adds up and reports bad samples, and stops the run where there are too many.

        Raises:
            UserError: the worker failed, or more than `max_bad_rate` of at least 200 samples are bad.
        """
        if packet.failure is not None:
            self.close()
            raise UserError(packet.failure)
        self.drawn += packet.drawn
        for reason, count in packet.skipped.items():
            before = self.skipped[reason]
            self.skipped[reason] += count
            if before // 1000 != (before + count) // 1000 or not before:
                log.warning("skipped (%d so far): %s", before + count, packet.examples.get(reason, reason))
        bad = unusable(self.skipped)
        if self.drawn >= 200 and bad > self._max_bad_rate * self.drawn:
            self.close()
            reasons = ", ".join(f"{r} {count}" for r, count in self.skipped.most_common() if unusable({r: 1}))
            raise UserError(
                f"{bad} of {self.drawn} samples are unusable ({reasons}), more than "
                f"--data.max-bad-rate {self._max_bad_rate:g}; see scripts/make_shards.py --validate SHARDS"
            )


def _share(packet: Packet) -> Packet:
    batch = packet.batch
    tensors = [getattr(batch, f.name) for f in dataclasses.fields(Batch)] if batch is not None else []
    problem = share((t for t in tensors if isinstance(t, Tensor)), "--data.workers")
    return packet if problem is None else Packet(failure=problem)
