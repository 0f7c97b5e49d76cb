"""What a run tells: aligned lines on the console and in log.txt, rows of JSON in metrics.jsonl, trackers.

Rank 0 speaks; the other ranks' warnings carry their rank.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mmvit.errors import UserError

LOGGER = logging.getLogger("mmvit")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.steps": 100, …} of a nested config; tuples and None as text: what every tracker accepts."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        flat: dict[str, Any] = {}
        for key, inner in value.items():
            flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return {prefix: value if isinstance(value, bool | int | float | str) else str(value).lower()}


def plain(value: Any) -> Any:
    """A number, string or container of them that JSON can hold; tensors and NaN included."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _step_of(line: bytes) -> float:
    """The step of a row; infinity for what is no row (the last line of a killed run may be torn)."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def show(row: Mapping[str, Any]) -> str:
    """Aligned key=value text of a metrics row; only evaluations keep the part before the slash."""
    shown = []
    for name, value in row.items():
        key = name if name.startswith("eval/") else name.split("/")[-1]
        if name == "perf/data_wait":
            text = f"{100 * value:.0f}%"
        elif isinstance(value, float):
            text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        else:
            text = str(value)
        shown.append(f"{key}={text:<8}")
    return " ".join(shown).rstrip()


class _LogFile(logging.FileHandler):
    """log.txt; a line that the disk refuses is dropped and told of once, it is not worth a run."""

    refused = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Nothing; says the first time what could not be written."""
        if not self.refused:
            self.refused = True
            error = sys.exc_info()[1]
            print(f"cannot write {self.baseFilename}: {error}; the run goes on", file=sys.stderr)

    def close(self) -> None:
        """Nothing; closes the file, with or without its last lines."""
        with contextlib.suppress(OSError):
            super().close()


class _Rows:
    """Appends whole lines to a file; what the disk refuses is kept and tried again with the next line.

    Args:
        path: the file.

    Attributes:
        waiting: lines that are not written yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[bytes] = []

    def write(self, line: str) -> None:
        """Nothing; one more line, without its newline."""
        self.waiting.append(line.encode("utf-8") + b"\n")
        refused = len(self.waiting) > 1
        problem = self.flush()
        if problem and not refused:
            LOGGER.warning(f"cannot write {self.path}: {problem}; rows are kept until there is room")

    def flush(self) -> str | None:
        """Why the waiting lines could not be written; None when all are."""
        if not self.waiting:
            return None
        data = b"".join(self.waiting)
        try:
            with self.path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if file.write(data) != len(data):  # a disk that fills up takes a part, and refuses the rest
                    file.truncate(end)
                    return "No space left on device"
        except OSError as error:
            return error.strerror or str(error)
        self.waiting = []
        return None


class RunLog:
    """Writes the three streams of one run folder; a no-op for metrics on ranks other than 0.

    Args:
        out: the run folder.
        accelerator: the run's.
        total: steps of the whole run, for the progress bar.
    """

    def __init__(self, out: Path, accelerator: Accelerator, total: int):
        self.out, self.accelerator, self.total = out, accelerator, total
        self.main = accelerator.is_main_process
        self._bar: Any = None
        self._task: Any = None
        self._handlers: list[logging.Handler] = []
        self._rows = _Rows(out / "metrics.jsonl")

    def open(self) -> RunLog:
        """Attaches the handlers; lines go to stderr and, on rank 0, to log.txt."""
        rank = self.accelerator.process_index
        line = "%(asctime)s %(message)s" if self.main else f"%(asctime)s rank {rank}: %(message)s"
        console: logging.Handler = logging.StreamHandler(sys.stderr)
        if self.main and sys.stderr.isatty():
            console = self._rich_console()
        self._attach(console, "%(message)s" if self._bar else line)
        if self.main:
            self._attach(self._file(), line)
        LOGGER.setLevel(logging.INFO if self.main else logging.WARNING)
        LOGGER.propagate = False
        return self

    def close(self) -> None:
        """Detaches everything and ends the trackers."""
        if self._bar is not None:
            self._bar.stop()
        if problem := self._rows.flush():
            LOGGER.warning(f"{len(self._rows.waiting)} rows are not in {self._rows.path}: {problem}")
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()
        self._handlers = []
        LOGGER.propagate = True
        self.accelerator.end_training()

    def line(self, text: str) -> None:
        """One line of plain text."""
        LOGGER.info(text)

    def metrics(self, step: int, samples_seen: int, row: Mapping[str, Any]) -> None:
        """One row: a line, a JSON object, and the trackers."""
        if not self.main:
            return
        record = {"step": step, "samples_seen": samples_seen, **plain(row)}
        self._rows.write(json.dumps(record))
        width = len(str(self.total))
        LOGGER.info(f"step={step:>{width}}/{self.total} " + show(row))
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log(numbers, step=step)

    def rewind(self, step: int) -> None:
        """Drops rows of metrics.jsonl after `step`, and torn ones: a resumed run writes them again.

        Raises:
            UserError: the file cannot be read or written.
        """
        path = self._rows.path
        if not self.main or not path.exists():
            return
        try:
            kept = [line for line in path.read_bytes().splitlines() if _step_of(line) <= step]
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.with_suffix(".tmp").unlink(missing_ok=True)
            raise UserError(f"cannot write {path}: {error.strerror}") from None

    def progress(self, step: int) -> None:
        """Moves the bar, where there is one."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def _file(self) -> logging.Handler:
        """The handler that writes log.txt."""
        try:
            return _LogFile(self.out / "log.txt", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"cannot write {self.out / 'log.txt'}: {error.strerror}") from None

    def _attach(self, handler: logging.Handler, line: str) -> None:
        handler.setFormatter(logging.Formatter(line, datefmt="%H:%M:%S"))
        LOGGER.addHandler(handler)
        self._handlers.append(handler)

    def _rich_console(self) -> logging.Handler:
        from rich.console import Console
        from rich.logging import RichHandler
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("training", total=self.total)
        self._bar.start()
        return RichHandler(console=console, show_path=False, show_level=False, markup=False)
