"""How often each label occurs in a source: what pseudo-negatives are drawn by.

The counts of a shard lie beside it as `NAME.tar.labels`, written with the shard or by its first reader (kept
in memory where the folder cannot be written), so they are a function of the shards alone. Letters: C labels.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvit.data.annotations import canonical, fixed_labels
from mmvit.data.captions import read_json
from mmvit.data.offsets import write_atomic
from mmvit.data.pixels import BadSample
from mmvit.data.shards import ShardIndex

log = logging.getLogger(__name__)
BESIDE = ".labels"


@dataclass(slots=True)
class LabelCounts:
    """The labels of one source.

    Attributes:
        names: C canonical labels, sorted.
        counts: (C,) float64, how many boxes have each.
        fixed: those that no prompt template fits.
    """

    names: list[str]
    counts: np.ndarray
    fixed: frozenset[str]

    def draw(self, number: int, without: Collection[str], rng: random.Random) -> list[str]:
        """At most `number` different labels, none of `without`, drawn by their frequency.

        Source: Efraimidis and Spirakis 2006: the smallest exponential variables with these rates are a
        weighted sample without replacement.
        """
        if number <= 0 or not self.names:
            return []
        times = -np.log1p(-np.random.default_rng(rng.getrandbits(64)).random(len(self.names))) / self.counts
        # A source may have 100,000 labels: only as many are sorted and looked at as can be needed.
        needed = min(len(times), number + len(without))
        first = np.argpartition(times, needed - 1)[:needed]
        drawn = (self.names[i] for i in first[np.argsort(times[first], kind="stable")])
        return [name for name in drawn if name not in without][:number]


class LabelCounter:
    """Counts the labels of one shard, sample by sample."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.fixed: set[str] = set()

    def add(self, meta: Mapping[str, Any]) -> None:
        """Nothing; counts the objects of one sample's JSON, whatever their boxes are worth."""
        objects = meta.get("objects")
        objects = [o for o in objects if isinstance(o, dict)] if isinstance(objects, list) else []
        labels = [o["label"] for o in objects if isinstance(o.get("label"), str)]
        self.counts.update(name for name in map(canonical, labels) if name)
        self.fixed.update(fixed_labels(objects))

    def save(self, shard: str, total_bytes: int) -> None:
        """Nothing; writes the counts beside the shard of `total_bytes`; OSError where that fails."""
        content = {
            "bytes": total_bytes,
            "labels": dict(sorted(self.counts.items())),
            "fixed": sorted(self.fixed),
        }
        write_atomic(shard + BESIDE, json.dumps(content, ensure_ascii=False).encode())


def count_labels(index: ShardIndex) -> LabelCounts:
    """The labels of a source's shards, read beside them or counted once from their JSON members."""
    total, fixed = Counter[str](), set[str]()
    for s, shard in enumerate(index.shards):
        found = _saved(shard.path, shard.bytes)
        if found is None:
            found = LabelCounter()
            for i in range(int(index.first[s]), int(index.first[s + 1])):
                try:
                    raw = index.read(i, lambda extension: extension == "json")
                    found.add(read_json(raw["json"]) if "json" in raw else {})
                except BadSample:
                    continue  # counted when it is drawn
            try:
                found.save(shard.path, shard.bytes)
            except OSError as error:
                log.info("cannot keep the label counts of %s (%s)", shard.path, error.strerror)
        total.update(found.counts)
        fixed |= found.fixed
    names = sorted(total)
    return LabelCounts(names, np.array([total[name] for name in names], dtype=np.float64), frozenset(fixed))


def _saved(shard: str, total_bytes: int) -> LabelCounter | None:
    """The counts beside a shard, None where there are none, or they are damaged or of another tar."""
    try:
        content = json.loads(Path(shard + BESIDE).read_text(encoding="utf-8"))
        counter = LabelCounter()
        counter.counts.update(content["labels"])
        counter.fixed.update(content["fixed"])
        whole = all(isinstance(k, str) and type(n) is int and n > 0 for k, n in counter.counts.items())
        return counter if whole and content["bytes"] == total_bytes else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
