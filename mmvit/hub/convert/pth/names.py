"""Names in the official files of DeiT, CaiT, MAE, BEiT, iBOT and DINOv2, and what has no place in ours.

All are timm's names of some year. `modern` takes those that changed to today's; the tables do the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line
from mmvit.hub.convert.timm.cait import CAIT
from mmvit.hub.convert.timm.vit import VIT

_HIDDEN = LEFT_OUT + "the token that stands for hidden patches in pre-training"
_PROJECTION = LEFT_OUT + "a head of self-supervised training; the tower ends in features"

_TOWER: list[Line] = [
    *(line for line in VIT if line[0] != "dist_token"),
    ("dist_token", "dist_token"),
    ("core.relative.table", "core.relative.table"),
]

RELEASES: dict[str, list[Line]] = {
    "deit": _TOWER,
    "deit_distilled": _TOWER,
    "deit3": _TOWER,
    "cait": CAIT,
    "mae": [
        *_TOWER,
        ("mask_token", _HIDDEN),
        ("decoder_*", LEFT_OUT + "the decoder of pre-training"),
    ],
    "beit": [*_TOWER, ("mask_token", _HIDDEN), ("lm_head.*", _PROJECTION)],
    "beit_in22k": [*_TOWER, ("mask_token", _HIDDEN), ("lm_head.*", _PROJECTION)],
    "ibot": [*_TOWER, ("masked_embed", _HIDDEN)],
    "dinov2": [
        *_TOWER,
        ("mask_token", _HIDDEN),
        ("dino_head.*", _PROJECTION),
        ("ibot_head.*", _PROJECTION),
    ],
}
# Families whose `head` is a classifier; elsewhere it is the head of self-supervision.
CLASSIFIERS = ("deit", "deit_distilled", "deit3", "cait", "mae", "beit", "beit_in22k")

_RENAMED = [
    (re.compile(r"^blocks\.\d+\.(\d+)\."), r"blocks.\1."),  # DINOv2's blocks in chunks keep their number
    (re.compile(r"^register_tokens$"), "reg_token"),
    (re.compile(r"^rel_pos_bias\.relative_position_bias_table$"), "core.relative.table"),
    (re.compile(r"^(blocks\.\d+\.)attn\.relative_position_bias_table$"), r"\1relative.table"),
]
_SCALES = (re.compile(r"^(blocks\.\d+)\.gamma_([12])$"), r"\1.ls\2.gamma")


def modern(
    state: Mapping[str, Tensor], family: str
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """The tensors under today's names; new name -> name in the file; constants left out, with the reason."""
    renamed = _RENAMED if family == "cait" else [*_RENAMED, _SCALES]
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    constants: dict[str, str] = {}
    for name, value in state.items():
        if name.endswith("relative_position_index"):
            constants[name] = "a constant"
            continue
        new = name
        for pattern, target in renamed:
            new = pattern.sub(target, new)
        found[new], origin[new] = value, name
    return found, origin, constants
