"""Packets -> batches in the main process: counts what was skipped, stops where that is too much.

Workers only compute ahead; what comes, and in which order, was decided by (seed, position) before.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mmvit.data.draws import Packet
from mmvit.errors import UserError
from mmvit.types import Batch

log = logging.getLogger(__name__)
_ENDLESS = 1 << 60


class Loader:
    """An iterable of batches that counts what it skipped; use it in a `with`, or call `close`.

    Attributes:
        samples: samples in one epoch.
        samples_seen: position in the stream after the last batch that was handed out.
        skipped: bad samples so far on this rank, by reason.
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
        self._batches = batches
        self._batch_size = batch_size
        self._max_bad_rate = max_bad_rate
        self._iterator: Iterator[Packet] | None = None
        stream = isinstance(dataset, IterableDataset)
        if workers > (cores := len(os.sched_getaffinity(0))):
            log.warning("%d data workers share %d cores: fewer may be faster", workers, cores)
        with warnings.catch_warnings():  # our line says it shorter
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            self._loader: Iterable[Packet] = DataLoader(
                dataset,
                batch_size=None,
                sampler=None if stream else range(_ENDLESS if batches is None else batches),
                num_workers=workers,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                prefetch_factor=prefetch if workers else None,
                multiprocessing_context=start_method if workers else None,
                generator=torch.Generator().manual_seed(0),  # leaves the program's own generator alone
            )

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
        self._iterator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Iterator[Packet]:
        """Starts the workers; their death is then noticed by `_next`, within seconds.

        PyTorch also sets a signal handler that raises in whatever line the program is at when a worker dies,
        where nobody could turn it into one clear error or save first: the handler before it is put back.
        """
        before = signal.getsignal(signal.SIGCHLD)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            iterator = iter(self._loader)
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def _next(self) -> Packet | None:
        """The next packet, None at the end."""
        if self._iterator is None:
            return None
        try:
            return next(self._iterator, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.close()
            raise UserError(
                f"a data worker died ({str(error).splitlines()[0]}): often too little memory; try fewer "
                "--data.workers, or 0 to see the cause"
            ) from None

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
        bad = sum(self.skipped.values())
        if self.drawn >= 200 and bad > self._max_bad_rate * self.drawn:
            self.close()
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.most_common())
            raise UserError(
                f"{bad} of {self.drawn} samples are unusable ({reasons}), more than "
                f"--data.max-bad-rate {self._max_bad_rate:g}; see scripts/make_shards.py --validate SHARDS"
            )


def _unchanged(packet: Any) -> Any:
    return packet


def _start_worker(_: int) -> None:
    """Nothing; a worker computes on one core and leaves Ctrl-C to the main process."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
