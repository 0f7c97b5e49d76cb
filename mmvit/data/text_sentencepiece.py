"""SentencePiece with a sticky EOS, as LiT and SigLIP use it: a caption that is cut still ends with EOS.

Source: the tokenizers of LiT (32k, lower-cased, EOS also pads, pooled at the last position).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from mmvit.data.tokenizer import Tokenizer, read_bytes
from mmvit.errors import UserError, need

_FILE = "sentencepiece.model"


class SentencePieceTokenizer(Tokenizer):
    """pieces + EOS, cut to L-1 pieces + EOS, padded with EOS.

    Args:
        model: a SentencePiece model: its bytes or its path. It must define an EOS piece.
        context_length: L.
        lowercase: lower-case captions first.
    """

    kind = "sentencepiece"

    def __init__(
        self, model: bytes | str | os.PathLike[str], *, context_length: int = 16, lowercase: bool = True
    ):
        self._model = read_bytes(model, "SentencePiece model")
        self._processor = _processor(self._model, str(model) if not isinstance(model, bytes) else "model")
        self.context_length = context_length
        self.lowercase = lowercase
        self.vocab_size = self._processor.vocab_size()
        self.eos_id = self._processor.eos_id()
        self.pad_id = self.eos_id
        if self.eos_id < 0:
            raise UserError(
                "the SentencePiece model has no EOS piece: train one with scripts/train_tokenizer.py"
            )

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """For each caption pieces + EOS, at most L of them, and whether it was cut."""
        captions = [text.lower() for text in texts] if self.lowercase else list(texts)
        room = self.context_length - 1
        pieces = self._processor.encode(captions, out_type=int, num_threads=1)
        return [([*ids[:room], self.eos_id], len(ids) > room) for ids in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the pieces before the first EOS."""
        ids = list(ids)
        return self._processor.decode(ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids)

    def to_spec(self) -> dict[str, Any]:
        """Context length and case; the model is a file."""
        return {"context_length": self.context_length, "lowercase": self.lowercase}

    def files(self) -> dict[str, bytes]:
        """The SentencePiece model."""
        return {_FILE: self._model}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path) -> Self:
        """The tokenizer of a saved folder."""
        return cls(folder / _FILE, **spec)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processor": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._processor = _processor(self._model, "model")


def train_sentencepiece(
    captions: Iterable[str], vocab_size: int, *, lowercase: bool = True, byte_fallback: bool = True
) -> tuple[bytes, int]:
    """A SentencePiece unigram model and its vocabulary size, smaller than asked where captions are few.

    Ids: 0 padding (unused), 1 EOS, 2 unknown. One thread, fixed order: equal captions give equal bytes.

    Args:
        captions: training text.
        vocab_size: pieces wanted.
        lowercase: lower-case the captions first.
        byte_fallback: add the 256 bytes as pieces, so that no character is ever unknown.

    Raises:
        UserError: no text, or more distinct characters than pieces.
    """
    spm = need("sentencepiece")
    lines = [" ".join(text.split()) for text in captions]
    lines = [line.lower() if lowercase else line for line in lines if line]
    if not lines:
        raise UserError("no caption to train on: the shards hold no text in the languages asked for")
    while True:
        sink = _Sink()
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=sink,
                model_type="unigram",
                vocab_size=vocab_size,
                character_coverage=0.9995 if byte_fallback else 1.0,
                byte_fallback=byte_fallback,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                num_threads=1,
                shuffle_input_sentence=False,
                max_sentence_length=1 << 16,
                minloglevel=2,
            )
            return bytes(sink.data), vocab_size
        except RuntimeError as error:
            vocab_size = _smaller(str(error), vocab_size)


def _smaller(message: str, asked: int) -> int:
    """The vocabulary size that the trainer says is possible."""
    limit = re.search(r"<= (\d+)", message)
    if limit and int(limit[1]) < asked:
        return int(limit[1])
    if "required_chars" in message or "meta_pieces" in message:
        raise UserError(
            f"a vocabulary of {asked} is too small for the characters of these captions: raise --vocab-size"
        )
    raise UserError(f"SentencePiece could not train on these captions: {message[-200:]}")


class _Sink:
    """The file object that the trainer writes its model to."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, chunk: bytes) -> None:
        self.data.extend(chunk)


def _processor(model: bytes, name: str) -> Any:
    try:
        return need("sentencepiece").SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise UserError(f"{name} is not a SentencePiece model") from None
