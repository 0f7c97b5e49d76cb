"""Which class of transformers computes the same as one of our configs, and what stands in its way.

A target lists the fields that must have certain values; fields in `FREE` may have any; every other field must
have its default, so that a field that is new here is refused until somebody says how to write it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmvit.errors import nearest
from mmvit.hub.convert.keymap import Line
from mmvit.hub.convert.transformers import tables
from mmvit.hub.plain import kind_of
from mmvit.models.config import CoreConfig, ImageTowerConfig, TextTowerConfig

# Written into the config or the weights whatever they are, or without a part in the output.
FREE = {
    *("width", "depth", "num_heads", "mlp_dim", "norm_eps", "activation", "qkv_bias", "drop_path", "dropout"),
    *("image_size", "patch_size", "patch_bias", "class_position", "position_resample", "mean", "std"),
    *("vocab_size", "context_length", "head_bias", "num_classes", "bias_init"),
    *("logit_scale_init", "logit_scale_max"),
}
_PARTS: dict[str, type] = {
    "core": CoreConfig,
    "image": ImageTowerConfig,
    "tower": ImageTowerConfig,
    "text": TextTowerConfig,
}
# A type among the values stands for any value of that type.
_Values = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A class of transformers.

    Attributes:
        table: its names -> ours.
        fields: path of a field -> values that the class can express; a type stands for all its values.
        prefix: put before names of the table (a classifier's backbone).
    """

    table: Sequence[Line]
    fields: Mapping[str, _Values]
    prefix: str = ""


_TOWER: dict[str, _Values] = {
    "class_token": (True,),
    "pool": ("cls",),
    "position": ("learned", "sincos2d"),
    "embed_dim": (None,),
}
_SCALED = _TOWER | {"core.layer_scale": (None, float, int)}
_REGISTERED = _SCALED | {"registers": (int,)}
_CLIP: dict[str, _Values] = {
    "image.class_token": (True,),
    "image.pool": ("cls",),
    "image.position": ("learned", "sincos2d"),
    "image.patch_bias": (False,),
    "image.core.norm_first": (True,),
    "image.embed_dim": (int,),
    "image.head_bias": (False,),
    "text.core.causal": (True,),
    "text.pool": ("eos",),
    "text.pad_mask": (True, False),  # what a causal tower pools sees no padding either way
    "text.embed_dim": (int,),
    "text.head_bias": (False,),
    "activation": ("softmax",),
    "logit_bias_init": (None,),
}
_SIGLIP: dict[str, _Values] = {
    "image.class_token": (False,),
    "image.pool": ("map",),
    "image.position": ("learned", "sincos2d"),
    "image.embed_dim": (None,),
    "text.core.causal": (False,),
    "text.pool": ("last",),
    "text.pad_mask": (False,),
    "text.embed_dim": (int,),
    "activation": ("sigmoid",),
    "logit_bias_init": (float, int),
}


def _under(prefix: str, fields: Mapping[str, _Values]) -> dict[str, _Values]:
    return {prefix + name: values for name, values in fields.items()}


# CLIP's text projection stands outside its text tower, SigLIP's inside: each table knows both places.
_CLIP_TABLE = [line for line in tables.CLIP if not line[0].startswith("text_model.head.")]
TARGETS: dict[str, dict[str, Target]] = {
    "image_tower": {
        "ViTModel": Target(table=tables.VIT, fields=_TOWER),
        "Dinov2Model": Target(table=tables.DINOV2, fields=_SCALED),
        "Dinov2WithRegistersModel": Target(table=tables.DINOV2, fields=_REGISTERED),
    },
    "image_classifier": {
        "ViTForImageClassification": Target(table=tables.VIT, fields=_under("tower.", _TOWER), prefix="vit."),
        "Dinov2ForImageClassification": Target(
            table=tables.DINOV2, fields=_under("tower.", _SCALED), prefix="dinov2."
        ),
        "Dinov2WithRegistersForImageClassification": Target(
            table=tables.DINOV2,
            fields=_under("tower.", _REGISTERED),
            prefix="dinov2_with_registers.",
        ),
    },
    "dual_encoder": {
        "CLIPModel": Target(table=_CLIP_TABLE, fields=_CLIP),
        "SiglipModel": Target(table=tables.SIGLIP, fields=_SIGLIP),
    },
}


def choose_target(config: Any) -> tuple[str, Target]:
    """The first class of transformers that can express `config`, with its name.

    Raises:
        ValueError: none can; the message names the fields in the way of the nearest one.
    """
    kind = kind_of(config)
    if kind not in TARGETS:
        raise ValueError(f"to_transformers does not write a {kind}: {nearest(kind, TARGETS)}")
    found = {name: blockers(config, target.fields) for name, target in TARGETS[kind].items()}
    for name, reasons in found.items():
        if not reasons:
            return name, TARGETS[kind][name]
    name = min(found, key=lambda n: len(found[n]))
    raise ValueError(
        f"transformers has no class for this {kind}; {name} is nearest: {'; '.join(found[name])}"
    )


def blockers(config: Any, allowed: Mapping[str, _Values], path: str = "") -> list[str]:
    """One phrase for every field of `config` that a target cannot express; empty = it can."""
    reasons = []
    for field in dataclasses.fields(config):
        name, value = path + field.name, getattr(config, field.name)
        if wanted := _PARTS.get(field.name):
            if isinstance(value, wanted):
                reasons += blockers(value, allowed, f"{name}.")
            elif hasattr(value, "library"):
                reasons.append(f"{name} is {value.library}'s {value.name}: save it with that library")
            else:
                reasons.append(f"{name} is a {type(value).__name__}, expected a {wanted.__name__}")
            continue
        if name not in allowed and field.name in FREE:
            continue
        values = allowed.get(name, (_default(field),))
        if not any(type(value) is v if isinstance(v, type) else value == v for v in values):
            reasons.append(f"{name} is {value!r}, expected {' or '.join(_said(v) for v in values)}")
    return reasons


def _default(field: dataclasses.Field[Any]) -> Any:
    return None if field.default is dataclasses.MISSING else field.default


def _said(value: Any) -> str:
    return "a number" if isinstance(value, type) else repr(value)
