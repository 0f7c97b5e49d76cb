"""Config dataclasses <-> plain data, strictly: an unknown key is an error that names the nearest valid."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from mmvit.errors import nearest
from mmvit.models.config import (
    AudioTowerConfig,
    ClassifierConfig,
    DetectorConfig,
    DualEncoderConfig,
    ForeignImageTowerConfig,
    ImageTowerConfig,
    TextTowerConfig,
    VattConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
    WordTowerConfig,
)

KINDS: dict[str, tuple[type, ...]] = {
    "dual_encoder": (DualEncoderConfig,),
    "detector": (DetectorConfig,),
    "vatt": (VattConfig,),
    "image_tower": (ImageTowerConfig, ForeignImageTowerConfig),
    "video_tower": (VideoTowerConfig,),
    "audio_tower": (AudioTowerConfig, WaveformTowerConfig),
    "text_tower": (TextTowerConfig, WordTowerConfig),
    "image_classifier": (ClassifierConfig,),
    "video_classifier": (ClassifierConfig,),
    "audio_classifier": (ClassifierConfig,),
}


def kind_of(config: Any) -> str:
    """The name in `KINDS` under which a config is saved, e.g. dual_encoder, detector or video_classifier.

    Raises:
        ValueError: not one of our model configs.
    """
    if isinstance(config, ClassifierConfig):
        return kind_of(config.tower).replace("_tower", "_classifier")
    for kind, classes in KINDS.items():
        if isinstance(config, classes):
            return kind
    raise ValueError(
        f"cannot save a model whose config is a {type(config).__name__}: valid: {', '.join(KINDS)}"
    )


def to_plain(config: Any) -> dict[str, Any]:
    """Nested dictionaries, lists, numbers and strings; `from_plain` is the inverse."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_plain(kind: str, data: Any, where: str) -> Any:
    """The model config of a kind.

    Args:
        kind: a name in `KINDS`.
        data: what `to_plain` wrote.
        where: the file it comes from, for messages.

    Raises:
        ValueError: unknown kind, unknown key, missing key, a value of another type, another kind of model.
    """
    if kind not in KINDS:
        raise ValueError(f"{where}: kind is {kind!r}: {nearest(str(kind), KINDS)}")
    config = _build(KINDS[kind], data, where, "model")
    if kind_of(config) != kind:
        raise ValueError(f"{where}: kind is '{kind}', but 'model' describes a {kind_of(config)}")
    return config


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a config may hold plain data only, found a {type(value).__name__}: {value!r}")


def _build(classes: tuple[type, ...], data: Any, where: str, path: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: '{path}' is {data!r}, expected an object with fields")
    # Saved configs name all their fields: the class that knows most of them is meant, and judges the others.
    cls: Any = max(classes, key=lambda c: len(data.keys() & {f.name for f in dataclasses.fields(c)}))
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise ValueError(f"{where}: unknown key '{path}.{name}': {nearest(name, fields)}")
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: '{path}.{name}' is missing")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _value(hints[k], v, where, f"{path}.{k}") for k, v in data.items()})


def _value(hint: Any, value: Any, where: str, path: str) -> Any:
    """`value` as `hint` wants it: lists become tuples, objects become configs, everything else must fit."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        configs = tuple(t for t in inner if dataclasses.is_dataclass(t))
        if configs:
            return _build(configs, value, where, path)  # type: ignore[arg-type]
        hint = next(t for t in inner if t is not type(None))
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build((hint,), value, where, path)  # type: ignore[arg-type]
    if origin is typing.Literal:
        fits = value in inner
        hint = f"one of {', '.join(map(str, inner))}"
    elif origin is tuple:
        fits = isinstance(value, list | tuple) and (len(value) == len(inner) or inner[-1] is ...)
        value = tuple(value) if fits else value
    elif origin is dict:
        fits = isinstance(value, dict)
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = not isinstance(hint, type) or isinstance(value, hint)
    if not fits:
        raise ValueError(f"{where}: '{path}' is {value!r}, expected {getattr(hint, '__name__', hint)}")
    return value
