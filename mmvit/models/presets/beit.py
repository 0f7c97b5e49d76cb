"""BEiT and BEiT v2 as fine-tuned: relative positions in every block, the mean of the patches, then a norm.

Source: BEiT (arXiv:2106.08254); BEiT v2 (arXiv:2208.06366); initial gains and statistics as timm lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.normalisation import HALF, IMAGENET
from mmvit.models.presets.sizes import core_of

# name: (size, initial gain of the branches, whether pictures are normalised by ImageNet's statistics)
_MODELS: dict[str, tuple[str, float, bool]] = {
    "beit_base_patch16_224": ("base", 0.1, False),
    "beit_base_patch16_384": ("base", 0.1, False),
    "beit_large_patch16_224": ("large", 1e-5, False),
    "beit_large_patch16_384": ("large", 1e-5, False),
    "beit_large_patch16_512": ("large", 1e-5, False),
    "beitv2_base_patch16_224": ("base", 1e-5, True),
    "beitv2_large_patch16_224": ("large", 1e-5, True),
}


def _beit(size: str, layer_scale: float, imagenet: bool, side: int) -> ImageTowerConfig:
    """No absolute positions; keys without a bias; tables follow another grid as timm's do."""
    core = core_of(
        size,
        key_bias=False,
        relative="block",
        relative_resample="geometric",
        layer_scale=layer_scale,
        norm_last=False,
    )
    return ImageTowerConfig(
        core=core,
        image_size=(side, side),
        position="none",
        pool="mean_norm",
        **(IMAGENET if imagenet else HALF),
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    return {name: partial(_beit, *model, int(name.rpartition("_")[2])) for name, model in _MODELS.items()}
