"""CLIP's byte-pair tokenizer over the vocabulary that open_clip carries, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import need


class ClipTokenizer(Tokenizer):
    """start + pieces + end, lower-cased, cut so that the end token stays, padded with 0.

    Args:
        context_length: L; CLIP's towers use 77.

    Source: open_clip's SimpleTokenizer, whose ids are equal.
    """

    kind = "clip"
    pad_id = 0

    def __init__(self, *, context_length: int = 77):
        self._bpe = need("open_clip.tokenizer").SimpleTokenizer()
        self.context_length = context_length
        self.vocab_size = self._bpe.vocab_size
        self.start_id, self.end_id = self._bpe.sot_token_id, self._bpe.eot_token_id

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """For each caption start + pieces + end, at most L of them, and whether it was cut."""
        room = self.context_length - 2
        pieces = [self._bpe.encode(text) for text in texts]
        return [([self.start_id, *ids[:room], self.end_id], len(ids) > room) for ids in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the pieces between start and end."""
        kept = [int(i) for i in ids]
        kept = kept[: kept.index(self.end_id)] if self.end_id in kept else kept
        return self._bpe.decode([i for i in kept if i != self.start_id]).strip()

    def to_spec(self) -> dict[str, Any]:
        """Only the context length; the vocabulary is fixed."""
        return {"context_length": self.context_length}

    def files(self) -> dict[str, bytes]:
        """None: the vocabulary is part of open_clip."""
        return {}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path) -> Self:
        """The tokenizer of a saved folder."""
        return cls(**spec)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bpe": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bpe = need("open_clip.tokenizer").SimpleTokenizer()
