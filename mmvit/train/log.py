"""What a run tells: aligned lines on the console and in log.txt, rows of JSON in metrics.jsonl, trackers.

Rank 0 speaks; the other ranks' warnings carry their rank.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

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

    def open(self) -> RunLog:
        """Attaches the handlers; lines go to stderr and, on rank 0, to log.txt."""
        rank = self.accelerator.process_index
        line = "%(asctime)s %(message)s" if self.main else f"%(asctime)s rank {rank}: %(message)s"
        console: logging.Handler = logging.StreamHandler(sys.stderr)
        if self.main and sys.stderr.isatty():
            console = self._rich_console()
        self._attach(console, "%(message)s" if self._bar else line)
        if self.main:
            self._attach(logging.FileHandler(self.out / "log.txt", encoding="utf-8"), line)
        LOGGER.setLevel(logging.INFO if self.main else logging.WARNING)
        LOGGER.propagate = False
        return self

    def close(self) -> None:
        """Detaches everything and ends the trackers."""
        if self._bar is not None:
            self._bar.stop()
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
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        width = len(str(self.total))
        LOGGER.info(f"step={step:>{width}}/{self.total} " + show(row))
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log(numbers, step=step)

    def rewind(self, step: int) -> None:
        """Drops rows of metrics.jsonl after `step`: a resumed run writes them again."""
        path = self.out / "metrics.jsonl"
        if not self.main or not path.exists():
            return
        kept = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(text)["step"] <= step:
                    kept.append(text + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the last line of a killed run may be torn
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)

    def progress(self, step: int) -> None:
        """Moves the bar, where there is one."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

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
