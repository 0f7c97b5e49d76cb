"""A classifier on a converted tower, or its declared absence: the one way in which all sources do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks
from mmvit.models.config import ClassifierConfig

NO_HEAD = LEFT_OUT + "a classifier; head=True keeps it"


def with_head(
    tower: Any, table: Sequence[Line], heads: Mapping[str, str], classes: int
) -> tuple[Any, list[Line]]:
    """The config and table of names of a classifier on a tower; of the tower alone for 0 classes.

    Args:
        tower: the tower's config.
        table: the source's names -> the tower's.
        heads: names of the source's classifiers -> ours, "head" or "head_dist".
        classes: C, or 0 to leave the classifiers out.
    """
    if not classes:
        return tower, [*table, *((f"{name}.*", NO_HEAD) for name in heads)]
    kept: list[Line] = [(f"{theirs}.*", f"{ours}.*") for theirs, ours in heads.items()]
    return ClassifierConfig(tower=tower, num_classes=classes), [*blocks("", "tower.", table), *kept]
