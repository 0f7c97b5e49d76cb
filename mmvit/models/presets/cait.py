"""CaiT: deep ViTs with talking heads, LayerScale and late class attention, patches of 16 pixels.

Source: CaiT (arXiv:2103.17239) table 1; initial gains as in the deit repository.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import CaitConfig
from mmvit.models.normalisation import IMAGENET

# name: (width, depth, initial gain of the branches, sides of the published models in pixels)
_SIZES: dict[str, tuple[int, int, float, tuple[int, ...]]] = {
    "xxs24": (192, 24, 1e-5, (224, 384)),
    "xxs36": (192, 36, 1e-5, (224, 384)),
    "xs24": (288, 24, 1e-5, (384,)),
    "s24": (384, 24, 1e-5, (224, 384)),
    "s36": (384, 36, 1e-6, (384,)),
    "m36": (768, 36, 1e-6, (384,)),
    "m48": (768, 48, 1e-6, (448,)),
}


def _cait(size: str, side: int) -> ImageTowerConfig:
    """Heads of 48 channels; the class token is the core's and has no position."""
    width, depth, gain, _ = _SIZES[size]
    core = CaitConfig(width=width, depth=depth, num_heads=width // 48, mlp_dim=4 * width, layer_scale=gain)
    return ImageTowerConfig(
        core=core,
        image_size=(side, side),
        class_token=False,
        class_position=False,
        position_std=0.02,
        position_resample="bicubic",
        **IMAGENET,
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    return {
        f"cait_{size}_{side}": partial(_cait, size, side)
        for size, (*_, sides) in _SIZES.items()
        for side in sides
    }
