"""transformers' ViTMAE -> our image tower: the encoder of masked pre-training.

Source: MAE (arXiv:2111.06377). Its table of positions is fixed but stored: it is read from the file, and the
row of the class token becomes part of that token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line
from mmvit.hub.convert.transformers.config import core_of, image_of
from mmvit.hub.convert.transformers.tables import VIT
from mmvit.models.config import ImageTowerConfig
from mmvit.models.normalisation import IMAGENET

TABLE: list[Line] = [
    *VIT,
    ("decoder.*", LEFT_OUT + "the decoder of masked pre-training; the tower is the encoder"),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> ImageTowerConfig:
    """The tower of a ViTMAEModel or ForPreTraining, which sees all patches."""
    return image_of(c, core_of(c), position="sincos2d_mae", class_position=False, **IMAGENET)


def prepare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the class token's position added to it and taken out of the table."""
    cls, table = "embeddings.cls_token", "embeddings.position_embeddings"
    if cls not in state or table not in state:
        raise ValueError(f"ViTMAE weights lack '{cls if cls not in state else table}'")
    return {**state, cls: state[cls] + state[table][:, :1], table: state[table][:, 1:]}
