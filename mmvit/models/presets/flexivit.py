"""FlexiViT: one set of weights for many patch sizes, on pictures of 240 pixels.

Source: FlexiViT (arXiv:2212.08013). Kernel and positions are stored at patches of 16 pixels as timm stores
them; the files of big_vision store others, which `hub.from_big_vision` reads from the file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.presets.sizes import core_of


def _flexivit(size: str) -> ImageTowerConfig:
    """Patches of 8, 10, 12, 15, 16, 20, 24, 30, 40 or 48 pixels divide its pictures; no class position."""
    return ImageTowerConfig(
        core=core_of(size),
        image_size=(240, 240),
        patch_resample="pi",
        class_position=False,
        position_resample="bilinear_antialias",
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    return {f"flexivit_{size}": partial(_flexivit, size) for size in ("small", "base", "large")}
