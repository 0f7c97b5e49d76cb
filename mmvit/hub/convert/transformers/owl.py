"""transformers' OWL-ViT and OWLv2 -> our detector, or the pair of towers under it.

Source: OWL-ViT (arXiv:2205.06230), OWLv2 (arXiv:2306.09683). The final norm of the image tower stands on all
tokens, as the detection heads read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.data.image import ImagePreprocess
from mmvit.hub.convert.keymap import LEFT_OUT, Line
from mmvit.hub.convert.transformers.config import clip_pair_of
from mmvit.hub.convert.transformers.tables import CLIP
from mmvit.models.config import DetectorConfig, DualEncoderConfig

_HEADS = LEFT_OUT + "a detection head; head=True keeps it"
_CONTRASTIVE = LEFT_OUT + "of the contrastive pre-training; detection heads read tokens"
_CONSTANT: Line = ("box_bias", LEFT_OUT + "a constant of the grid")
_TOWERS: list[Line] = [*CLIP, ("vision_model.pre_layernorm.*", "image.core.norm_pre.*"), _CONSTANT]
_RESAMPLE: dict[Any, Any] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_NAMES = ("layer_norm", "class_head", "box_head", "objectness_head")

PAIR: list[Line] = [*_TOWERS, *((f"{name}.*", _HEADS) for name in _NAMES)]
DETECTOR: list[Line] = [
    *(line for line in _TOWERS if line[0] not in ("visual_projection.weight", "logit_scale", "logit_bias")),
    ("visual_projection.weight", _CONTRASTIVE),
    ("logit_scale", _CONTRASTIVE),
    ("layer_norm.*", "merge.norm.*"),
    ("class_head.dense0.*", "class_head.dense.*"),
    ("class_head.logit_shift.*", "class_head.logit_shift.*"),
    ("class_head.logit_scale.*", "class_head.logit_scale.*"),
    ("box_head.*", "box_head.*"),
    ("objectness_head.*", "objectness_head.*"),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> DualEncoderConfig:
    """The pair of an OwlViTModel, Owlv2Model or of their ForObjectDetection."""
    return clip_pair_of(c)


def describe_whole(c: Any, state: Mapping[str, Tensor]) -> DetectorConfig | None:
    """The detector of an OwlViTForObjectDetection or Owlv2ForObjectDetection, None for the towers alone."""
    if not any(name.startswith("class_head.") for name in state):
        return None
    pair = clip_pair_of(c)
    image: Any = dataclasses.replace(pair.image, embed_dim=None, head_bias=True)
    return DetectorConfig(
        image=image,
        text=pair.text,
        merge_eps=c.vision_config.layer_norm_eps,
        objectness=any(name.startswith("objectness_head.") for name in state),
        clip_ids=True,
    )


def preprocess_of(c: Any, size: tuple[int, int], saved: Mapping[str, Any]) -> ImagePreprocess:
    """How a detector's pictures are resized: OWL-ViT squashes them, OWLv2 pads them with black at a corner.

    Args:
        c: transformers' config.
        size: (height, width) that the detector stores positions for.
        saved: the folder's preprocessor_config.json, empty without one; its own word comes first.
    """
    second = c.model_type == "owlv2"
    interpolation = _RESAMPLE.get(saved.get("resample"), "bilinear" if second else "bicubic")
    resize: Any = "pad_corner" if saved.get("do_pad", second) else "squash"
    return ImagePreprocess(size=size, resize=resize, interpolation=interpolation, background=(0, 0, 0))
