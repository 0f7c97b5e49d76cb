"""Saved models and other libraries' weights: save, load, convert. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmvit.hub.convert.from_big_vision import from_big_vision
    from mmvit.hub.convert.from_cct import from_cct
    from mmvit.hub.convert.from_checkpoint import from_checkpoint
    from mmvit.hub.convert.from_ctranslate2 import from_ctranslate2
    from mmvit.hub.convert.from_open_clip import from_open_clip
    from mmvit.hub.convert.from_timm import from_timm
    from mmvit.hub.convert.from_torchvision import from_torchvision
    from mmvit.hub.convert.from_transformers import from_transformers
    from mmvit.hub.export.onnx import export_onnx
    from mmvit.hub.export.to_transformers import to_transformers
    from mmvit.hub.folder import Loaded, is_whole, load, read_config, save
    from mmvit.hub.publish import push
    from mmvit.hub.towers import load_image_tower, load_text_tower

_HOMES = {
    "Loaded": "folder",
    "export_onnx": "export.onnx",
    "from_big_vision": "convert.from_big_vision",
    "from_cct": "convert.from_cct",
    "from_checkpoint": "convert.from_checkpoint",
    "from_ctranslate2": "convert.from_ctranslate2",
    "from_open_clip": "convert.from_open_clip",
    "from_timm": "convert.from_timm",
    "from_torchvision": "convert.from_torchvision",
    "from_transformers": "convert.from_transformers",
    "is_whole": "folder",
    "load": "folder",
    "load_image_tower": "towers",
    "load_text_tower": "towers",
    "push": "publish",
    "read_config": "folder",
    "save": "folder",
    "to_transformers": "export.to_transformers",
}

__all__ = [
    "Loaded",
    "export_onnx",
    "from_big_vision",
    "from_cct",
    "from_checkpoint",
    "from_ctranslate2",
    "from_open_clip",
    "from_timm",
    "from_torchvision",
    "from_transformers",
    "is_whole",
    "load",
    "load_image_tower",
    "load_text_tower",
    "push",
    "read_config",
    "save",
    "to_transformers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmvit.hub' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mmvit.hub.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
