"""transformers' CLAP -> our audio tower, our text tower, or both as a pair.

Its audio tower is HTSAT: a folded spectrogram, Swin's windows, the mean of all tokens, two linear maps. Its
text tower is RoBERTa: the norm behind the branches, the first token through a tanh layer, two linear maps.
Source: CLAP (arXiv:2211.06687), HTS-AT (arXiv:2202.00874).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks, scalar
from mmvit.hub.convert.transformers.config import activation_of, core_of
from mmvit.hub.convert.transformers.tables import BERT
from mmvit.models.config import AudioTowerConfig, DualEncoderConfig, FoldStemConfig, TextTowerConfig
from mmvit.models.core_config import SwinConfig
from mmvit.models.presets.clap import TOWER

_ATTENTION: list[Line] = [
    (f"attention.self.{n}.*", f"attn.qkv.*#{k}") for k, n in enumerate(("query", "key", "value"))
]
# Blocks are numbered through the stages once `prepare` has read the names.
AUDIO: list[Line] = [
    (
        "audio_encoder.batch_norm.num_batches_tracked",
        LEFT_OUT + "a counter; stored statistics are never renewed",
    ),
    *(
        (f"audio_encoder.batch_norm.{n}", f"patch_embed.norm.{n}")
        for n in ("weight", "bias", "running_mean", "running_var")
    ),
    ("audio_encoder.patch_embed.proj.*", "patch_embed.proj.*"),
    ("audio_encoder.patch_embed.norm.*", "core.norm_pre.*"),
    ("audio_encoder.norm.*", "core.norm.*"),
    ("audio_projection.linear1.*", "head.hidden.*"),
    ("audio_projection.linear2.*", "head.*"),
    *blocks("merges.{i}.", "core.merges.{i}.", [("norm.*", "norm.*"), ("reduction.*", "reduction.*")]),
    *blocks(
        "blocks.{i}.",
        "core.blocks.{i}.",
        [
            ("layernorm_before.*", "norm1.*"),
            ("layernorm_after.*", "norm2.*"),
            *_ATTENTION,
            ("attention.self.relative_position_bias_table", "attn.table"),
            ("attention.self.relative_position_index", LEFT_OUT + "derived from the window"),
            ("attention.output.dense.*", "attn.proj.*"),
            ("intermediate.dense.*", "mlp.fc1.*"),
            ("output.dense.*", "mlp.fc2.*"),
        ],
    ),
]
_POOLER: list[Line] = [("pooler.dense.*", "pool.dense.*")]
TEXT: list[Line] = [
    *(line for line in BERT if line[0] != "pooler.dense.*"),
    *_POOLER,
    ("embeddings.token_type_ids", LEFT_OUT + "a constant"),
    ("text_projection.linear1.*", "head.hidden.*"),
    ("text_projection.linear2.*", "head.*"),
]
PAIR: list[Line] = [
    *blocks("audio.", "image.", AUDIO),
    *blocks("text.", "text.", TEXT),
    ("logit_scale_a", "logit_scale", scalar),
    (
        "logit_scale_t",
        LEFT_OUT + "the factor of a text's scores over sounds; ours is that of a sound's over texts",
    ),
]


def describe_audio(c: Any, state: Mapping[str, Tensor]) -> AudioTowerConfig:
    """The tower of a ClapAudioModel, or of a ClapAudioModelWithProjection, whose E is that of the projection.

    Raises:
        ValueError: a fusion model, or a front end or norm that ours has not.
    """
    patch, stride = ((x, x) if isinstance(x, int) else tuple(x) for x in (c.patch_size, c.patch_stride))
    if c.enable_fusion:
        raise ValueError(
            "enable_fusion is True: a CLAP that fuses four spectrograms cannot be converted, one without can"
        )
    if len(set(patch)) > 1 or patch != stride or c.patch_embed_input_channels != 1:
        raise ValueError(
            f"patches of {patch} at strides {stride}, expected square ones side by side, of one channel"
        )
    if c.spec_size % c.num_mel_bins or not c.enable_patch_layer_norm or c.layer_norm_eps != 1e-5:
        raise ValueError(
            f"spec_size is {c.spec_size}, num_mel_bins {c.num_mel_bins}, layer_norm_eps {c.layer_norm_eps}: "
            "expected a size that is a multiple of the mel bands, 1e-5, and a norm on the patches"
        )
    fold = c.spec_size // c.num_mel_bins
    core = SwinConfig(
        width=c.patch_embeds_hidden_size,
        num_heads=tuple(c.num_attention_heads),
        depths=tuple(c.depths),
        window=c.window_size,
        mlp_ratio=c.mlp_ratio,
        qkv_bias=c.qkv_bias,
        norm_eps=c.layer_norm_eps,
        activation=activation_of(c),
    )
    return AudioTowerConfig(
        core=core,
        spectrogram_size=(c.spec_size * fold, c.num_mel_bins),
        patch_size=patch[0],
        patch_stride=stride,
        stem=FoldStemConfig(fold=fold),
        **_projection(c, "audio", state),
        **TOWER,
    )


def describe_text(c: Any, state: Mapping[str, Tensor]) -> TextTowerConfig:
    """The tower of a ClapTextModel, or of a ClapTextModelWithProjection.

    Raises:
        ValueError: another padding token than RoBERTa's.
    """
    core = core_of(c, norm="post", norm_first=True, norm_last=False)
    if c.pad_token_id != _FIRST - 1:
        raise ValueError(
            f"pad_token_id is {c.pad_token_id}, expected {_FIRST - 1}: positions begin behind it"
        )
    return TextTowerConfig(
        core=core,
        vocab_size=c.vocab_size,
        context_length=c.max_position_embeddings - _FIRST,
        pool="cls_tanh" if "pooler.dense.weight" in state else "cls",
        **_projection(c, "text", state),
    )


def describe(c: Any, state: Mapping[str, Tensor]) -> DualEncoderConfig:
    """The pair of a ClapModel, sounds first."""
    audio = {name.removeprefix("audio."): value for name, value in state.items() if name.startswith("audio.")}
    text = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
    return DualEncoderConfig(
        image=describe_audio(c.audio_config, audio),
        text=describe_text(c.text_config, text),
        logit_scale_max=None,
    )


def prepare_audio(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with blocks numbered through the stages, and mergings by the stage that they end."""
    found = {tuple(map(int, m.groups())) for name in state if (m := _BLOCK.match(name))}
    number = {place: n for n, place in enumerate(sorted(found))}
    out = {}
    for name, value in state.items():
        if m := _BLOCK.match(name):
            stage, block = map(int, m.groups())
            name = f"blocks.{number[stage, block]}.{name[m.end() :]}"
        elif m := _MERGE.match(name):
            name = f"merges.{m[1]}.{name[m.end() :]}"
        out[name] = value
    return out


