"""How `name=value` finds its field in a nested config."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from mmvit.errors import nearest
from mmvit.models.config import DetectorConfig, VattConfig

Config = TypeVar("Config")

# Fields that must agree in both towers of a pair: a bare name sets them all.
_SHARED = ("embed_dim",)


def override(config: Config, values: dict[str, Any]) -> Config:
    """A copy of `config` with fields replaced.

    A key is a field's name, or its path with any of the outer parts left out: "depth", "core.depth",
    "image.depth" and "image.core.depth" all find `config.image.core.depth`, as long as one field only is
    meant; a field of a core that towers share is set for all of them. `image_size` may be one number for a
    square.

    Raises:
        ValueError: no field or several fields are meant; the message names the nearest valid ones.
    """
    paths = _paths(config)
    for key, value in values.items():
        found = [path for path in paths if _means(key.split("."), path)]
        leaf = key.split(".")[-1]
        if isinstance(config, DetectorConfig) and key in _SHARED:
            found = [path for path in found if path[0] == "text"]  # its image tower has no head
        if not found:
            raise ValueError(f"unknown option '{key}': {nearest(leaf, {path[-1] for path in paths})}")
        if len(found) > 1 and leaf not in _SHARED and not _of_one_core(config, found):
            names = " or ".join(".".join(path) for path in found)
            raise ValueError(f"option '{key}' could mean {names}: write which")
        if leaf == "image_size" and isinstance(value, int):
            value = (value, value)
        for path in found:
            config = _replace(config, path, value)
    return config


def _of_one_core(config: Any, paths: list[tuple[str, ...]]) -> bool:
    """Whether the fields at `paths` describe one core that several towers hold."""
    return isinstance(config, VattConfig) and config.shared and {path[1:-1] for path in paths} == {("core",)}


def _paths(config: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all fields that are not configs themselves."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = (*prefix, field.name)
        found += _paths(value, path) if dataclasses.is_dataclass(value) else [path]
    return found


def _means(key: list[str], path: tuple[str, ...]) -> bool:
    """Whether `key` ends on the same field as `path` and its other parts appear in `path` in order."""
    rest = iter(path[:-1])
    return key[-1] == path[-1] and all(part in rest for part in key[:-1])


def _replace(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy of `config` with the field at `path` set."""
    if len(path) > 1:
        value = _replace(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})
