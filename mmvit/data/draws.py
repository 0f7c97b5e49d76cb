"""Position in the global stream -> a decoded sample; the k-th batch of a rank -> `Packet`.

Everything here is a function of (seed, position), so workers and ranks only decide who computes it, and a bad
sample is replaced by the same other sample in every run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmvit.data.batch import Layout, PadTo, collate
from mmvit.data.decode import Decoder
from mmvit.data.mixture import Mixture
from mmvit.data.pixels import BadSample
from mmvit.data.position import Order
from mmvit.data.shards import ShardIndex
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.types import Batch, Sample

TRIES = 100


@dataclass(slots=True)
class Packet:
    """What travels from a worker to the main process.

    Attributes:
        batch: None where every sample was bad, or after a failure.
        drawn: samples that were tried.
        examples: reason -> one bad sample of this batch, for the log.
        failure: a user's error that happened in the worker.
    """

    batch: Batch | None = None
    drawn: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    failure: str | None = None


def unusable(skipped: Mapping[str, int]) -> int:
    """How many samples are bad by their counts; "box-…" is about one box of a sample that is used."""
    return sum(count for reason, count in skipped.items() if not reason.startswith("box-"))


class Skips:
    """Counts the bad samples of one batch, and the bad boxes of good ones."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, bad: BadSample, where: str) -> None:
        """Nothing; notes one bad sample and, the first time, where it is."""
        self.counts[bad.reason] += 1
        text = f"{where}: {bad}"  # keys come from strangers: one line, nothing a terminal would obey
        self.examples.setdefault(bad.reason, "".join(c if c.isprintable() else "?" for c in text))


@dataclass(slots=True)
class Source:
    """One data source: its name for samples and messages, and its shards."""

    name: str
    index: ShardIndex

    def load(self, i: int, decoder: Decoder, rng: random.Random, skips: Skips) -> Sample | None:
        """Sample i, or None (and a note in `skips`) where it is bad."""
        try:
            return decoder(self.index.read(i, decoder.wants), rng, self.name)
        except BadSample as bad:
            skips.add(bad, f"{self.index.key(i)} in {self.index.shard_of(i)}")
            return None


