"""A dataset's items, computed ahead by processes: `read_ahead` for whoever wants them in order.

Each worker has a connection of its own and shares no lock, queue or thread with anybody: one that dies, at
whatever moment, closes its connection, and that is all the others can see of it. (Queues and events that
processes share stay locked for ever when their holder is killed.)
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize, register_after_fork
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing  # teaches connections to hand tensors over as shared memory
from torch import Tensor

from mmvit.errors import UserError

log = logging.getLogger(__name__)
ROOM_PATIENCE = 30.0  # seconds that a worker waits for room in /dev/shm
END_PATIENCE = 5.0  # seconds that workers get to finish what they are at
SILENCE = 60.0  # seconds without an answer after which the log says so
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerInfo:
    """Which worker this process is: number `id` of `count`."""

    id: int
    count: int


_here: WorkerInfo | None = None


def get_worker_info() -> WorkerInfo | None:
    """Which worker this process is, None outside of workers."""
    return _here


def read_ahead(
    dataset: Any,
    indices: Iterable[int] | None,
    workers: int,
    *,
    option: str,
    finish: Callable[[T], T],
    prefetch: int = 2,
    start_method: str | None = None,
) -> Workers[T] | Generator[T, None, None]:
    """The items of a dataset in order, as an iterator with `close`; n workers take turns.

    Args:
        dataset: has items by index, or is an iterable of which every worker has its own copy.
        indices: of the items; None = iterate until all copies have ended.
        workers: processes; 0 = none, all happens in this one.
        option: the one that says how many workers there are, for messages.
        finish: the last thing done to an item where it was made, see `share`.
        prefetch: items that each worker may be ahead.
        start_method: fork, forkserver or spawn; None = the system's default.

    Raises:
        UserError: the system has no room for the workers; in `next`: a worker died.
    """
    if workers:
        return Workers(dataset, indices, workers, option, finish, prefetch, start_method)
    return (finish(item) for item in (dataset if indices is None else map(dataset.__getitem__, indices)))


class Workers(Iterator[T], Generic[T]):
    """Processes that compute items ahead; see `read_ahead`, which makes them.

    Attributes:
        processes: one per worker.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Iterable[int] | None,
        count: int,
        option: str,
        finish: Callable[[T], T],
        prefetch: int,
        start_method: str | None,
    ):
        self._option = option
        self._indices = iter(indices) if indices is not None else None
        self._turns: deque[int] = deque()  # the worker of each item that was asked for and has not come
        self.processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        # Runs before Python ends its children and waits for them, which would be for ever: they serve on
        # after a SIGTERM. Does nothing in processes forked from this one.
        self._end = Finalize(self, _end, (self.processes, self._pipes), exitpriority=10)
        register_after_fork(self, Workers._forget)
        context = multiprocessing.get_context(start_method)
        try:
            for number in range(count):
                self._start(context, (dataset, indices is not None, finish, WorkerInfo(number, count)))
        except OSError as error:
            self.close()
            raise UserError(
                f"data workers cannot start: {error.strerror}; look at the room in /dev/shm and at ulimit "
                f"-n, or use {option} 0"
            ) from None
        except BaseException:
            self.close()
            raise
        for _ in range(prefetch):
            for number in range(count):
                self._ask(number)

    def __next__(self) -> T:
        while self._turns:
            number = self._turns.popleft()
            kind, value = self._receive(number)
            if kind == "end":  # this worker's copy has ended; the others may go on
                continue
            if kind == "mistake":
                raise UserError(value)
            if kind == "refusal":
                raise UserError(
                    f"a data worker cannot hand over what it made: {value}; look at the length of TMPDIR and "
                    f"at ulimit -n, or use {self._option} 0"
                )
            if kind == "failure":
                raise RuntimeError(f"a data worker failed:\n{value}")
            self._ask(number)
            return value
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Nothing; ends the workers, the stubborn ones after some seconds by force."""
        self._turns.clear()
        self._end()

    def _forget(self) -> None:
        """Nothing; a forked process drops our ends, or closing them here would tell the workers nothing."""
        for pipe in self._pipes:
            pipe.close()

    def _start(self, context: Any, job: tuple[Any, ...]) -> None:
        ours, theirs = context.Pipe()
        self._pipes.append(ours)
        # Until a worker has its own handlers, a signal to the whole group would meet this program's.
        with theirs, _signals_held():
            process = context.Process(target=_work, args=(theirs, *job), daemon=True)
            process.start()
            self.processes.append(process)

    def _ask(self, number: int) -> None:
        index = next(self._indices, None) if self._indices is not None else 0
        if index is None:
            return
        with contextlib.suppress(OSError):  # it has died: its turn will show
            self._pipes[number].send(index)
        self._turns.append(number)

    def _receive(self, number: int) -> tuple[str, Any]:
        """(kind, value) that a worker answers.

        Raises:
            UserError: it died.
        """
        pipe, process, began = self._pipes[number], self.processes[number], time.monotonic()
        while not (ready := wait([pipe, process.sentinel], timeout=SILENCE)):
            waited = time.monotonic() - began
            log.warning("no answer from data worker %d (process %s) for %.0f s", number, process.pid, waited)
        # It may go in the middle of an answer, or before the answer's tensors have been fetched from it.
        with contextlib.suppress(EOFError, ConnectionError, FileNotFoundError):
            if pipe in ready or pipe.poll():
                return pipe.recv()
        process.join(END_PATIENCE)
        code = process.exitcode
        died = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
        self.close()
        raise UserError(
            f"a data worker died ({died}): often too little memory; try fewer {self._option}, or 0 to see "
            "the cause"
        )


def share(tensors: Iterable[Tensor | None], option: str) -> str | None:
    """Moves a worker's tensors to shared memory; None, or a sentence for the user when there is no room.

    Where /dev/shm is full (64 MB in a container), the worker waits for the run to use up earlier batches.

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


