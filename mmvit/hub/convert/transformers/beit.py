"""transformers' Beit and Data2VecVision, which share an architecture -> our tower.

Version 5 keeps Beit under other names in memory than in files; both are read. Data2VecVision has the names of
the files in both.
Source: BEiT (arXiv:2106.08254); data2vec (arXiv:2202.03555).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks
from mmvit.hub.convert.transformers.config import core_of, image_of
from mmvit.models.config import ImageTowerConfig
from mmvit.models.normalisation import HALF

_DERIVED = LEFT_OUT + "derived from the grid"
_TABLE = "relative_position_bias.relative_position_bias_table"
_INDEX = "relative_position_bias.relative_position_index"
_COMMON: list[Line] = [
    ("layernorm_before.*", "norm1.*"),
    ("layernorm_after.*", "norm2.*"),
    ("lambda_1", "ls1.gamma"),
    ("lambda_2", "ls2.gamma"),
]


def _qkv(pattern: str, q: str, k: str, v: str) -> list[Line]:
    """The lines of q, k, v: weights in one tensor, biases of q and v apart."""
    weights: list[Line] = [
        (pattern.format(n) + ".weight", f"attn.qkv.weight#{part}") for part, n in enumerate((q, k, v))
    ]
    return [
        *weights,
        (pattern.format(q) + ".bias", "attn.q_bias"),
        (pattern.format(v) + ".bias", "attn.v_bias"),
    ]


BEIT: list[Line] = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("embeddings.mask_token", LEFT_OUT + "the token that stands for hidden patches in pre-training"),
    ("lm_head.*", LEFT_OUT + "the prediction of codes in pre-training"),
    ("layernorm.*", "core.norm.*"),
    ("pooler.layernorm.*", "pool.norm.*"),
    (f"encoder.{_TABLE}", "core.relative.table"),
    (f"encoder.{_INDEX}", _DERIVED),
    ("shared_position_bias.relative_position_bias_table", "core.relative.table"),
    *blocks(
        "encoder.layer.{i}.",
        "core.blocks.{i}.",
        [
            *_COMMON,
            *_qkv("attention.attention.{}", "query", "key", "value"),
            ("attention.output.dense.*", "attn.proj.*"),
            (f"attention.attention.{_TABLE}", "relative.table"),
            (f"attention.attention.{_INDEX}", _DERIVED),
            ("intermediate.dense.*", "mlp.fc1.*"),
            ("output.dense.*", "mlp.fc2.*"),
        ],
    ),
    *blocks(
        "layers.{i}.",
        "core.blocks.{i}.",
        [
            *_COMMON,
            *_qkv("attention.{}_proj", "q", "k", "v"),
            ("attention.o_proj.*", "attn.proj.*"),
            (_TABLE, "relative.table"),
            ("mlp.fc1.*", "mlp.fc1.*"),
            ("mlp.fc2.*", "mlp.fc2.*"),
        ],
    ),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> ImageTowerConfig:
    """The tower of a Beit or Data2VecVision model; its tensors say which norms it has: the classes differ.

    Raises:
        ValueError: relative positions per block and shared ones at once.
    """
    own, shared = c.use_relative_position_bias, c.use_shared_relative_position_bias
    if own and shared:
        raise ValueError("relative positions are per block and shared at once, expected one of the two")
    normed, pooled = "layernorm.weight" in state, "pooler.layernorm.weight" in state
    core = core_of(
        c,
        qkv_bias=True,
        key_bias=False,
        relative="block" if own else "shared" if shared else None,
        layer_scale=c.layer_scale_init_value if c.layer_scale_init_value > 0 else None,
        norm_last=normed,
    )
    return image_of(
        c,
        core,
        position="learned" if c.use_absolute_position_embeddings else "none",
        pool="mean_norm" if pooled else "cls" if normed else "mean",
        **HALF,
    )
