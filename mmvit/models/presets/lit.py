"""LiT pairs: an image tower to lock, a text tower to tune.

Source: LiT (arXiv:2111.07991).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from mmvit.models.config import DualEncoderConfig
from mmvit.models.presets.text import lit_text
from mmvit.models.presets.vit import vit


def lit(size: str) -> DualEncoderConfig:
    """Towers of one size: no image head, a linear text head into the image tower's width."""
    image = vit(size, 16)
    return DualEncoderConfig(
        image=image,
        text=lit_text(size, embed_dim=image.core.width),
        logit_scale_init=math.log(10.0),
        logit_scale_max=None,
    )


def table() -> dict[str, Callable[[], DualEncoderConfig]]:
    """The family's presets."""
    return {f"lit_{size}": partial(lit, size) for size in ("mu", "tiny", "small", "medium", "base", "large")}
