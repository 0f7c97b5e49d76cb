"""What the data is made of: samples by package, split and licence, as the shards themselves say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from mmvit.evaluators.embed import Embedded


def by_package(splits: Mapping[str, Embedded]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows): one row per package with its licence and its samples in every split, and a sum.

    A sample that is put together from several packages ("a@1 + b@2") counts for each of them, and once in
    the sum.

    Args:
        splits: name -> samples with their JSON ("package", "licence").
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    licences: dict[str, Counter[str]] = defaultdict(Counter)
    for split, samples in splits.items():
        for meta in samples.meta:
            licence = str(meta.get("licence") or meta.get("license") or "")
            packages = str(meta.get("package") or "not named").split(" + ")
            for package in packages:
                counts[package][split] += 1
                if licence and len(packages) == 1:
                    licences[package][licence] += 1
    order = sorted(counts, key=lambda package: (-sum(counts[package].values()), package))
    rows = []
    for package in order:
        numbers = [f"{counts[package][split]:,}" if counts[package][split] else "" for split in splits]
        rows.append([package, *numbers, ", ".join(sorted(licences[package]))])
    rows.append(["samples in all", *(f"{len(samples):,}" for samples in splits.values()), ""])
    return ["package", *splits, "licence"], rows
