"""MLP-Mixer: no attention and no positions, made for one picture size.

Source: MLP-Mixer (arXiv:2105.01601) table 1. The exact GELU is timm's; the published weights were trained
with flax's tanh form (`activation="gelu_tanh"`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import MixerConfig

# name: (width, depth, hidden width along the tokens, hidden width along the channels, patch sides)
_SIZES: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "s": (512, 8, 256, 2048, (32, 16)),
    "b": (768, 12, 384, 3072, (32, 16)),
    "l": (1024, 24, 512, 4096, (32, 16)),
    "h": (1280, 32, 640, 5120, (14,)),
}


def _mixer(size: str, patch: int) -> ImageTowerConfig:
    """At 224 pixels; mean pooling of the normed tokens."""
    width, depth, token_dim, mlp_dim, _ = _SIZES[size]
    core = MixerConfig(
        width=width, depth=depth, tokens=(224 // patch) ** 2, token_dim=token_dim, mlp_dim=mlp_dim
    )
    return ImageTowerConfig(
        core=core, patch_size=patch, class_token=False, class_position=False, position="none", pool="mean"
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    return {
        f"mixer_{size}{patch}_224": partial(_mixer, size, patch)
        for size, (*_, patches) in _SIZES.items()
        for patch in patches
    }
