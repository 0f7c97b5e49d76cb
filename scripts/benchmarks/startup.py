"""How long it takes until something happens: imports in fresh processes, and a run's first optimizer step."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.drawn import RECIPE, ROOT, command, data_set, environment, rows
from benchmarks.timing import Options, Row, in_turn
from mmvit.errors import UserError

IMPORTS = {
    "import mmvit": "import mmvit",
    "import mmvit, all public names used": "import mmvit; [getattr(mmvit, name) for name in mmvit.__all__]",
}
ASKED = "asked: ours under twice the peer's"
LIMIT = 20.0  # seconds to the first step that were asked for
PATIENCE = 300.0


def run(options: Options) -> Iterator[Row]:
    """Rows of imports against `import torch`, and of the recipe's time to its first step."""
    for work, code in IMPORTS.items():
        yield in_turn(
            work,
            partial(imported, code),
            partial(imported, "import torch"),
            options.rounds,
            unit="CPU s",
            peer_name="import torch",
            aim=0.5,
            note=ASKED,
        )
    yield from first_step(options)


def imported(code: str) -> float:
    """CPU seconds of a fresh process that runs `code`, the interpreter's own start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(options: Options) -> Iterator[Row]:
    """Rows of CPU and wall seconds from the command to the first row of metrics.jsonl: medians of runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_set(folder, 64, 32)
        seen = sorted(until_first_step(folder, i, options) for i in range(options.rounds))
        walls = sorted(wall for _, wall in seen)
    for what, found in (("CPU", [cpu for cpu, _ in seen]), ("wall", walls)):
        yield Row(
            work="recipes/lit.py --preset tiny, from the command to its first step",
            ours=found[len(found) // 2],
            peer=None,
            unit=f"{what} s",
            ratio=None,
            peer_name="none",
            note=f"asked: under {LIMIT:g} s",
        )


def until_first_step(folder: Path, number: int, options: Options) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a run until its first optimizer step is written down; then it is killed.

    Raises:
        UserError: the run ended, or a long time passed, without a step.
    """
    out = folder / f"run-{number}"
    chosen = {
        "--preset": "tiny",
        "--data.train": folder / "shards",
        "--model.tokenizer": folder / "tokenizer",
        "--train.steps": 1_000_000,
        "--train.save-every": 0,
        "--train.threads": options.threads,
        "--out": out,
    }
    begun = time.perf_counter()
    process = subprocess.Popen(
        command(RECIPE, chosen),
        cwd=ROOT,
        env=environment(options.threads),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not rows(out):
            if process.poll() is not None or time.perf_counter() - begun > PATIENCE:
                raise UserError(f"recipes/lit.py made no step; run it yourself: {' '.join(process.args)}")
            time.sleep(0.01)
        return cpu_seconds(process.pid), time.perf_counter() - begun
    finally:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system seconds that a running process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
