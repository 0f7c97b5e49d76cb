"""Packets -> batches in the main process: counts what was skipped, stops where that is too much.

Workers only compute ahead; what comes, and in which order, was decided by (seed, position) before.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from mmvit.data.draws import Packet
from mmvit.errors import UserError
from mmvit.types import Batch

log = logging.getLogger(__name__)
_ENDLESS = 1 << 60
ROOM_PATIENCE = 30.0  # seconds that a worker waits for room in /dev/shm
T = TypeVar("T")


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
                collate_fn=_share,
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return start_workers(self._loader)

    def _next(self) -> Packet | None:
        """The next packet, None at the end."""
        if self._iterator is None:
            return None
        try:
            return next_of(self._iterator, "--data.workers")
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
        bad = sum(self.skipped.values())
        if self.drawn >= 200 and bad > self._max_bad_rate * self.drawn:
            self.close()
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.most_common())
            raise UserError(
                f"{bad} of {self.drawn} samples are unusable ({reasons}), more than "
                f"--data.max-bad-rate {self._max_bad_rate:g}; see scripts/make_shards.py --validate SHARDS"
            )


def start_workers(loader: Iterable[T]) -> Iterator[T]:
    """An iterator over a DataLoader whose dead workers are noticed by `next`, within seconds.

    PyTorch also sets a signal handler that raises in whatever line the program is at when a worker dies,
    where nobody could turn it into one clear error or save first: the handler before it is put back.

    Raises:
        UserError: the system has no room for them.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)
    except OSError as error:
        raise UserError(
            f"data workers cannot start: {error.strerror}; look at the room in /dev/shm and at ulimit -n, or "
            "use --data.workers 0"
        ) from None
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return iterator


def next_of(iterator: Iterator[T], option: str) -> T | None:
    """The next item of a DataLoader's iterator, None at the end.

    Args:
        iterator: from `start_workers`.
        option: the one that says how many workers there are, for the message.

    Raises:
        UserError: a worker died.
    """
    try:
        return next(iterator, None)
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # A worker that dies between a batch and its tensors leaves a broken connection behind.
        broken = not isinstance(error, RuntimeError) and hasattr(iterator, "_workers")
        if reason.startswith("Caught ") or not (broken or "DataLoader worker" in reason):
            raise
        if broken:
            reason = "in the middle of a batch"
    raise UserError(
        f"a data worker died ({reason}): often too little memory; try fewer {option}, or 0 to see the cause"
    )


def share(tensors: Iterable[Tensor | None], option: str) -> str | None:
    """Moves a worker's tensors to shared memory; None, or a sentence for the user when there is no room.

    PyTorch would do it in a thread of its own, where a full /dev/shm (64 MB in a container) stops the worker
    without a word and the run waits for ever. Here the worker waits for the run to use up earlier batches.

    Args:
        tensors: what is to be shared; nothing happens outside of a worker.
        option: the one that says how many workers there are, for the message.
    """
    if get_worker_info() is None:
        return None
    deadline = time.monotonic() + ROOM_PATIENCE
    for tensor in tensors:
        while tensor is not None and not tensor.is_shared():
            try:
                tensor.share_memory_()
            except RuntimeError as error:
                if "shared memory" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    return (
                        f"no room for a batch of {tensor.nbytes / 1e6:.2f} MB in /dev/shm, where workers "
                        f"leave it: make it larger (docker run --shm-size), or use fewer {option}, or 0"
                    )
                time.sleep(0.05)
    return None


def _share(packet: Any) -> Any:
    batch = packet.batch
    tensors = [getattr(batch, f.name) for f in dataclasses.fields(Batch)] if batch is not None else []
    problem = share((t for t in tensors if isinstance(t, Tensor)), "--data.workers")
    return packet if problem is None else Packet(failure=problem)


def _start_worker(_: int) -> None:
    """Nothing; a worker computes on one core and leaves signals to the main process."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _serve_on)


def _serve_on(number: int, frame: Any) -> None:
    """Nothing; the first SIGTERM is for the run, whose step in hand needs its batch; the second ends us.

    Launchers (torchrun, SLURM) signal a run's workers along with it. A worker ends when its loader is closed
    or the main process is gone.
    """
    signal.signal(number, signal.SIG_DFL)
