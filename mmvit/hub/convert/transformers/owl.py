"""transformers' OWL-ViT and OWLv2 -> our image-text pair: CLIP's towers at the resolution of detection.

Source: OWL-ViT (arXiv:2205.06230), OWLv2 (arXiv:2306.09683). The final norm stands on all image tokens, as
the detection heads read them; the heads themselves are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line
from mmvit.hub.convert.transformers.config import clip_pair_of
from mmvit.hub.convert.transformers.tables import CLIP
from mmvit.models.config import DualEncoderConfig

_HEADS = LEFT_OUT + "a detection head; the pair is the detector's two towers"

TABLE: list[Line] = [
    *CLIP,
    ("vision_model.pre_layernorm.*", "image.core.norm_pre.*"),
    *((f"{name}.*", _HEADS) for name in ("layer_norm", "class_head", "box_head", "objectness_head")),
    ("box_bias", LEFT_OUT + "a constant of the grid"),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> DualEncoderConfig:
    """The pair of an OwlViTModel, Owlv2Model or of their ForObjectDetection."""
    return clip_pair_of(c)