class Draws:
    """The endless stream of training samples.

    Args:
        sources: one or more.
        weights: how often each is drawn; None = one common order over all of them, every sample once
            per epoch.
        decoder: raw members to samples.
        seed: of orders, augmentation, captions and replacements.
        shuffle_block: samples shuffled together.
        unit: see `Mixture`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None,
        decoder: Decoder,
        seed: int,
        shuffle_block: int,
        unit: int = 1,
    ):
        self.sources = list(sources)
        self.decoder = decoder
        self.seed = seed
        if weights is not None and len(weights) != len(sources):
            raise UserError(
                f"{len(weights)} data weights for {len(sources)} sources: give one weight per source"
            )
        self.mixture = Mixture(weights, unit) if weights is not None and len(sources) > 1 else None
        sizes = [[shard.samples for shard in s.index.shards] for s in sources]
        if self.mixture is None:
            self.orders = [Order([n for source in sizes for n in source], seed, shuffle_block)]
        else:
            self.orders = [Order(n, f"{seed}:{k}", shuffle_block) for k, n in enumerate(sizes)]
        self._ends = np.cumsum([s.index.samples for s in sources])

    def locate(self, position: int) -> tuple[int, int]:
        """(source, sample of its index) at a global position."""
        if self.mixture is not None:
            source, inner = self.mixture.locate(position)
            return source, self.orders[source].sample(inner)[1]
        i = self.orders[0].sample(position)[1]
        source = int(np.searchsorted(self._ends, i, side="right"))
        return source, i - (int(self._ends[source - 1]) if source else 0)

    def sample(self, position: int, skips: Skips) -> Sample:
        """The sample at a position; a bad one is counted and replaced by another of its source.

        Raises:
            UserError: a hundred samples in a row are bad.
        """
        number, i = self.locate(position)
        source = self.sources[number]
        for attempt in range(TRIES):
            rng = random.Random(f"{self.seed}:{number}:{position}:{attempt}")
            if attempt:
                i = rng.randrange(source.index.samples)
            sample = source.load(i, self.decoder, rng, skips)
            if sample is not None:
                return sample
        seen = "; ".join(skips.examples.values())
        raise UserError(f"{TRIES} samples of {source.name} in a row cannot be used: {seen}")


class TrainBatches(Dataset[Packet]):
    """Item k: this rank's slice of the k-th global batch after `start`.

    Args:
        draws: the stream.
        batch_size: B, all ranks together.
        rank, world_size: which contiguous slice is ours.
        start: position of batch 0 in the stream.
        tokenizer, pad_to: see `collate`.
    """

    def __init__(
        self,
        draws: Draws,
        batch_size: int,
        rank: int,
        world_size: int,
        start: int,
        tokenizer: Tokenizer | None,
        pad_to: PadTo,
    ):
        self.draws = draws
        self.batch_size = batch_size
        self.local = batch_size // world_size
        self.rank = rank
        self.start = start
        self.tokenizer = tokenizer
        self.pad_to = pad_to
        self.layout = draws.decoder.layout()

    def __getitem__(self, k: int) -> Packet:
        position = self.start + k * self.batch_size
        first = position + self.rank * self.local
        skips = Skips()
        try:
            samples = [self.draws.sample(first + j, skips) for j in range(self.local)]
            return self.pack(samples, skips, position)
        except UserError as error:  # a worker's exception would come back as a traceback
            return Packet(failure=str(error))

    def pack(self, samples: Sequence[Any], skips: Skips, position: int) -> Packet:
        """What leaves the worker; other kinds of samples are packed otherwise."""
        return pack(samples, skips, position, self.tokenizer, self.pad_to, self.layout)


class EvalBatches(Dataset[Packet]):
    """Item k: the k-th batch of samples first..stop-1 in index order; bad samples are left out.

    Args:
        sources: laid end to end.
        decoder: raw members to samples.
        batch_size: of this process.
        first, stop: the part of all samples that this rank reads.
        tokenizer, pad_to: see `collate`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        decoder: Decoder,
        batch_size: int,
        first: int,
        stop: int,
        tokenizer: Tokenizer | None,
        pad_to: PadTo,
    ):
        self.sources = list(sources)
        self.decoder = decoder
        self.batch_size = batch_size
        self.first = first
        self.stop = stop
        self.tokenizer = tokenizer
        self.pad_to = pad_to
        self.layout = decoder.layout()
        self._ends = np.cumsum([s.index.samples for s in sources])

    def __len__(self) -> int:
        return -(-(self.stop - self.first) // self.batch_size)

    def __getitem__(self, k: int) -> Packet:
        begin = self.first + k * self.batch_size
        skips, samples = Skips(), []
        try:
            for i in range(begin, min(begin + self.batch_size, self.stop)):
                number = int(np.searchsorted(self._ends, i, side="right"))
                inner = i - (int(self._ends[number - 1]) if number else 0)
                sample = self.load(self.sources[number], inner, random.Random(i), skips)
                if sample is not None:
                    if "meta" in self.decoder.fields:
                        sample.meta = {**sample.meta, "__index__": i}
                    samples.append(sample)
            return self.pack(samples, skips, begin)
        except UserError as error:
            return Packet(failure=str(error))

    def load(self, source: Source, i: int, rng: random.Random, skips: Skips) -> Sample | None:
        """Sample i of a source, None where it is bad; other kinds of samples are loaded otherwise."""
        return source.load(i, self.decoder, rng, skips)

    def pack(self, samples: Sequence[Any], skips: Skips, position: int) -> Packet:
        """What leaves the worker."""
        return pack(samples, skips, position, self.tokenizer, self.pad_to, self.layout)


def pack(
    samples: Sequence[Sample],
    skips: Skips,
    position: int,
    tokenizer: Tokenizer | None,
    pad_to: PadTo,
    layout: Layout | None = None,
) -> Packet:
    """A batch with its bookkeeping, ready to leave the worker."""
    counts = dict(skips.counts)
    packet = Packet(drawn=len(samples) + unusable(counts), skipped=counts, examples=skips.examples)
    if samples:
        packet.batch = collate(samples, tokenizer, pad_to, layout)
        packet.batch.position = position
        packet.batch.skipped = counts
    return packet
