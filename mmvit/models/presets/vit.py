"""Plain ViTs: class token, map or mean pooling; with or without registers.

Source: ViT (arXiv:2010.11929), Scaling ViT (arXiv:2106.04560); registers: arXiv:2309.16588.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmvit.models.config import ImageTowerConfig
from mmvit.models.presets.sizes import SIZES, core_of

_PATCHES: dict[str, tuple[int, ...]] = {
    "mu": (16,),
    "tiny": (16,),
    "small": (16, 32),
    "medium": (16,),
    "base": (8, 16, 32),
    "large": (14, 16, 32),
    "giantopt": (16,),
}
# Sizes that are also known at another resolution, and with registers.
_AT_384 = ("tiny", "small", "base", "large")
_REGISTERS = ("small", "medium", "base", "large", "so400m", "huge", "giant")


def vit(size: str, patch: int, pool: str = "cls", side: int = 224, registers: int = 0) -> ImageTowerConfig:
    """A plain ViT; without a class token when nothing reads it.

    Args:
        size: a name in `SIZES`.
        patch: side of a patch in pixels.
        pool: cls | map | gap.
        side: of the picture in pixels.
        registers: how many.
    """
    fields: dict[str, Any] = {} if pool == "cls" else {"class_token": False}
    fields["pool"] = {"gap": "mean"}.get(pool, pool)
    return ImageTowerConfig(
        core=core_of(size), image_size=(side, side), patch_size=patch, registers=registers, **fields
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    found: dict[str, Callable[[], ImageTowerConfig]] = {}
    for size in SIZES:
        for patch in _PATCHES.get(size, (14,)):
            for pool in ("cls", "map", "gap"):
                end = "" if pool == "cls" else f"_{pool}"
                name = f"vit_{size}_patch{patch}"
                found[f"{name}_224{end}"] = partial(vit, size, patch, pool)
                if size in _REGISTERS:
                    found[f"{name}_reg4_224{end}"] = partial(vit, size, patch, pool, registers=4)
                if size in _AT_384 and patch in (16, 32):
                    found[f"{name}_384{end}"] = partial(vit, size, patch, pool, side=384)
    return found
