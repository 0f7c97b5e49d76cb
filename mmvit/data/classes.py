"""Which classes shards have and which are a sample's own, out of a field of its JSON: what classifiers learn.

Shape letters: B samples, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.data.loader import read_all
from mmvit.errors import UserError


def labels_in(meta: Mapping[str, Any], field: str) -> list[str] | None:
    """The labels that a sample's JSON states under `field`: one, several, none ([]), or None = not stated."""
    value = meta.get(field)
    if value is None or value == "":
        return None
    values = value if isinstance(value, list) else [value]
    return [str(label) for label in values if label not in (None, "")]


@dataclass(frozen=True)
class ClassList:
    """The classes of a classifier, in the order of its logits.

    Attributes:
        names: C names, none twice.
        field: of the samples' JSON that holds the right name, or a list of right names.
        multi: whether a sample may have any number of them, none included.
    """

    names: tuple[str, ...]
    field: str = "label"
    multi: bool = False

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise UserError(f"the class '{twice[0]}' is listed {self.names.count(twice[0])} times")
        if len(self.names) < (1 if self.multi else 2):
            raise UserError(f"a classifier needs at least two classes, got {list(self.names)}")

    def targets(self, metas: Sequence[Mapping[str, Any]] | None) -> tuple[Tensor, Tensor]:
        """(targets (B,C) float32 of zeros and ones, known (B,) bool): what is right, and if that is stated.

        With `multi`, a sample that states only labels outside the list is known to have none of the classes;
        otherwise it is not known.

        Args:
            metas: JSON of B samples.
        """
        number = {name: i for i, name in enumerate(self.names)}
        targets = torch.zeros(len(metas or ()), len(self.names))
        known = torch.zeros(len(targets), dtype=torch.bool)
        for row, meta in enumerate(metas or ()):
            stated = labels_in(meta, self.field)
            found = [number[label] for label in stated or () if label in number]
            known[row] = stated is not None if self.multi else len(found) == 1
            if known[row]:
                targets[row, found] = 1.0
        return targets, known


def class_list(urls: str, field: str, names: Sequence[str] = ()) -> ClassList:
    """The classes that the shards' samples state, sorted by name; multi-label where a sample has a list.

    Args:
        urls: shard pattern(s), read in full, JSON only.
        field: of the JSON.
        names: the classes to use instead, in this order.

    Raises:
        UserError: no sample states a label, or none of `names`.
    """
    counts, multi, samples = Counter[str](), False, 0
    for batch in read_all(urls, batch_size=512, fields=("meta",)):
        for meta in batch.meta or ():
            samples += 1
            multi |= isinstance(meta.get(field), list)
            counts.update(labels_in(meta, field) or ())
    if not counts:
        raise UserError(
            f"no sample of {urls} states a class: '{field}' is in none of {samples} JSON objects; "
            "--data.label names the field"
        )
    if names and not counts.keys() & set(names):
        raise UserError(
            f"none of the {len(names)} classes occurs in {urls}: its '{field}' is like {next(iter(counts))!r}"
        )
    return ClassList(tuple(names) or tuple(sorted(counts)), field, multi)
