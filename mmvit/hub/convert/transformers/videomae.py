"""transformers' VideoMAE -> our video tower: the encoder of pre-training, or the fine-tuned classifier.

Source: VideoMAE (arXiv:2203.12602). Queries and values have biases, keys have none. Fine-tuned models norm
the mean of all tokens (`fc_norm`) and have no norm before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks
from mmvit.hub.convert.transformers.config import core_of, square
from mmvit.models.config import VideoTowerConfig
from mmvit.models.normalisation import IMAGENET

_DECODER = LEFT_OUT + "the decoder of masked pre-training; the tower is the encoder"

TABLE: list[Line] = [
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("layernorm.*", "core.norm.*"),
    ("fc_norm.*", "pool.norm.*"),
    ("encoder_to_decoder.weight", _DECODER),
    ("mask_token", _DECODER),
    ("decoder.*", _DECODER),
    *blocks(
        "encoder.layer.{i}.",
        "core.blocks.{i}.",
        [
            ("attention.attention.query.weight", "attn.qkv.weight#0"),
            ("attention.attention.key.weight", "attn.qkv.weight#1"),
            ("attention.attention.value.weight", "attn.qkv.weight#2"),
            ("attention.attention.query.bias", "attn.q_bias"),
            ("attention.attention.value.bias", "attn.v_bias"),
            ("attention.attention.q_bias", "attn.q_bias"),  # as transformers 4 spelled them
            ("attention.attention.v_bias", "attn.v_bias"),
            ("attention.output.dense.*", "attn.proj.*"),
            ("layernorm_before.*", "norm1.*"),
            ("layernorm_after.*", "norm2.*"),
            ("intermediate.dense.*", "mlp.fc1.*"),
            ("output.dense.*", "mlp.fc2.*"),
        ],
    ),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> VideoTowerConfig:
    """The tower of a VideoMAEModel, ForPreTraining or ForVideoClassification; takes clips (B,3,T,H,W).

    Raises:
        ValueError: a classifier that reads the first token, or channels other than three.
    """
    if c.num_channels != 3:
        raise ValueError(f"num_channels is {c.num_channels}, expected 3")
    fine_tuned, normed = "fc_norm.weight" in state, "layernorm.weight" in state
    if "classifier.weight" in state and not fine_tuned:
        raise ValueError("this VideoMAE classifier reads the first token; expected use_mean_pooling=True")
    frames, (height, width) = c.tubelet_size, square(c.patch_size)
    return VideoTowerConfig(
        core=core_of(c, qkv_bias=c.qv_bias, key_bias=not c.qv_bias, norm_last=normed),
        clip_size=(c.num_frames, *square(c.image_size)),
        patch_size=(frames, height, width),
        class_token=False,
        position="sincos1d",
        position_resample="recompute",
        pool="mean_norm" if fine_tuned else "mean",
        pool_eps=1e-5 if fine_tuned else None,  # transformers does not pass its epsilon on to this norm
        **IMAGENET,
    )
