"""transformers' Audio Spectrogram Transformer -> our audio tower, which reads class and distillation token.

Source: AST (arXiv:2104.01778). Both of transformers' spellings are read: that of files and of version 4
(`encoder.layer.0.attention.attention.query`) and that of version 5 in memory (`layers.0.attention.q_proj`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.keymap import Line
from mmvit.hub.convert.transformers.config import core_of
from mmvit.hub.convert.transformers.tables import VIT_BLOCKS
from mmvit.models.config import AudioTowerConfig
from mmvit.models.normalisation import AUDIOSET

TABLE: list[Line] = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("layernorm.*", "core.norm.*"),
    ("classifier.layernorm.*", "pool.norm.*"),
    *VIT_BLOCKS,
]


def describe(c: Any, state: Mapping[str, Tensor]) -> AudioTowerConfig:
    """The tower of an ASTModel or ASTForAudioClassification; the latter norms before its linear layer."""
    return AudioTowerConfig(
        core=core_of(c),
        spectrogram_size=(c.max_length, c.num_mel_bins),
        patch_size=c.patch_size,
        patch_stride=(c.frequency_stride, c.time_stride),
        distill_token=True,
        pool="cls_dist_norm" if "classifier.layernorm.weight" in state else "cls_dist",
        **AUDIOSET,
    )
