"""The pairs of towers of OWL-ViT and OWLv2: CLIP's, OpenAI's activation, texts of 16 tokens, large pictures.

Source: OWL-ViT (arXiv:2205.06230), OWLv2 (arXiv:2306.09683); sizes as released.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import DualEncoderConfig
from mmvit.models.presets.clip import clip_image, clip_text
from mmvit.models.presets.sizes import core_of


def owl(size: str, patch: int, text_width: int, side: int) -> DualEncoderConfig:
    """The towers of one detector; positions of other sizes are resampled as transformers does."""
    core = core_of(size, norm_eps=1e-5, norm_first=True, activation="quick_gelu")
    return DualEncoderConfig(
        image=clip_image(core, patch, text_width, side, position_resample="bicubic"),
        text=clip_text(text_width, "quick_gelu", context_length=16),
    )


def table() -> dict[str, Callable[[], DualEncoderConfig]]:
    """The families' presets."""
    sizes = {
        "owlvit_base_patch32": ("base", 32, 512, 768),
        "owlvit_base_patch16": ("base", 16, 512, 768),
        "owlvit_large_patch14": ("large", 14, 768, 840),
        "owlv2_base_patch16": ("base", 16, 512, 960),
        "owlv2_large_patch14": ("large", 14, 768, 1008),
    }
    return {name: partial(owl, *fields) for name, fields in sizes.items()}
