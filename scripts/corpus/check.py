"""The last word on a built corpus: counts, licences, and that nothing leaks from a test split into training.

Place in the path: corpus builder, after every part. Reads the shards back, as training will.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus.fetch import licence_of
from corpus.splits import SPLITS
from corpus.words import HeldOut
from mmvit.errors import UserError


@dataclass
class Found:
    """What stands in the shards: samples and bytes by (part, split), licences, packages, boxes."""

    samples: Counter[tuple[str, str]] = field(default_factory=Counter)
    size: Counter[tuple[str, str]] = field(default_factory=Counter)
    boxes: Counter[tuple[str, str]] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    packages: dict[str, str] = field(default_factory=dict)


def texts_in(value: Any) -> Iterator[str]:
    """Every English string of a sample's JSON: other languages' texts and the split's notes are left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "texts":
                yield from texts_in(item.get("en", []))
            elif key not in ("split", "package", "licence", "concept", "part"):
                yield from texts_in(item)


def samples_in(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by extension) of every sample of the shards in `folder`."""
    for shard in sorted(folder.glob("*.tar")):
        key, members = "", dict[str, bytes]()
        with tarfile.open(shard) as tar:
            for member in tar:
                name, _, extension = member.name.partition(".")
                if name != key and members:
                    yield key, members
                    members = {}
                key = name
                handle = tar.extractfile(member)
                assert handle is not None
                members[extension] = handle.read()
        if members:
            yield key, members


def check(out: Path, held: HeldOut) -> Found:
    """What the corpus holds.

    Raises:
        UserError: a training (or validation, or unseen-style) text mentions a held-out word, or a picture or
        sound
            stands in two splits.
    """
    found = Found()
    owners: dict[bytes, dict[str, str]] = defaultdict(dict)
    for split in SPLITS:
        for folder in sorted(path for path in (out / split).glob("*") if not path.name.startswith(".")):
            cell = (folder.name, split)
            for key, members in samples_in(folder):
                facts = json.loads(members["json"])
                caption = members["txt"].decode()
                word = held.mentioned([caption, key, *texts_in(facts)])
                if word and split != "test_concept":
                    raise UserError(
                        f"{split}/{folder.name}/{key} mentions the held-out word '{word}': {caption!r}"
                    )
                for extension in ("png", "jpg", "wav", "mp4"):
                    if extension in members:
                        digest = hashlib.sha256(members[extension]).digest()
                        owners[digest][split] = f"{folder.name}/{key}.{extension}"
                found.samples[cell] += 1
                found.boxes[cell] += len(facts.get("objects", ()))
                found.licences.update(facts["licence"].split(" + "))
                found.packages.update({title: licence_of(title) for title in facts["package"].split(" + ")})
            found.size[cell] = sum(file.stat().st_size for file in folder.iterdir())
    if not found.samples:
        raise UserError(f"nothing could be built in {out}: see the lines above for what is missing")
    for places in owners.values():
        if len(places) > 1:
            raise UserError(f"the same bytes stand in two splits: {places}")
    return found


def write_facts(out: Path, builder: int, held: HeldOut, labels: list[str], found: Found) -> None:
    """Writes `corpus.json`: builder version, counts and bytes, licences, package versions, held-out words."""
    table: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for (part, split), samples in sorted(found.samples.items()):
        table[part][split] = {"samples": samples, "bytes": found.size[part, split]}
        if found.boxes[part, split]:
            table[part][split]["boxes"] = found.boxes[part, split]
    facts = {
        "builder": builder,
        "parts": table,
        "licences": dict(found.licences.most_common()),
        "packages": dict(sorted(found.packages.items())),
        "held_out_words": held.words,
        "held_out_labels": labels,
    }
    aside = out / ".corpus.json.part"
    aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, out / "corpus.json")


def summary(found: Found) -> str:
    """The table that ends a build: samples by part and split, megabytes, licences."""
    parts = list(dict.fromkeys(part for part, _ in found.samples))
    lines = [f"{'part':<10}" + "".join(f"{split:>14}" for split in SPLITS) + f"{'MB':>8}"]
    for part in parts:
        cells = "".join(f"{found.samples.get((part, split), 0) or '-':>14}" for split in SPLITS)
        size = sum(found.size.get((part, split), 0) for split in SPLITS)
        lines.append(f"{part:<10}{cells}{size / 1e6:>8.1f}")
    totals = "".join(f"{sum(n for (_, s), n in found.samples.items() if s == split):>14}" for split in SPLITS)
    lines.append(f"{'all':<10}{totals}{sum(found.size.values()) / 1e6:>8.1f}")
    lines.append("licences: " + ", ".join(f"{name} {count}" for name, count in found.licences.most_common()))
    lines.append("no training text mentions a held-out word; no picture or sound stands in two splits")
    return "\n".join(lines)
