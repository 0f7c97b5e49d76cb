"""Trains a tokenizer on the captions of shards and saves it as a folder that recipes read.

    python scripts/train_tokenizer.py --data "data/corpus/train" --out runs/tokenizer --vocab-size 8000
    python scripts/train_tokenizer.py --data "data/corpus/train" --out runs/words --kind words

Pieces of words (SentencePiece), or whole words by how often they occur, as VATT's text towers read them.

Every caption of a sample counts, also those in the JSON's "texts". Equal shards and options, equal model.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from mmvit.data.decode import Decoder
from mmvit.data.draws import Skips
from mmvit.data.loader import open_sources
from mmvit.data.text_sentencepiece import SentencePieceTokenizer, train_sentencepiece
from mmvit.data.text_words import WordTokenizer, train_words
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError, one_line
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        data: shard pattern(s), several separated by "::".
        out: folder to write the tokenizer to.
        kind: sentencepiece, or words (always lower-cased).
        vocab_size: pieces or words wanted, special ones included; fewer where captions do not give as many.
        min_count: words: how often one must occur.
        context_length: tokens of a caption, EOS included; longer ones are cut.
        lowercase: sentencepiece: lower-case captions, here and whenever the tokenizer is used.
        byte_fallback: sentencepiece: 256 byte pieces, so that no character is ever unknown.
        languages: languages of the JSON's "texts" to train on; "*" = all.
    """

    data: str = ""
    out: str = ""
    kind: Literal["sentencepiece", "words"] = "sentencepiece"
    vocab_size: int = 8000
    min_count: int = 1
    context_length: int = 16
    lowercase: bool = True
    byte_fallback: bool = True
    languages: tuple[str, ...] = ("en",)


@one_line
def main() -> None:
    """Runs the command line."""
    config = parse(Config, description=__doc__ or "")
    if not config.data or not config.out:
        raise UserError("give --data SHARDS and --out FOLDER")
    captions = read_captions(config)
    print(f"{len(captions)} captions, {len(set(captions))} different")
    tokenizer = make(config, captions)
    if tokenizer.vocab_size < config.vocab_size:
        print(
            f"vocabulary of {tokenizer.vocab_size}, not {config.vocab_size}: these captions do not give more"
        )
    tokenizer.save(config.out)
    text = tokenizer(captions)
    share = 100 * text.truncated / len(captions)
    what = "words" if config.kind == "words" else "pieces"
    print(
        f"{config.out}: {tokenizer.vocab_size} {what}; {text.mask.sum().item() / len(captions):.1f} tokens a "
        f"caption; {share:.2f} % of the captions are longer than {config.context_length} tokens"
    )


def make(config: Config, captions: list[str]) -> Tokenizer:
    """The tokenizer of these captions."""
    if config.kind == "words":
        words = train_words(captions, config.vocab_size, config.min_count)
        return WordTokenizer(words, context_length=config.context_length)
    model, _ = train_sentencepiece(
        captions, config.vocab_size, lowercase=config.lowercase, byte_fallback=config.byte_fallback
    )
    return SentencePieceTokenizer(model, context_length=config.context_length, lowercase=config.lowercase)


def read_captions(config: Config) -> list[str]:
    """Every caption in the shards, in index order.

    Raises:
        UserError: no shards, or no captions in them.
    """
    decoder = Decoder(fields=("text",), caption="all", languages=config.languages)
    skips, captions = Skips(), []
    for source in open_sources(config.data, decoder):
        for i in range(source.index.samples):
            sample = source.load(i, decoder, random.Random(0), skips)
            if sample is not None:
                captions += sample.meta["captions"]
    report(skips.counts, skips.examples)
    if not captions:
        raise UserError(f"{config.data} holds no captions in {', '.join(config.languages)}")
    return captions


def report(counts: Counter[str], examples: dict[str, str]) -> None:
    """Nothing; prints what was left out."""
    for reason, count in counts.most_common():
        print(f"left out {count}: {examples[reason]}")


if __name__ == "__main__":
    main()
