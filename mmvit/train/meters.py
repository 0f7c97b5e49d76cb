"""Sums between two log lines, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from accelerate.utils import gather_object

from mmvit.train.memory import peak_memory

T = TypeVar("T")


class Meters:
    """Means of what steps report, samples per second, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0
        self.counters: dict[str, int] = {}
        self._own: dict[str, int] = {}
        self._restart()

    def _restart(self) -> None:
        self.samples, self.waited, self.began = 0, 0.0, time.perf_counter()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, with the time until each one arrives counted as waiting."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - start
            yield batch

    def add(self, values: dict[str, float], samples: int) -> None:
        """Takes in one step's numbers and its global batch size."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.samples += samples

    def total(self, **counts: int) -> None:
        """Adds to counters of the whole run, e.g. skipped samples; other ranks' counts come with `share`."""
        for name, count in counts.items():
            self._own[name] = self._own.get(name, 0) + count

    def share(self) -> None:
        """Nothing; `counters` now holds what all ranks have counted. Every rank must call it."""
        for counts in gather_object([self._own]):
            for name, count in counts.items():
                self.counters[name] = self.counters.get(name, 0) + count
        self._own = {}

    def read(self) -> dict[str, float]:
        """Means since the last reading as train/…, speed as perf/…, counters as data/…; then starts anew.

        Every rank must call it.
        """
        self.share()
        seconds = max(1e-9, time.perf_counter() - self.began)
        row = {f"train/{name}": total / max(1, self.count) for name, total in self.sums.items()}
        row["perf/samples_per_s"] = self.samples / seconds
        row["perf/data_wait"] = min(1.0, self.waited / seconds)
        row["perf/memory_gib"] = peak_memory()
        row |= {f"data/{name}": float(count) for name, count in self.counters.items()}
        self.sums, self.count = {}, 0
        self._restart()
        return row

    def pause(self) -> None:
        """Starts the clock anew, after an evaluation or a save, so that speed means training speed."""
        self._restart()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to log the same means; `share` first."""
        assert not self._own, self._own
        return {"sums": dict(self.sums), "count": self.count, "counters": dict(self.counters)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.sums, self.count = dict(state["sums"]), state["count"]
        self.counters, self._own = dict(state["counters"]), {}
