"""CLIP pairs: class token, norm before the blocks, causal text read at its end token.

Source: CLIP (arXiv:2103.00020); sizes as in open_clip's configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmvit.models.config import DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import Activation, CoreConfig
from mmvit.models.normalisation import CLIP
from mmvit.models.presets.sizes import core_of

# text width -> (blocks, heads) of the text towers that go with the image towers
_TEXT = {512: (12, 8), 768: (12, 12), 1024: (24, 16), 1280: (32, 20)}


def clip(
    size: str, patch: int, text_width: int, side: int = 224, act: Activation = "gelu"
) -> DualEncoderConfig:
    """A pair in a common space as wide as its text tower.

    Args:
        size: of the image tower.
        patch: side of a patch in pixels.
        text_width: of the text tower and of the common space.
        side: of the picture in pixels.
        act: "gelu" as LAION's weights, "quick_gelu" as OpenAI's.
    """
    image = clip_image(core_of(size, norm_eps=1e-5, norm_first=True, activation=act), patch, text_width, side)
    return DualEncoderConfig(image=image, text=clip_text(text_width, act))


def clip_image(
    core: CoreConfig, patch: int, embed_dim: int, side: int = 224, **fields: Any
) -> ImageTowerConfig:
    """CLIP's image tower around a core, other fields as given."""
    return ImageTowerConfig(
        core=core,
        image_size=(side, side),
        patch_size=patch,
        patch_bias=False,
        embed_dim=embed_dim,
        head_bias=False,
        **CLIP,
        **fields,
    )


def clip_text(width: int, activation: Activation = "gelu", **fields: Any) -> TextTowerConfig:
    """CLIP's text tower of a width that is known, other fields as given."""
    depth, heads = _TEXT[width]
    core = CoreConfig(
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=4 * width,
        norm_eps=1e-5,
        activation=activation,
        causal=True,
    )
    # The end token sees nothing behind it, so padding needs no mask.
    usual: dict[str, Any] = {"context_length": 77, "pad_mask": False}
    return TextTowerConfig(core=core, vocab_size=49_408, embed_dim=width, head_bias=False, **usual | fields)


def table() -> dict[str, Callable[[], DualEncoderConfig]]:
    """The family's presets; those with "quickgelu" are OpenAI's activation."""
    sizes = (
        ("base", 32, 512, 224),
        ("base", 16, 512, 224),
        ("large", 14, 768, 224),
        ("large", 14, 768, 336),
        ("huge", 14, 1024, 224),
        ("giant", 14, 1024, 224),
        ("gigantic", 14, 1280, 224),
    )
    found: dict[str, Callable[[], DualEncoderConfig]] = {}
    for size, patch, text_width, side in sizes:
        name = f"clip_{size}_patch{patch}_{side}"
        found[name] = partial(clip, size, patch, text_width, side)
        if size != "giant":
            found[f"{name}_quickgelu"] = partial(clip, size, patch, text_width, side, "quick_gelu")
    return found
