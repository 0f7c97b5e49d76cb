"""From plain-data configs to modules: the parts that several models share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import nn

from mmvit.core.mlp import ACTIVATIONS
from mmvit.core.vit import ViT
from mmvit.heads.pool import build_pool
from mmvit.models.config import (
    CoreConfig,
    ForeignImageTowerConfig,
    ImageTowerConfig,
    Pool,
    TextTowerConfig,
)

if TYPE_CHECKING:
    from mmvit.models.foreign import ForeignImageTower
    from mmvit.models.image import ImageTower
    from mmvit.models.text import TextTower


def build_core(config: CoreConfig) -> ViT:
    """The transformer that `config` describes, freshly initialised as in big_vision."""
    return ViT(**dataclasses.asdict(config))


def build_tower_pool(pool: Pool, core: CoreConfig) -> nn.Module:
    """The pooling of a tower, with the heads, MLP width, activation and epsilon of its core."""
    return build_pool(
        pool,
        core.width,
        core.num_heads,
        core.mlp_dim,
        activation=ACTIVATIONS[core.activation],
        norm_eps=core.norm_eps,
    )


def build_image_tower(config: ImageTowerConfig | ForeignImageTowerConfig) -> ImageTower | ForeignImageTower:
    """Our own ViT tower, or a peer library's model behind the same interface; random weights."""
    if isinstance(config, ForeignImageTowerConfig):
        from mmvit.models.foreign import ForeignImageTower

        return ForeignImageTower(config)
    from mmvit.models.image import ImageTower

    return ImageTower(config)


def build_text_tower(config: TextTowerConfig) -> TextTower:
    """The text tower that `config` describes; random weights."""
    from mmvit.models.text import TextTower

    return TextTower(config)
