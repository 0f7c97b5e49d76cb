"""One part of the corpus (emoji, stamps, …) as shards in up to four split folders, whole or not at all.

Place in the path: corpus builder, last step of every part. Jobs are drawn by several processes and written in
the order of a hash of their keys, so equal packages give equal bytes. A part that was killed leaves only
`.part-` folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus.splits import SPLITS
from mmvit.data.write import ShardWriter

Made = dict[
    str, Any
]  # members by extension; "json" is added to the job's facts, "txt" takes its caption's place
PICTURES_AND_SOUNDS = ("png", "jpg", "wav", "mp4")
# Where bytes stand in two splits, the sample nearest to training goes.
KEPT_FIRST = ("test_concept", "test_style", "val", "train")


@dataclass(frozen=True)
class Job:
    """A sample to be made: key, split, caption, JSON facts, and what the part's `make` needs."""

    key: str
    split: str
    caption: str
    facts: dict[str, Any] = field(hash=False)
    work: Any = field(hash=False, repr=False, default=None)


def by_hash(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in the order of the SHA-256 of their keys: mixed, and the same on every machine.

    Raises:
        AssertionError: two jobs share a key.
    """
    assert len({job.key for job in jobs}) == len(jobs), "two samples of a part share a key"
    return sorted(jobs, key=lambda job: hashlib.sha256(job.key.encode()).digest())


class PartWriter:
    """Writes one part and leaves a stamp that names the recipe by which it was built."""

    def __init__(self, out: Path, name: str, recipe: str = "", per_shard: int = 1000) -> None:
        self.out, self.name, self.per_shard = out, name, per_shard
        self.recipe = recipe
        self.stamp = out / ".stamps" / f"{name}.json"

    def facts(self) -> dict[str, Any] | None:
        """What the part's stamp says, when the part was finished and its folders are there; else None."""
        try:
            facts: dict[str, Any] = json.loads(self.stamp.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        there = all((self.out / split / self.name / "index.json").is_file() for split in facts["samples"])
        return facts if there else None

    def recipe_on_disk(self) -> str:
        """The recipe by which the finished part was built; empty when there is none."""
        facts = self.facts()
        return facts["recipe"] if facts else ""

    def whole(self) -> dict[str, Any] | None:
        """The facts of the part when it was built whole by this very recipe, else None."""
        facts = self.facts()
        return facts if facts and facts["recipe"] == self.recipe else None

    def write(
        self,
        jobs: Sequence[Job],
        make: Callable[[Any], Made | str],
        pool: Executor | None,
        taken: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """The part's facts: samples and bytes by split, reasons of the samples left out, hashes of its files.

        `taken` maps hashes of the files of parts built before to their splits: a sample whose picture or
        sound stands in another split is dropped (here the one nearer to training goes; between parts, the
        later one).
        """
        began = time.monotonic()
        self.stamp.unlink(missing_ok=True)
        ordered = by_hash(jobs)
        skipped: Counter[str] = Counter()
        made = self._made(ordered, make, pool, skipped)
        made = self._disjoint(made, taken or {}, skipped)
        samples, size = self._shards(made)
        hashes = {digest: job.split for job, members in made for digest in _digests(members)}
        facts = {
            "recipe": self.recipe,
            "samples": samples,
            "bytes": size,
            "skipped": dict(skipped.most_common()),
            "seconds": round(time.monotonic() - began, 1),
            "hashes": hashes,
        }
        self.stamp.parent.mkdir(parents=True, exist_ok=True)
        aside = self.stamp.with_suffix(".part")
        aside.write_text(json.dumps(facts))
        os.replace(aside, self.stamp)
        return facts

    def _made(
        self,
        jobs: Sequence[Job],
        make: Callable[[Any], Made | str],
        pool: Executor | None,
        skipped: Counter[str],
    ) -> list[tuple[Job, Made]]:
        works = [job.work for job in jobs]
        results: Iterator[Made | str] = pool.map(make, works, chunksize=8) if pool else map(make, works)
        kept: list[tuple[Job, Made]] = []
        progress = Progress(self.name, len(jobs))
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, str):
                skipped[result.split(":")[0]] += 1
            else:
                kept.append((job, result))
            progress.step()
        progress.done()
        return kept

    def _disjoint(
        self, made: list[tuple[Job, Made]], taken: dict[str, str], skipped: Counter[str]
    ) -> list[tuple[Job, Made]]:
        owner: dict[str, str] = {}
        for split in KEPT_FIRST:
            for job, members in made:
                if job.split == split:
                    for digest in _digests(members):
                        owner.setdefault(digest, split)
        owner |= taken
        kept = []
        for job, members in made:
            if any(owner[digest] != job.split for digest in _digests(members)):
                skipped["same bytes in another split"] += 1
            else:
                kept.append((job, members))
        return kept

    def _shards(self, made: list[tuple[Job, Made]]) -> tuple[dict[str, int], dict[str, int]]:
        samples, size = {}, {}
        for split in SPLITS:
            target = self.out / split / self.name
            aside = target.with_name(f".part-{self.name}")
            for folder in (aside, target):
                shutil.rmtree(folder, ignore_errors=True)
            chosen = [(job, members) for job, members in made if job.split == split]
            if not chosen:
                continue
            aside.mkdir(parents=True)
            writer = ShardWriter(str(aside / f"{self.name}-%06d.tar"), self.per_shard)
            for job, members in chosen:
                facts = {**job.facts, "part": self.name, **members.get("json", {})}
                writer.write(job.key, {"txt": job.caption, **members, "json": facts})
            writer.finish()
            os.replace(aside, target)
            samples[split] = len(chosen)
            size[split] = sum(file.stat().st_size for file in target.iterdir())
        return samples, size


def _digests(members: Made) -> list[str]:
    """Hashes of the pictures and sounds of a sample (spoken captions and masks may repeat freely)."""
    return [hashlib.sha256(members[e]).hexdigest()[:24] for e in PICTURES_AND_SOUNDS if e in members]


class Progress:
    """Lines `emoji      1914/13176` at most every two seconds, and one at the end."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.count = name, total, 0
        self.last = time.monotonic()

    def step(self) -> None:
        """Counts one sample."""
        self.count += 1
        if time.monotonic() - self.last > 2:
            self.last = time.monotonic()
            self._line()

    def done(self) -> None:
        """Prints the last line."""
        self._line()

    def _line(self) -> None:
        print(f"{self.name:<10} {self.count}/{self.total}", flush=True, file=sys.stdout)
