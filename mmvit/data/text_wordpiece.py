"""WordPiece as BERT-style text towers use it: [CLS] + pieces, zero-padded, [SEP] where a model wants it.

Source: LiT's BERT towers leave [SEP] out; sentence encoders such as MiniLM were trained with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from mmvit.data.tokenizer import Tokenizer, read_bytes
from mmvit.errors import UserError, need

_FILE = "tokenizer.json"


class WordPieceTokenizer(Tokenizer):
    """[CLS] + pieces (+ [SEP]), cut so that the special tokens stay, padded with [PAD].

    Args:
        file: a `tokenizer.json` (Hugging Face tokenizers) or a BERT `vocab.txt`, as bytes or as a path.
        context_length: L.
        sep: end every caption with [SEP].
        lowercase: for a vocab.txt: lower-case and strip accents; a tokenizer.json says so itself.
    """

    kind = "wordpiece"

    def __init__(
        self,
        file: bytes | str | os.PathLike[str],
        *,
        context_length: int = 16,
        sep: bool = False,
        lowercase: bool = True,
    ):
        data = read_bytes(file, "WordPiece file")
        self._tokenizer = _build(data, lowercase, "the file" if isinstance(file, bytes) else os.fspath(file))
        self.context_length = context_length
        self.sep = sep
        self.vocab_size = self._tokenizer.get_vocab_size()
        special = {name: self._tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")}
        for name, value in special.items():
            if value is None:
                raise UserError(
                    f"this WordPiece vocabulary has no {name}; BERT's [CLS], [SEP], [PAD] are needed"
                )
        self.cls_id, self.sep_id, self.pad_id = special.values()

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """For each caption [CLS] + pieces (+ [SEP]), at most L of them, and whether it was cut."""
        room = self.context_length - 1 - self.sep
        tail = [self.sep_id] if self.sep else []
        rows = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [([self.cls_id, *row.ids[:room], *tail], len(row.ids) > room) for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the pieces, special tokens left out."""
        special = {self.cls_id, self.sep_id, self.pad_id}
        return self._tokenizer.decode([i for i in ids if i not in special])

    def to_spec(self) -> dict[str, Any]:
        """Context length and whether [SEP] ends a caption; the vocabulary is a file."""
        return {"context_length": self.context_length, "sep": self.sep}

    def files(self) -> dict[str, bytes]:
        """tokenizer.json in the form that the tokenizers library reads."""
        return {_FILE: self._tokenizer.to_str(pretty=False).encode()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path) -> Self:
        """The tokenizer of a saved folder."""
        return cls(folder / _FILE, **spec)


def _build(data: bytes, lowercase: bool, name: str) -> Any:
    """A `tokenizers.Tokenizer` without padding, truncation or special tokens of its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data workers fork
    lib = need("tokenizers")
    if data.lstrip()[:1] == b"{":
        try:
            tokenizer = lib.Tokenizer.from_str(data.decode("utf-8"))
            model = json.loads(data)["model"]["type"]
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{name} is not a tokenizer.json: {str(error)[:120]}") from None
        if model != "WordPiece":
            raise UserError(f"{name} holds a {model} tokenizer; WordPieceTokenizer needs a WordPiece one")
    else:
        need("tokenizers.normalizers")
        need("tokenizers.pre_tokenizers")
        need("tokenizers.decoders")
        try:
            words = data.decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{name} is neither a tokenizer.json nor a UTF-8 vocab.txt") from None
        vocab = {word: row for row, word in enumerate(words)}
        tokenizer = lib.Tokenizer(
            lib.models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
        )
        tokenizer.normalizer = lib.normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = lib.decoders.WordPiece()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