def prepare_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with token type 0 added to the positions, and without the rows that no token has.

    Raises:
        ValueError: a table is missing.
    """
    words, types, positions = (
        f"embeddings.{n}_embeddings.weight" for n in ("word", "token_type", "position")
    )
    for name in (words, types, positions):
        if name not in state:
            raise ValueError(f"CLAP's text weights lack '{name}'")
    return {**state, positions: (state[positions].float() + state[types][0].float())[_FIRST:]}


def prepare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of both towers, prepared, behind "audio." and "text."."""
    out: dict[str, Tensor] = {}
    for side, change in (("audio", prepare_audio), ("text", prepare_text)):
        own = {n.removeprefix(f"{side}_model."): v for n, v in state.items() if n.startswith(f"{side}_")}
        out |= {f"{side}.{name}": value for name, value in change(own).items()}
    return out | {name: value for name, value in state.items() if not name.startswith(("audio_", "text_"))}


_FIRST = 2  # row of the first token's position: RoBERTa counts on from its padding token, 1
_BLOCK = re.compile(r"audio_encoder\.layers\.(\d+)\.blocks\.(\d+)\.")
_MERGE = re.compile(r"audio_encoder\.layers\.(\d+)\.downsample\.")


def _projection(c: Any, side: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of the projection's head, where there is one.

    Raises:
        ValueError: an activation other than ReLU.
    """
    if f"{side}_projection.linear2.weight" not in state:
        return {}
    if c.projection_hidden_act != "relu":
        raise ValueError(f"projection_hidden_act is '{c.projection_hidden_act}', expected 'relu'")
    return {"embed_dim": c.projection_dim, "head_hidden": c.projection_dim}
