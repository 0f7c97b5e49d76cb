"""Whole words of a fixed vocabulary, as VATT's text towers read them, and word vectors to start from.

Shape letters: V vocabulary, W width of a word vector.
Source: VATT (arXiv:2104.11178) appendix A.2.1; word2vec (arXiv:1301.3781) and its text format.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmvit.data.tokenizer import Tokenizer, read_bytes
from mmvit.errors import UserError

_FILE = "words.txt"
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SPECIAL = 2  # rows before the first word: padding and the unknown


class WordTokenizer(Tokenizer):
    """Lower-cased words; id 0 is padding, 1 any unknown word, and an empty caption is one of those.

    Args:
        words: the vocabulary, ids counting from 2: a sequence, or a file (bytes or path) with a word a line.
        context_length: L.

    Raises:
        UserError: no words, one that occurs twice, or one that no text can give.
    """

    kind = "words"
    pad_id = 0
    unknown_id = 1

    def __init__(self, words: Sequence[str] | bytes | str | os.PathLike[str], *, context_length: int = 16):
        if isinstance(words, bytes | str | os.PathLike):
            try:
                words = read_bytes(words, "word list").decode("utf-8").splitlines()
            except UnicodeDecodeError:
                raise UserError("a word list must be UTF-8 text, one word a line") from None
        self._ids = {word: number for number, word in enumerate(words, start=_SPECIAL)}
        if not words or len(self._ids) != len(words):
            twice = [word for word, count in Counter(words).items() if count > 1]
            raise UserError(
                f"a word list needs words, each once; {f'twice: {twice[0]!r}' if twice else 'none'}"
            )
        for word in words:
            if split(word) != [word]:
                raise UserError(f"{word!r} is not one lower-case word: no text could give it")
        self.vocab_size = _SPECIAL + len(words)
        self.context_length = context_length

    @property
    def words(self) -> tuple[str, ...]:
        """The vocabulary in the order of its ids, which count from 2."""
        return tuple(self._ids)

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """For each caption the ids of its words, at most L of them, and whether it was cut."""
        rows = [[self._ids.get(word, self.unknown_id) for word in split(text)] for text in texts]
        return [
            (row[: self.context_length] or [self.unknown_id], len(row) > self.context_length) for row in rows
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The words; unknown ones are "?", padding is left out."""
        words = self.words
        return " ".join("?" if i < _SPECIAL else words[i - _SPECIAL] for i in map(int, ids) if i)

    def to_spec(self) -> dict[str, Any]:
        """Only the context length; the vocabulary is a file."""
        return {"context_length": self.context_length}

    def files(self) -> dict[str, bytes]:
        """words.txt, a word a line."""
        return {_FILE: ("\n".join(self._ids) + "\n").encode()}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], folder: Path) -> Self:
        """The tokenizer of a saved folder."""
        return cls(folder / _FILE, **spec)


def split(text: str) -> list[str]:
    """The lower-cased words of a text: runs of letters and digits, with apostrophes inside them."""
    return _WORD.findall(unicodedata.normalize("NFKC", text.replace("\u2019", "'")).lower())


def train_words(captions: Iterable[str], vocab_size: int, min_count: int = 1) -> list[str]:
    """The most frequent words of captions, equally frequent ones by the alphabet.

    Args:
        captions: texts.
        vocab_size: ids in all, padding and the unknown included; fewer where there are not as many words.
        min_count: how often a word must occur.

    Raises:
        UserError: no word is left.
    """
    counts = Counter(word for caption in captions for word in split(caption))
    frequent = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    words = [word for _, word in frequent[: max(0, vocab_size - _SPECIAL)]]
    if not words:
        raise UserError(
            f"vocab_size={vocab_size} and min_count={min_count} leave none of {len(counts)} words: "
            f"raise the one (two ids are padding and the unknown word), lower the other"
        )
    return words


def read_word_vectors(path: str | os.PathLike[str], tokenizer: WordTokenizer) -> tuple[Tensor, Tensor]:
    """Vectors (V,W) float32 of a tokenizer's words, and which of its V ids have one, (V,) bool.

    Args:
        path: ".npy" with an array (V,W) whose rows are ids; or text, a word and its W numbers on each line,
            with or without word2vec's first line of two counts. Words outside the vocabulary are passed over.
        tokenizer: whose vocabulary is looked up.

    Raises:
        UserError: a file that cannot be read, rows of different lengths, or none of the words in it.
    """
    name, size = os.fspath(path), tokenizer.vocab_size
    if name.endswith(".npy"):
        try:
            array = np.load(name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the word vectors {name}: {error}") from None
        if array.ndim != 2 or len(array) != size:
            raise UserError(f"{name} holds {array.shape}, expected ({size}, W), a row for each id")
        known = torch.ones(size, dtype=torch.bool)
        known[:_SPECIAL] = False
        return torch.from_numpy(array.astype(np.float32)), known
    rows = _read_text(name, tokenizer)
    width = {len(row) for row in rows.values()}
    if len(width) != 1:
        wrong = f"rows of {sorted(width)} numbers" if width else "none of the tokenizer's words"
        raise UserError(f"{name} holds {wrong}: expected a word and its W numbers on each line")
    vectors, known = torch.zeros(size, width.pop()), torch.zeros(size, dtype=torch.bool)
    for number, row in rows.items():
        vectors[number], known[number] = torch.tensor(row), True
    return vectors, known


def _read_text(name: str, tokenizer: WordTokenizer) -> dict[int, list[float]]:
    """Id -> numbers, of the words that the tokenizer knows; the first of equal words counts."""
    ids = {word: number for number, word in enumerate(tokenizer.words, start=_SPECIAL)}
    rows: dict[int, list[float]] = {}
    try:
        with open(name, encoding="utf-8", errors="replace") as lines:
            for line_number, line in enumerate(lines, start=1):
                word, _, rest = line.rstrip().partition(" ")
                number = ids.get(word)
                if number is None or number in rows or (line_number == 1 and len(rest.split()) == 1):
                    continue
                rows[number] = [float(value) for value in rest.split()]
    except OSError as error:
        raise UserError(f"cannot read the word vectors {name}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{name}, line {line_number}: {error}") from None
    return rows
