"""DeiT, with and without distillation token, and DeiT III; named as timm names them.

Source: DeiT (arXiv:2012.12877) table 1; DeiT III (arXiv:2204.07118).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import ImageTowerConfig
from mmvit.models.normalisation import IMAGENET
from mmvit.models.presets.sizes import core_of

# size: (side of a patch, sides of the published pictures), in pixels
_THIRD: dict[str, tuple[int, tuple[int, ...]]] = {
    "small": (16, (224, 384)),
    "medium": (16, (224,)),
    "base": (16, (224, 384)),
    "large": (16, (224, 384)),
    "huge": (14, (224,)),
}


def _deit(size: str, side: int, distilled: bool) -> ImageTowerConfig:
    """DeiT: a ViT on ImageNet's statistics; distilled, a second token is read beside the class token."""
    return ImageTowerConfig(
        core=core_of(size),
        image_size=(side, side),
        distill_token=distilled,
        pool="cls_dist" if distilled else "cls",
        **IMAGENET,
    )


def _deit3(size: str, patch: int, side: int) -> ImageTowerConfig:
    """DeiT III: LayerScale, and a class token without position."""
    return ImageTowerConfig(
        core=core_of(size, layer_scale=1e-6),
        image_size=(side, side),
        patch_size=patch,
        class_position=False,
        **IMAGENET,
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    found: dict[str, Callable[[], ImageTowerConfig]] = {}
    for name, distilled in (("deit_{}_patch16_{}", False), ("deit_{}_distilled_patch16_{}", True)):
        for size in ("tiny", "small", "base"):
            for side in (224, 384) if size == "base" else (224,):
                found[name.format(size, side)] = partial(_deit, size, side, distilled)
    for size, (patch, sides) in _THIRD.items():
        for side in sides:
            found[f"deit3_{size}_patch{patch}_{side}"] = partial(_deit3, size, patch, side)
    return found
