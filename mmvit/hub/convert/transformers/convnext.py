"""transformers' ConvNextV2 -> our tower with the convolutional core."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import Line, blocks
from mmvit.hub.convert.transformers.config import activation_of, square
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import ConvNextConfig
from mmvit.models.normalisation import IMAGENET


def vector(x: Tensor) -> Tensor:
    """A gain or bias (1,1,1,C) as (C)."""
    return x.reshape(-1)


# Blocks are numbered through and downsamplings by the stage before them once `numbered` has read the names.
TABLE: list[Line] = [
    ("embeddings.patch_embeddings.*", "patch_embed.proj.*"),
    ("embeddings.layernorm.*", "core.norm_pre.*"),
    ("layernorm.*", "pool.norm.*"),
    *blocks("downsamples.{i}.", "core.downsamples.{i}.", [("0.*", "norm.*"), ("1.*", "conv.*")]),
    *blocks(
        "blocks.{i}.",
        "core.blocks.{i}.",
        [
            ("dwconv.*", "conv.*"),
            ("layernorm.*", "norm.*"),
            ("pwconv1.*", "fc1.*"),
            ("grn.*", "response.*", vector),
            ("pwconv2.*", "fc2.*"),
        ],
    ),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> ImageTowerConfig:
    """Our config; the norm behind the pooling has an epsilon of its own, all others 1e-6."""
    core = ConvNextConfig(
        widths=tuple(c.hidden_sizes),
        depths=tuple(c.depths),
        activation=activation_of(c),
    )
    return ImageTowerConfig(
        core=core,
        image_size=square(c.image_size),
        patch_size=square(c.patch_size)[0],
        class_token=False,
        class_position=False,
        position="none",
        pool="mean_norm",
        pool_eps=c.layer_norm_eps,
        **IMAGENET,
    )


def prepare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `blocks.N.` and `downsamples.N.` for their places in stages."""
    return numbered(
        state, r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"encoder\.stages\.(\d+)\.downsampling_layer\."
    )


def numbered(state: Mapping[str, Tensor], block: str, downsample: str) -> dict[str, Tensor]:
    """`state` with blocks numbered through the stages, and downsamplings by the stage that they follow.

    Args:
        state: tensors by the peer's names.
        block: pattern of a block's prefix, groups: stage, block.
        downsample: pattern of a downsampling's prefix, group: the stage that it begins.
    """
    found = {tuple(map(int, m.groups())) for name in state if (m := re.match(block, name))}
    number = {place: n for n, place in enumerate(sorted(found))}
    out = {}
    for name, value in state.items():
        if m := re.match(block, name):
            place = tuple(map(int, m.groups()))
            name = f"blocks.{number[place]}.{name[m.end() :]}"
        elif (m := re.match(downsample, name)) and int(m[1]) > 0:
            name = f"downsamples.{int(m[1]) - 1}.{name[m.end() :]}"
        out[name] = value
    return out
