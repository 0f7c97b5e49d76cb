"""transformers' Whisper -> our audio tower: the encoder; the decoder, which writes text, stays behind.

Source: Whisper (arXiv:2212.04356). Queries and values have biases, keys have none.
Differs: the tower takes any number of frames up to the stored one; transformers' encoder that one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks, row
from mmvit.hub.convert.transformers.config import activation_of
from mmvit.models.config import AudioTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.presets.whisper import CORE, TOWER

_DECODER = LEFT_OUT + "the decoder, which writes text; the tower is the encoder"

TABLE: list[Line] = [
    ("encoder.conv1.*", "patch_embed.convs.0.*"),
    ("encoder.conv2.*", "patch_embed.convs.1.*"),
    ("encoder.embed_positions.weight", "pos_embed", row),
    ("encoder.layer_norm.*", "core.norm.*"),
    ("decoder.*", _DECODER),
    ("proj_out.weight", _DECODER),
    *blocks(
        "encoder.layers.{i}.",
        "core.blocks.{i}.",
        [
            ("self_attn.q_proj.weight", "attn.qkv.weight#0"),
            ("self_attn.k_proj.weight", "attn.qkv.weight#1"),
            ("self_attn.v_proj.weight", "attn.qkv.weight#2"),
            ("self_attn.q_proj.bias", "attn.q_bias"),
            ("self_attn.v_proj.bias", "attn.v_bias"),
            ("self_attn.out_proj.*", "attn.proj.*"),
            ("self_attn_layer_norm.*", "norm1.*"),
            ("final_layer_norm.*", "norm2.*"),
            ("fc1.*", "mlp.fc1.*"),
            ("fc2.*", "mlp.fc2.*"),
        ],
    ),
]


def describe(c: Any, state: Mapping[str, Tensor]) -> AudioTowerConfig:
    """The tower of a WhisperModel, ForConditionalGeneration or ForAudioClassification, or the encoder alone.

    Raises:
        ValueError: an activation that ours has not.
    """
    core = CoreConfig(
        width=c.d_model,
        depth=c.encoder_layers,
        num_heads=c.encoder_attention_heads,
        mlp_dim=c.encoder_ffn_dim,
        activation=activation_of(c, "activation_function"),
        **CORE,
    )
    # The second convolution takes every other frame.
    return AudioTowerConfig(core=core, spectrogram_size=(2 * c.max_source_positions, c.num_mel_bins), **TOWER)


def prepare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whisper's tensors under the names of the whole model; a classifier's two linear layers as one.

    Nothing stands between them but the mean over the frames, which passes through either.
    """
    found = {name.removeprefix("model."): value for name, value in state.items()}
    if "conv1.weight" in found:
        found = {f"encoder.{name}": value for name, value in found.items()}
    if "projector.weight" in found:
        weight, bias = found.pop("projector.weight").double(), found.pop("projector.bias").double()
        outer = found["classifier.weight"]
        found["classifier.bias"] = (outer.double() @ bias + found["classifier.bias"]).to(outer.dtype)
        found["classifier.weight"] = (outer.double() @ weight).to(outer.dtype)
    return found
