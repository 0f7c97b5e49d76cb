"""What every tokenizer does: captions -> ids (B,L), mask (B,L), and a folder that brings it back.

A tokenizer only says how ONE caption becomes at most `context_length` ids; padding, counting what was cut,
saving and the fingerprint live here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mmvit.errors import UserError

CONFIG = "tokenizer_config.json"
FORMAT = "mmvit-tokenizer"
CHARACTERS = 32  # per token of the context length; longer captions are cut before they are tokenized


@dataclass(slots=True)
class TokenizedText:
    """Padded captions.

    Attributes:
        ids: (B,L) int64 token ids.
        mask: (B,L) bool, True = real token; with a sticky EOS, up to and including the first EOS.
        truncated: how many of the B captions were cut.
    """

    ids: Tensor
    mask: Tensor
    truncated: int

    def trim(self, multiple: int = 4) -> TokenizedText:
        """The same captions without the columns in which every row is padding, L rounded up to `multiple`.

        Only for towers that hide padding and do not pool at the last position.
        """
        real = int(self.mask.sum(dim=1).max()) if len(self.mask) else 0
        length = min(self.ids.shape[1], max(1, -(-real // multiple)) * multiple)
        return TokenizedText(
            self.ids[:, :length].contiguous(), self.mask[:, :length].contiguous(), self.truncated
        )


class Tokenizer(ABC):
    """Captions -> ids and mask; subclasses define `kind`, `encode`, `to_spec` and `files`.

    Attributes:
        vocab_size: rows that the token table needs.
        context_length: L, the longest sequence, special tokens included.
        pad_id: the id behind the last real token.
    """

    kind: ClassVar[str]
    vocab_size: int
    context_length: int
    pad_id: int

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """For each caption its ids, special tokens included and at most L of them, and whether it was cut."""

    @abstractmethod
    def to_spec(self) -> dict[str, Any]:
        """Plain data that, with `files`, rebuilds this tokenizer."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """File name -> content of what the tokenizer needs besides its spec."""

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path) -> Self:
        """The tokenizer of a saved folder."""

    def __call__(self, texts: Sequence[str]) -> TokenizedText:
        """Ids (B,L) int64, mask (B,L) bool and how many captions were cut; L is always `context_length`.

        Only the first 32 L characters are looked at (runs of white space count as one): byte-pair encoding
        of an endless word would take its length squared.

        Raises:
            UserError: one bare string instead of a list, or something that is not text.
        """
        if isinstance(texts, str):
            raise UserError(
                f"a tokenizer takes a list of captions, got one string {texts[:40]!r}: write [text]"
            )
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"captions must be str, got {type(text).__name__}")
        length = self.context_length
        short = [_cut(text, CHARACTERS * length) for text in texts]
        rows = self.encode([text for text, _ in short])
        ids = [sequence + [self.pad_id] * (length - len(sequence)) for sequence, _ in rows]
        real = torch.tensor([len(sequence) for sequence, _ in rows], dtype=torch.int64)
        return TokenizedText(
            ids=torch.tensor(ids, dtype=torch.int64).reshape(len(rows), length),
            mask=torch.arange(length) < real[:, None],
            truncated=sum(cut or shortened for (_, cut), (_, shortened) in zip(rows, short, strict=True)),
        )

    def with_context(self, context_length: int) -> Self:
        """The same tokenizer with another L.

        Raises:
            UserError: fewer than 2 tokens leave no room beside a special token.
        """
        if context_length < 2:
            raise UserError(f"context_length={context_length} must be at least 2")
        other = copy.copy(self)
        other.context_length = context_length
        return other

    def fingerprint(self) -> str:
        """64 hex digits over everything that decides the ids."""
        digest = hashlib.sha256(json.dumps(self._config(), sort_keys=True).encode())
        for name, content in sorted(self.files().items()):
            digest.update(name.encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Nothing; writes tokenizer_config.json and the tokenizer's files into `folder`."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (path / name).write_bytes(content)
        (path / CONFIG).write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        return {"format": FORMAT, "schema_version": 1, "kind": self.kind, **self.to_spec()}


def _cut(text: str, limit: int) -> tuple[str, bool]:
    """At most `limit` characters that every tokenizer takes, and whether some are missing."""
    whole = text
    if len(text) > limit:
        whole = " ".join(text.split())
        text = whole[:limit]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text, len(whole) > limit


def read_bytes(source: str | os.PathLike[str] | bytes, what: str) -> bytes:
    """The content of a tokenizer file, given as bytes or as a path.

    Raises:
        UserError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the {what} {os.fspath(source)}: {error.strerror}") from None
