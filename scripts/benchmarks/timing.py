"""How two programs are compared: in turn, in one process or in fresh ones, as ratios of the same run."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from mmvit.errors import UserError

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every comparison is told.

    Attributes:
        device: where models run.
        threads: CPU threads of this process.
        rounds: counted pairs of each comparison.
        small: sizes that take seconds, to see that the programs run; their figures mean nothing.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    rounds: int = 5
    small: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        work: what was done, sizes and types included.
        ours, peer: the two figures; None = did not run, `note` says why.
        unit: of both, e.g. "ms", "MiB".
        ratio: how many times better ours is, above 1 = faster or smaller; None without a peer.
        peer_name: whom it is compared with.
        aim: the ratio that was asked for, or None.
        note: what a reader must know besides.
    """

    work: str
    ours: float | None
    peer: float | None
    unit: str
    ratio: float | None
    peer_name: str
    aim: float | None = None
    note: str = ""

    HEADER = "| work | ours | peer | unit | ours is better | aim | peer is |" + "\n|" + " --- |" * 7

    def __str__(self) -> str:
        def show(value: float | None, form: str = ".4g") -> str:
            return "–" if value is None else f"{value:,.1f}" if value >= 1000 else f"{value:{form}}"

        ratio = "–" if self.ratio is None else f"{self.ratio:.2f}x"
        aim = "" if self.aim is None else f"{self.aim:g}x"
        peer = f"{self.peer_name}; {self.note}" if self.note else self.peer_name
        cells = (self.work, show(self.ours), show(self.peer), self.unit, ratio, aim, peer)
        return f"| {' | '.join(cells)} |"


def spent(call: Call, device: str = "cpu") -> float:
    """Seconds of one call: CPU seconds of this process on CPUs, wall seconds on GPUs."""
    if device == "cuda":
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - begun
    begun = time.process_time()
    call()
    return time.process_time() - begun


def compare(
    work: str,
    ours: Call,
    peer: Call,
    options: Options,
    *,
    peer_name: str,
    aim: float | None = None,
    note: str = "",
    warm_up: int = 1,
) -> Row:
    """Times A B A B … in this process: medians in ms, and the median of the pairs' ratios peer / ours."""
    for call in (ours, peer):
        for _ in range(warm_up):
            call()
    pairs = [(spent(ours, options.device), spent(peer, options.device)) for _ in range(options.rounds)]
    a, b = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    ratio = statistics.median(q / p for p, q in pairs)
    return Row(work=work, ours=a, peer=b, unit="ms", ratio=ratio, peer_name=peer_name, aim=aim, note=note)


def in_turn(
    work: str,
    ours: Call,
    peer: Call,
    rounds: int,
    *,
    unit: str,
    peer_name: str,
    aim: float | None = None,
    note: str = "",
    better: Literal["smaller", "larger"] = "smaller",
) -> Row:
    """The same for calls that measure themselves and return one number."""
    pairs = [(float(ours()), float(peer())) for _ in range(rounds)]  # type: ignore[arg-type]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(q / p if better == "smaller" else p / q for p, q in pairs)
    return Row(work=work, ours=a, peer=b, unit=unit, ratio=ratio, peer_name=peer_name, aim=aim, note=note)


def fresh(
    code: str, *arguments: Any, environment: Mapping[str, str] | None = None, limit_gib: float | None = None
) -> dict[str, Any]:
    """The JSON object that a fresh Python process prints last.

    Args:
        code: a program; its arguments are JSON in sys.argv[1:].
        arguments: plain data.
        environment: variables added to this process's.
        limit_gib: address space the process may use; more ends it with a MemoryError.

    Raises:
        UserError: the process failed; the message ends with what it said last.
    """

    def limit() -> None:
        if limit_gib is not None:
            size = int(limit_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

    command: Sequence[str] = [sys.executable, "-c", code, *(json.dumps(a) for a in arguments)]
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    if done.returncode:
        raise UserError(f"a measuring process failed: {(done.stderr.strip() or str(done.returncode))[-600:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Served:
    """A fresh Python process that repeats one call whenever it is asked: `served()` -> ms of that call.

    For programs that change their whole process (allocator, autocast, processes joined), which would flatter
    or spoil a peer in the same one. The program ends with `serve`.

    Args:
        code: a program; its arguments are JSON in sys.argv[1:].
        arguments: plain data.
        environment: variables added to this process's.

    Attributes:
        facts: the plain data that the program had to tell when it was ready.

    Raises:
        UserError: the process failed; the message ends with what it said last.
    """

    def __init__(self, code: str, *arguments: Any, environment: Mapping[str, str] | None = None):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *(json.dumps(a) for a in arguments)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self.__exit__()
            raise

    def __call__(self) -> float:
        """Milliseconds of one more call."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it died between two calls: reading says why
            pass
        return float(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip() or f"exit code {code}"
        raise UserError(f"a measuring process failed: {said[-600:]}")


def serve(call: Call, facts: Mapping[str, Any], device: str = "cpu", warm_up: int = 1) -> None:
    """Nothing; the other end of `Served`: tells `facts` and the warm-up's time, then ms for every line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    begun = time.perf_counter()
    for _ in range(warm_up):
        call()
    print(json.dumps({**facts, "warm_up_s": time.perf_counter() - begun}), file=answers)
    for _ in sys.stdin:
        print(json.dumps(spent(call, device) * 1e3), file=answers)


def print_rows(rows: Iterable[Row]) -> None:
    """Nothing; prints the table's lines as they come."""
    for row in rows:
        print(row, flush=True)
