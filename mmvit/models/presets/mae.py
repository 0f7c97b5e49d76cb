"""MAE's encoders: plain ViTs with a fixed table of positions, their class token without one.

Source: MAE (arXiv:2111.06377).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.normalisation import IMAGENET
from mmvit.models.presets.sizes import core_of


def mae(size: str, patch: int) -> ImageTowerConfig:
    """The encoder of a named size at 224 pixels; other sizes are resampled as in MAE's fine-tuning."""
    return ImageTowerConfig(
        core=core_of(size),
        patch_size=patch,
        class_position=False,
        position="sincos2d_mae",
        position_resample="bicubic",
        **IMAGENET,
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    sizes = (("base", 16), ("large", 16), ("huge", 14))
    return {f"mae_{size}_patch{patch}_224": partial(mae, size, patch) for size, patch in sizes}
