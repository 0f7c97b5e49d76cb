"""What samples are called and shown by: labels, groups, and some of them drawn.

Letters: N samples.
Place in the path: between embedded samples of any modality and the metrics, which know only numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvit.data.captions import group_of
from mmvit.errors import UserError
from mmvit.evaluators.embed import Embedded
from mmvit.evaluators.retrieval import group_numbers


def row_groups(samples: Embedded, group_by: str) -> Tensor:
    """(N,) int64 groups of samples; equal = they show the same.

    Args:
        samples: with captions where `group_by` is "text".
        group_by: "text" (equal captions, whatever the case), "sample" (each alone), or a field of the JSON.

    Raises:
        UserError: as `group_names`.
    """
    if group_by == "sample":
        return torch.arange(len(samples))
    (groups,) = group_numbers(group_names(samples, group_by))
    return groups


def group_names(samples: Embedded, group_by: str) -> list[str]:
    """N names, equal = they show the same; what has no caption, or not the field, is alone.

    Args:
        samples: as `row_groups` takes them.
        group_by: likewise; "sample" gives the keys.

    Raises:
        UserError: no sample has a caption, or none the field.
    """
    if group_by == "sample":
        return samples.keys
    if group_by == "text":
        lacks = "no sample has a caption: group by sample, or by a field of the JSON"
        values: list[Any] = [group_of(captions[0]) if captions else None for captions in samples.captions]
    else:
        lacks = f"no sample's JSON has the field {group_by!r}: use --group-by text, sample or a field"
        values = [meta.get(group_by) for meta in samples.meta]
    if all(value is None for value in values):
        raise UserError(lacks)
    numbers = samples.index.tolist()
    return [
        f"\0{key} {number}" if value is None else str(value)
        for value, key, number in zip(values, samples.keys, numbers, strict=True)
    ]


def labels_of(samples: Embedded, field: str) -> list[str | list[str] | None]:
    """N labels, lists of labels, or None, from a field of the samples' JSON; numbers count as text.

    Raises:
        UserError: no sample carries the field.
    """
    found = [_label(meta.get(field)) for meta in samples.meta]
    if not any(found):
        raise UserError(f"no sample's JSON has the field {field!r}: name the right one with --label")
    return found


def drawn(pictures: Embedded, count: int, seed: int = 0) -> Embedded:
    """`count` samples drawn with a seed, in their old order; all of them when there are no more."""
    if count >= len(pictures):
        return pictures
    return drawn_rows(pictures, sorted(random.Random(seed).sample(range(len(pictures)), count)))


def drawn_rows(samples: Embedded, rows: list[int]) -> Embedded:
    """The samples at these rows, in this order."""
    return Embedded(
        samples.index[rows],
        [samples.keys[i] for i in rows],
        {name: values[rows] for name, values in samples.embeddings.items()},
        [samples.captions[i] for i in rows],
        [samples.meta[i] for i in rows],
        skipped=samples.skipped,
        present={name: there[rows] for name, there in samples.present.items()},
    )


def _label(value: Any) -> str | list[str] | None:
    """A label, a list of labels, or None for what cannot be one."""
    if isinstance(value, str | int | float):
        return str(value).strip() or None
    if isinstance(value, list):
        return [name for name in map(_label, value) if isinstance(name, str)]
    return None


def names_in(label: str | Sequence[str] | None) -> list[str]:
    """The labels that a sample bears: none, one, or several."""
    return [label] if isinstance(label, str) else list(label or ())


def distinct_labels(labels: Sequence[str | Sequence[str] | None]) -> set[str]:
    """Every label that occurs."""
    return {name for label in labels for name in names_in(label)}
