"""transformers' OWL-ViT and OWLv2 -> our image-text pair: CLIP's towers at the resolution of detection.

Source: OWL-ViT (arXiv:2205.06230), OWLv2 (arXiv:2306.09683). The final norm stands on all image tokens, as
the detection heads read them; the heads themselves are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line
from mmvit.hub.convert.transformers.config import core_of, image_of
from mmvit.hub.convert.transformers.tables import CLIP
from mmvit.models.config import DualEncoderConfig, TextTowerConfig
from mmvit.models.normalisation import CLIP as CLIP_PIXELS

_HEADS = LEFT_OUT + "a detection head; the pair is the detector's two towers"

TABLE: list[Line] = [
    *CLIP,
    ("vision_model.pre_layernorm.*", "image.core.norm_pre.*"),
    *((f"{name}.*", _HEADS) for name in ("layer_norm", "class_head", "box_head", "objectness_head")),
    ("box_bias", LEFT_OUT + "a constant of the grid"),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> DualEncoderConfig:
    """The pair of an OwlViTModel, Owlv2Model or of their ForObjectDetection."""
    head = {"embed_dim": c.projection_dim, "head_bias": False}
    core = core_of(c.vision_config, norm_first=True)
    image = image_of(c.vision_config, core, patch_bias=False, **CLIP_PIXELS, **head)
    t = c.text_config
    # The end token sees nothing behind it, so padding needs no mask.
    text = TextTowerConfig(
        core=core_of(t, causal=True),
        vocab_size=t.vocab_size,
        context_length=t.max_position_embeddings,
        pad_mask=False,
        **head,
    )
    return DualEncoderConfig(image=image, text=text)
