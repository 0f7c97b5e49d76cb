"""Captions -> token ids: the tokenizers, and loading a saved one without network or pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mmvit.data.text_clip import ClipTokenizer
from mmvit.data.text_sentencepiece import SentencePieceTokenizer
from mmvit.data.text_wordpiece import WordPieceTokenizer
from mmvit.data.text_words import WordTokenizer
from mmvit.data.tokenizer import CONFIG, FORMAT, TokenizedText, Tokenizer
from mmvit.errors import UserError, nearest

KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind for kind in (SentencePieceTokenizer, WordPieceTokenizer, ClipTokenizer, WordTokenizer)
}

__all__ = [
    "KINDS",
    "ClipTokenizer",
    "SentencePieceTokenizer",
    "TokenizedText",
    "Tokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "load_tokenizer",
]


def load_tokenizer(folder: str | os.PathLike[str], context_length: int | None = None) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`, with another context length if one is given.

    Raises:
        UserError: no tokenizer there, or one this version cannot read.
    """
    path = Path(folder)
    try:
        spec = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} holds no tokenizer ({CONFIG} is missing): make one with scripts/train_tokenizer.py"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / CONFIG} cannot be read: {error}") from None
    if not isinstance(spec, dict) or spec.pop("format", None) != FORMAT:
        raise UserError(f'{path / CONFIG} was not written by mmvit: no "format": "{FORMAT}" in it')
    version, kind = spec.pop("schema_version", 0), spec.pop("kind", "")
    if version != 1:
        raise UserError(f"{path / CONFIG} has schema_version {version}, this mmvit reads 1: update mmvit")
    if kind not in KINDS:
        raise UserError(f"{path / CONFIG}: unknown tokenizer kind {kind!r}: {nearest(str(kind), KINDS)}")
    try:
        tokenizer = KINDS[kind].from_spec(spec, path)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / CONFIG} is not a complete {kind} tokenizer: {error}") from None
    return tokenizer.with_context(context_length) if context_length else tokenizer
