"""SigLIP pairs: map pooling, no image head; text read at the last position with its padding attended.

Source: SigLIP (arXiv:2303.15343), SigLIP 2 (arXiv:2502.14786); sizes as in open_clip's configurations, the
tanh form of GELU as both were trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from mmvit.models.config import DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.presets.sizes import core_of


def siglip(
    size: str,
    patch: int,
    side: int = 224,
    *,
    vocab_size: int = 32_000,
    context_length: int = 64,
    text_size: str | None = None,
    text_head: bool = True,
) -> DualEncoderConfig:
    """A pair of towers.

    Args:
        size: of the image tower.
        patch: side of a patch in pixels.
        side: of the picture in pixels.
        vocab_size: 32,000 English pieces, 250,000 multilingual ones, or SigLIP 2's 256,000.
        context_length: tokens of a text.
        text_size: of the text tower, None = as the image tower.
        text_head: whether the text tower has a linear head into the image features' space.
    """
    core = core_of(size, activation="gelu_tanh")
    image = ImageTowerConfig(
        core=core, image_size=(side, side), patch_size=patch, pool="map", class_token=False
    )
    text = TextTowerConfig(
        core=core_of(text_size or size, activation="gelu_tanh"),
        vocab_size=vocab_size,
        context_length=context_length,
        pool="last",
        pad_mask=False,
        embed_dim=core.width if text_head else None,
    )
    return DualEncoderConfig(
        image=image,
        text=text,
        logit_scale_init=math.log(10.0),
        logit_bias_init=-10.0,
        logit_scale_max=None,
        activation="sigmoid",
    )


def table() -> dict[str, Callable[[], DualEncoderConfig]]:
    """The families' presets."""
    found: dict[str, Callable[[], DualEncoderConfig]] = {}
    first: tuple[tuple[str, int, tuple[int, ...]], ...] = (
        ("base", 16, (224, 256, 384, 512)),
        ("large", 16, (256, 384)),
        ("so400m", 14, (224, 378)),
    )
    for size, patch, sides in first:
        for side in sides:
            context = 16 if (size, side) == ("so400m", 224) else 64
            found[f"siglip_{size}_patch{patch}_{side}"] = partial(
                siglip, size, patch, side, context_length=context
            )
    many = partial(siglip, vocab_size=250_000)
    found["siglip_base_patch16_256_i18n"] = partial(many, "base", 16, 256)
    found["siglip_so400m_patch16_256_i18n"] = partial(many, "so400m", 16, 256, text_head=False)
    second: tuple[tuple[str, int, tuple[int, ...]], ...] = (
        ("base", 32, (256,)),
        ("base", 16, (224, 256, 384, 512)),
        ("large", 16, (256, 384, 512)),
        ("so400m", 14, (224, 378)),
        ("so400m", 16, (256, 384, 512)),
        ("giantopt", 16, (256, 384)),
    )
    for size, patch, sides in second:
        text = "so400m" if size == "giantopt" else None
        for side in sides:
            found[f"siglip2_{size}_patch{patch}_{side}"] = partial(
                siglip, size, patch, side, vocab_size=256_000, text_size=text
            )
    return found
