"""DINOv2's ViT/14, with and without registers; positions stored at 518 pixels.

Source: DINOv2 (arXiv:2304.07193); registers: arXiv:2309.16588.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.normalisation import IMAGENET
from mmvit.models.presets.sizes import core_of


def dinov2(size: str, registers: int) -> ImageTowerConfig:
    """DINOv2 of a named size; any other multiple of 14 pixels is resampled as it goes."""
    return ImageTowerConfig(
        core=core_of(size, layer_scale=1.0),
        image_size=(518, 518),
        patch_size=14,
        registers=registers,
        position_resample="bicubic_antialias" if registers else "bicubic",
        **IMAGENET,
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    found: dict[str, Callable[[], ImageTowerConfig]] = {}
    for size in ("small", "base", "large"):
        found[f"dinov2_{size}_patch14_518"] = partial(dinov2, size, 0)
        found[f"dinov2_{size}_patch14_reg4_518"] = partial(dinov2, size, 4)
    return found
