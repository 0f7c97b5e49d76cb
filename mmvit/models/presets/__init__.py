"""Named models: one file a family, collected here; how overrides reach a field of a config."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from mmvit.errors import nearest
from mmvit.models.build import (
    build_core,
    build_image_tower,
    build_text_tower,
    build_tower,
    build_word_tower,
)
from mmvit.models.classifier import Classifier
from mmvit.models.config import (
    AudioTowerConfig,
    ClassifierConfig,
    DetectorConfig,
    DualEncoderConfig,
    ForeignImageTowerConfig,
    ImageTowerConfig,
    TextTowerConfig,
    TowerConfig,
    VattConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
    WordTowerConfig,
)
from mmvit.models.lit import DualEncoder, build_dual_encoder
from mmvit.models.overrides import override
from mmvit.models.owl import OwlDetector
from mmvit.models.presets.sizes import SIZES
from mmvit.models.vatt import Vatt

__all__ = [
    "SIZES",
    "build_core",
    "build_dual_encoder",
    "build_image_tower",
    "build_model",
    "build_text_tower",
    "create_model",
    "list_models",
    "preset",
]

AnyConfig = (
    ImageTowerConfig
    | VideoTowerConfig
    | AudioTowerConfig
    | WaveformTowerConfig
    | ForeignImageTowerConfig
    | TextTowerConfig
    | WordTowerConfig
    | DualEncoderConfig
    | DetectorConfig
    | VattConfig
    | ClassifierConfig
)

# Files of this folder, each with a `table()` of its family's presets.
_FAMILIES = (
    "vit",
    "dinov2",
    "text",
    "lit",
    "clip",
    "siglip",
    "cait",
    "cct",
    "mixer",
    "deit",
    "flexivit",
    "beit",
    "mvit",
    "convnext",
    "mae",
    "videomae",
    "ast",
    "clap",
    "whisper",
    "owl",
    "coca",
    "vatt",
)


def _tables() -> dict[str, Callable[[], AnyConfig]]:
    """Every preset by name.

    Raises:
        ValueError: two families claim one name.
    """
    found: dict[str, Callable[[], AnyConfig]] = {}
    for family in _FAMILIES:
        table = importlib.import_module(f"mmvit.models.presets.{family}").table()
        if twice := found.keys() & table.keys():
            raise ValueError(f"presets {sorted(twice)} are claimed by '{family}' and by another family")
        found |= table
    return found


_PRESETS = _tables()


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names of the presets that match a shell pattern, e.g. "vit_*_map".

    Example:
        >>> list_models("lit_[st]*")
        ['lit_small', 'lit_tiny']
    """
    return sorted(fnmatch.filter(_PRESETS, pattern))


def preset(name: str, **overrides: Any) -> AnyConfig:
    """The config of a preset with overrides applied, see `create_model`.

    Raises:
        ValueError: unknown name or override; the message names the nearest valid ones.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown model '{name}': {nearest(name, _PRESETS)}")
    config = _PRESETS[name]()
    classes = overrides.pop("num_classes", 0)
    if classes and isinstance(config, ImageTowerConfig | VideoTowerConfig | AudioTowerConfig):
        config = ClassifierConfig(tower=config, num_classes=classes)
    elif classes:
        raise ValueError(f"num_classes is for image, video and audio towers, and '{name}' is none")
    return override(config, overrides)


def create_model(name: str, **overrides: Any) -> nn.Module:
    """A model with random weights: a tower, a pair, a detector or (num_classes > 0) a classifier.

    Args:
        name: one of `list_models()`.
        **overrides: fields of the model's config by name, e.g. `image_size=384`, `num_classes=10`,
            `drop_path=0.1`, `embed_dim=256` (of both towers of a pair). A name that both towers have is
            written with its tower: `**{"image.depth": 6}`.

    Raises:
        ValueError: unknown name or override; the message names the nearest valid ones.

    Example:
        >>> create_model("vit_mu_patch16_224", image_size=32, num_classes=10).head.out_features
        10
    """
    return build_model(preset(name, **overrides))


def build_model(config: AnyConfig) -> nn.Module:
    """The module that any config describes, with random weights."""
    if isinstance(config, DualEncoderConfig):
        return DualEncoder(config)
    if isinstance(config, DetectorConfig):
        return OwlDetector(config)
    if isinstance(config, VattConfig):
        return Vatt(config)
    if isinstance(config, ClassifierConfig):
        return Classifier(config)
    if isinstance(config, TextTowerConfig):
        return build_text_tower(config)
    if isinstance(config, WordTowerConfig):
        return build_word_tower(config)
    if isinstance(config, TowerConfig) and not isinstance(config, ImageTowerConfig):
        return build_tower(config)
    return build_image_tower(config)
