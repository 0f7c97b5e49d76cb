"""CoCa's contrastive pairs: an image tower read by attention, a text tower with its class token at the end.

Source: CoCa (arXiv:2205.01917), as open_clip trained and released it; without the decoder of captions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import DualEncoderConfig, QueryPoolConfig
from mmvit.models.presets.clip import clip_image, clip_text
from mmvit.models.presets.sizes import core_of


def coca(size: str, patch: int, text_width: int) -> DualEncoderConfig:
    """A pair at 224 pixels and 76 tokens, the class token of a text being its 77th."""
    core = core_of(size, norm_eps=1e-5, norm_first=True, norm_last=False)
    queries = QueryPoolConfig(width=text_width)
    return DualEncoderConfig(
        image=clip_image(core, patch, text_width, pool="queries", queries=queries),
        text=clip_text(text_width, context_length=76, pool="last", pad_mask=True, class_last="shifted"),
    )


def table() -> dict[str, Callable[[], DualEncoderConfig]]:
    """The family's presets."""
    sizes = (("base", 32, 512), ("large", 14, 768))
    return {f"coca_{size}_patch{patch}": partial(coca, size, patch, width) for size, patch, width in sizes}
