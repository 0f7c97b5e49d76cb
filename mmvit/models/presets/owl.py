"""OWL-ViT and OWLv2: detection heads on CLIP's towers, OpenAI's activation, texts of 16 tokens.

Source: OWL-ViT (arXiv:2205.06230), OWLv2 (arXiv:2306.09683); sizes as released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mmvit.models.config import DetectorConfig
from mmvit.models.presets.clip import clip_image, clip_text
from mmvit.models.presets.sizes import core_of


def owl(size: str, patch: int, text_width: int, side: int, objectness: bool) -> DetectorConfig:
    """One detector; positions of other sizes are resampled as transformers does."""
    core = core_of(size, norm_eps=1e-5, norm_first=True, activation="quick_gelu")
    image = clip_image(core, patch, text_width, side, position_resample="bicubic")
    return DetectorConfig(
        image=replace(image, embed_dim=None, head_bias=True),
        text=clip_text(text_width, "quick_gelu", context_length=16),
        objectness=objectness,
        clip_ids=True,
    )


def table() -> dict[str, Callable[[], DetectorConfig]]:
    """The families' presets."""
    sizes = {
        "owlvit_base_patch32": ("base", 32, 512, 768),
        "owlvit_base_patch16": ("base", 16, 512, 768),
        "owlvit_large_patch14": ("large", 14, 768, 840),
        "owlv2_base_patch16": ("base", 16, 512, 960),
        "owlv2_large_patch14": ("large", 14, 768, 1008),
    }
    return {name: partial(owl, *fields, name.startswith("owlv2")) for name, fields in sizes.items()}
