"""What an exporter starts from: a model with the preprocessing and tokenizer that belong to it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import nn

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import Tokenizer
from mmvit.hub.folder import load


class Parts(NamedTuple):
    """A model and what it is fed through; None where it has no such side, or nobody said."""

    model: nn.Module
    preprocess: ImagePreprocess | None
    tokenizer: Tokenizer | None


def parts_of(m: Any, preprocess: ImagePreprocess | None = None, tokenizer: Tokenizer | None = None) -> Parts:
    """The parts of a folder, of a loaded model or embedder, or of a bare module.

    Args:
        m: a folder of ours, what `mmvit.load` or `hub.load` gave, or a module.
        preprocess: takes the place of the model's own.
        tokenizer: likewise.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a damaged folder, or an object that is no model.
    """
    if isinstance(m, str | os.PathLike):
        m = load(m)
    if isinstance(m, nn.Module):
        return Parts(m, preprocess, tokenizer)
    if not isinstance(getattr(m, "model", None), nn.Module):
        raise ValueError(
            f"expected a folder, a loaded model or a module, got {type(m).__name__}: pass its folder"
        )
    return Parts(m.model, preprocess or m.preprocess, tokenizer or m.tokenizer)
