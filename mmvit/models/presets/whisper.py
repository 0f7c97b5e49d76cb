"""Whisper's encoder: convolutions along time in place of patches, sine positions, no token of its own.

Source: Whisper (arXiv:2212.04356) section 2.2 and table 1; constants as in its code.
Differs: the features are the mean over all frames' tokens (the speech recogniser has no pooling), and shorter
sounds use the first rows of the positions instead of being padded to 30 s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmvit.models.config import AudioTowerConfig, FrameStemConfig
from mmvit.models.core_config import CoreConfig

# What all sizes share, for the readers of weights too.
CORE: dict[str, Any] = {"norm_eps": 1e-5, "key_bias": False}
TOWER: dict[str, Any] = {
    "class_token": False,
    "position": "sincos1d_whisper",
    "position_resample": "crop",
    "pool": "mean",
    "stem": FrameStemConfig(),
}
# name: (width, depth, num_heads, mel bands)
_SIZES = {
    "tiny": (384, 4, 6, 80),
    "base": (512, 6, 8, 80),
    "small": (768, 12, 12, 80),
    "medium": (1024, 24, 16, 80),
    "large": (1280, 32, 20, 80),
    "large_v3": (1280, 32, 20, 128),
}


def whisper(size: str) -> AudioTowerConfig:
    """A tower for up to 3000 frames (30 s) of 80 or 128 mel bands."""
    width, depth, num_heads, bands = _SIZES[size]
    core = CoreConfig(width=width, depth=depth, num_heads=num_heads, mlp_dim=4 * width, **CORE)
    return AudioTowerConfig(core=core, spectrogram_size=(3000, bands), **TOWER)


def table() -> dict[str, Callable[[], AudioTowerConfig]]:
    """The family's presets."""
    return {f"whisper_{size}": partial(whisper, size) for size in _SIZES}
