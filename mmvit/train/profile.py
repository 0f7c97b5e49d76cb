"""`--train.profile N`: where the time of N steps goes, as a trace and as ten lines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from mmvit.train.setup import Run

T = TypeVar("T")
WARM_UP = 3


def profiled(batches: Iterable[T], run: Run) -> Iterator[T]:
    """`batches`; the loop's body is profiled on rank 0 for `run.train.profile` steps after three to warm up.

    Writes OUT/profile/trace.json (for chrome://tracing or ui.perfetto.dev) and the ten operators that took
    most time, to the log and to OUT/profile/top.txt. Nothing happens where the option is 0.
    """
    steps = run.train.profile if run.accelerator.is_main_process else 0
    recorder = None
    count = 0
    try:
        for batch in batches:
            if steps and count == WARM_UP:
                kinds = [ProfilerActivity.CPU]
                if torch.cuda.is_available():
                    kinds.append(ProfilerActivity.CUDA)
                else:  # a CUDA build would complain on stderr about the missing GPU
                    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
                recorder = profile(activities=kinds, acc_events=True)
                recorder.start()
            yield batch
            count += 1
            if recorder is not None and count == WARM_UP + steps:
                _finish(recorder, steps, run)
                recorder = None
    finally:
        if recorder is not None:  # the run ended first
            _finish(recorder, count - WARM_UP, run)


def _finish(recorder: profile, steps: int, run: Run) -> None:
    recorder.stop()
    folder = run.out / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    recorder.export_chrome_trace(str(folder / "trace.json"))
    text = top(recorder, steps)
    (folder / "top.txt").write_text(text + "\n", encoding="utf-8")
    run.log.line(text)
    run.log.line(f"profile of {steps} steps: {folder / 'trace.json'}")


def top(recorder: profile, steps: int, rows: int = 10) -> str:
    """A table of the operators with the largest own time: share, milliseconds and calls a step."""
    device = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    found = [(getattr(event, device), event.count, event.key) for event in recorder.key_averages()]
    total = sum(time for time, _, _ in found) or 1.0
    lines = [f"{'share':>6} {'ms/step':>9} {'calls/step':>10}  operator"]
    for time, count, name in sorted(found, reverse=True)[:rows]:
        each = max(1, steps)
        lines.append(f"{time / total:6.1%} {time / each / 1e3:9.2f} {count / each:10.1f}  {name}")
    return "\n".join(lines)
