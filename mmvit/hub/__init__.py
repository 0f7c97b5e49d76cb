"""Saved models and other libraries' weights: save, load, convert. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmvit.hub.convert.from_open_clip import from_open_clip
    from mmvit.hub.convert.from_timm import from_timm
    from mmvit.hub.convert.from_torchvision import from_torchvision
    from mmvit.hub.convert.from_transformers import from_transformers
    from mmvit.hub.folder import Loaded, is_whole, load, read_config, save
    from mmvit.hub.towers import load_image_tower, load_text_tower

_HOMES = {
    "Loaded": "folder",
    "from_open_clip": "convert.from_open_clip",
    "from_timm": "convert.from_timm",
    "from_torchvision": "convert.from_torchvision",
    "from_transformers": "convert.from_transformers",
    "is_whole": "folder",
    "load": "folder",
    "load_image_tower": "towers",
    "load_text_tower": "towers",
    "read_config": "folder",
    "save": "folder",
}

__all__ = [
    "Loaded",
    "from_open_clip",
    "from_timm",
    "from_torchvision",
    "from_transformers",
    "is_whole",
    "load",
    "load_image_tower",
    "load_text_tower",
    "read_config",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmvit.hub' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mmvit.hub.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
