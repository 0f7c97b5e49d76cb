"""ConvNeXt V2: patches of 4 pixels, four stages that halve the grid, the mean of the map normed.

Source: ConvNeXt V2 (arXiv:2301.00808) section 4 and its repository.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import ConvNextConfig
from mmvit.models.normalisation import IMAGENET

# size: (channels of the first stage, blocks of each stage)
_SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    "atto": (40, (2, 2, 6, 2)),
    "femto": (48, (2, 2, 6, 2)),
    "pico": (64, (2, 2, 6, 2)),
    "nano": (80, (2, 2, 8, 2)),
    "tiny": (96, (3, 3, 9, 3)),
    "base": (128, (3, 3, 27, 3)),
    "large": (192, (3, 3, 27, 3)),
    "huge": (352, (3, 3, 27, 3)),
}


def _convnextv2(size: str) -> ImageTowerConfig:
    """Any picture whose sides are multiples of 4, at least 32 pixels; there are no positions to resample."""
    width, depths = _SIZES[size]
    core = ConvNextConfig(widths=tuple(width * 2**stage for stage in range(len(depths))), depths=depths)
    return ImageTowerConfig(
        core=core,
        patch_size=4,
        class_token=False,
        class_position=False,
        position="none",
        pool="mean_norm",
        **IMAGENET,
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    return {f"convnextv2_{size}": partial(_convnextv2, size) for size in _SIZES}
