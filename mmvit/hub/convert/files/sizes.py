"""Whether a config describes a model with exactly the tensors at hand, asked before the model is built.

A config and a file come from strangers: a width of a million must not be allocated to find that it is wrong.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mmvit.hub.convert.keymap import compare, shapes_of
from mmvit.models.config import ForeignImageTowerConfig
from mmvit.models.presets import AnyConfig, build_model
from mmvit.models.unfilled import Unfilled

# Fields that count modules: each of them has a tensor at least.
_COUNTS = ("depth", "class_depth", "depths", "layers")


def check_sizes(config: AnyConfig, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Raises ValueError unless `config` describes a model with the tensors `shapes`; allocates none.

    A peer's tower whose library cannot build without memory is passed over.

    Args:
        config: of one of our models.
        shapes: name -> shape of the tensors that shall fill it.
        source: what they come from, for messages.
    """
    parts = list(_parts(config))
    for name, count in (pair for part in parts for pair in _counted(part)):
        if count > len(shapes):
            raise ValueError(f"{source}: {name} is {count}, but there are {len(shapes)} tensors in all")
    foreign = any(isinstance(part, ForeignImageTowerConfig) for part in parts)
    try:
        with warnings.catch_warnings(), torch.device("meta"), Unfilled():
            warnings.simplefilter("ignore")
            own = shapes_of(build_model(config).state_dict())
    except (RuntimeError, ArithmeticError, TypeError) as error:
        if foreign:
            return
        why = str(error).splitlines()[0][:200]
        raise ValueError(f"{source}: a model of these sizes cannot be: {why}") from None
    compare(own, shapes, source=source)


def _parts(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parts(value)


def _counted(config: Any) -> Iterator[tuple[str, int]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _COUNTS:
            yield field.name, sum(value) if isinstance(value, tuple) else value
