"""Sentence-transformers folders around a BERT encoder (all-MiniLM and its kin) -> our post-norm text tower.

Source: Wang et al. 2020 (MiniLM); Reimers & Gurevych 2019 (Sentence-BERT): mean of real tokens, unit length.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from mmvit.data.text import Tokenizer, WordPieceTokenizer
from mmvit.hub.convert.from_transformers import from_transformers

_POOLS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def from_sentence_bert(folder: str | Path, context_length: int = 128) -> tuple[nn.Module, Tokenizer]:
    """The text tower, no head, and its tokenizer ([CLS] pieces [SEP]).

    Args:
        folder: with config.json, model.safetensors, tokenizer.json and 1_Pooling/config.json.
        context_length: L at most 512; MiniLM was trained with 128.

    Raises:
        ValueError: a pooling other than mean or class token.
    """
    folder = Path(folder)
    pooling: dict[str, Any] = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    modes = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode") and on]
    if len(modes) != 1 or modes[0] not in _POOLS:
        raise ValueError(f"'{folder}' pools by {', '.join(modes)}: expected one of {', '.join(_POOLS)}")
    tower = from_transformers(folder, pool=_POOLS[modes[0]], context_length=context_length)
    return tower, WordPieceTokenizer(folder / "tokenizer.json", context_length=context_length, sep=True)