def _end(processes: list[BaseProcess], pipes: list[Connection]) -> None:
    """Nothing; workers see their connection close, and are killed when they do not end."""
    for pipe in pipes:
        pipe.close()
    deadline = time.monotonic() + END_PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join(END_PATIENCE)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """SIGTERM and SIGINT wait until the end of the block; processes started in it let them in themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    pipe: Connection, dataset: Any, indexed: bool, finish: Callable[[Any], Any], me: WorkerInfo
) -> None:
    """Nothing; answers every request until the connection or the main process is gone."""
    global _here
    _here, parent = me, os.getppid()
    _set_up()
    try:
        items: Iterator[Any] | None = None
        while os.getppid() == parent:
            if not pipe.poll(1.0):
                continue
            index = pipe.recv()
            try:
                if not indexed and items is None:
                    items = iter(dataset)
                answer = ("item", finish(dataset[index] if items is None else next(items)))
            except StopIteration:
                answer = ("end", None)
            except UserError as error:
                answer = ("mistake", str(error))
            except Exception:
                answer = ("failure", traceback.format_exc())
            _send(pipe, answer)
    except (EOFError, OSError):  # closed by the other end
        pass


def _send(pipe: Connection, answer: tuple[str, Any]) -> None:
    try:
        pipe.send(answer)
    except ConnectionError:
        raise
    except OSError as error:  # tensors go by a socket of their own
        pipe.send(("refusal", str(error)))
    except Exception:  # an item that cannot be pickled
        pipe.send(("failure", traceback.format_exc()))


def _set_up() -> None:
    """Nothing; a worker computes on one core and leaves signals to the main process."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _serve_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


def _serve_on(number: int, frame: Any) -> None:
    """Nothing; the first SIGTERM is for the run, whose step in hand needs its batch; the second ends us.

    Launchers (torchrun, SLURM) signal a run's workers along with it. A worker ends when its loader is closed
    or the main process is gone.
    """
    signal.signal(number, signal.SIG_DFL)
