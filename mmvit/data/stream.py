"""Shards that can only be read front to back (pipes, http): webdataset reads the tars, the order is ours.

Each epoch permutes the shards and deals them to rank x worker slots; a slot shuffles raw members in a pool
and empties it at the epoch's end, so every sample comes exactly once per epoch. Streams never end, so all
ranks take the same number of steps. A slot draws exactly its share per batch (a bad sample is replaced by
one that waits in the pool), which makes a restart a matter of counting.
Differs: unlike local shards, the order depends on how many ranks and workers share the work.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.utils.data import IterableDataset, get_worker_info

from mmvit.data.batch import PadTo
from mmvit.data.decode import Decoder
from mmvit.data.draws import Packet, Skips, pack
from mmvit.data.folder import INDEX, read_index
from mmvit.data.pixels import BadSample
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError, need
from mmvit.types import Sample

Raw = Mapping[str, bytes]


@dataclass(frozen=True)
class Split:
    """Who reads what: B samples a batch over all ranks, `workers` slots a rank, from position `start` on."""

    batch_size: int
    rank: int
    world_size: int
    workers: int
    start: int

    def __post_init__(self) -> None:
        if self.start % self.batch_size:
            raise UserError(
                f"streams restart at whole batches: position {self.start} is no multiple of the batch size "
                f"{self.batch_size}; go on with the batch size the run had"
            )

    @property
    def slots(self) -> int:
        """Readers over all ranks."""
        return self.world_size * self.workers


class Streams:
    """The shards, how many samples they hold, and the order in which one slot reads them.

    Args:
        urls: every shard, "pipe:…", "http://…" or a path.
        seed: of the order.
        samples: how many there are in all, where no index.json says so.
        pool: raw samples that a slot shuffles among.

    Raises:
        UserError: neither an index.json nor `samples` says how many there are.
    """

    def __init__(self, urls: list[str], seed: int, samples: int | None, pool: int = 2000):
        self.urls = urls
        self.seed = seed
        self.pool = pool
        self.counts = _counts(urls)
        if self.counts is None and samples is None:
            raise UserError(
                f"how many samples is {urls[0]}? Put an {INDEX} beside it, or give --data.samples N"
            )
        self.samples = sum(self.counts) if self.counts is not None else samples or 0

    def shards(self, epoch: int, slot: int, slots: int) -> list[int]:
        """Numbers of the shards that a slot reads in an epoch."""
        order = list(range(len(self.urls)))
        random.Random(f"{self.seed}:{epoch}").shuffle(order)
        return order[slot::slots]

    def draws(self, slot: int, slots: int, skip: int) -> Iterator[tuple[Raw, list[Raw]]]:
        """Raw samples of a slot for ever, from its `skip`-th on, each with the pool it came out of."""
        for epoch in itertools.count():
            shards = self.shards(epoch, slot, slots)
            if self.counts is not None:
                whole = sum(self.counts[s] for s in shards)
                if skip >= whole > 0:
                    skip -= whole  # an epoch that was read before need not be opened
                    continue
            seen = 0
            for item in self._epoch(epoch, slot, shards):
                seen += 1
                if skip:
                    skip -= 1
                    continue
                yield item
            if not seen:
                raise UserError(f"the shards of {self.urls[0]} … hold no samples")

    def _epoch(self, epoch: int, slot: int, shards: list[int]) -> Iterator[tuple[Raw, list[Raw]]]:
        rng = random.Random(f"{self.seed}:{epoch}:{slot}")
        pool: list[Raw] = []
        for raw in itertools.chain.from_iterable(_members(self.urls[s]) for s in shards):
            pool.append(raw)
            if len(pool) >= self.pool:
                yield _take(pool, rng), pool
        while pool:
            yield _take(pool, rng), pool


class StreamBatches(IterableDataset[Packet]):
    """This rank's batches, computed by the slot that this worker is.

    Args:
        streams: the shards.
        split: batch size, rank, workers, start.
        decoder: raw members to samples.
        tokenizer, pad_to: see `collate`.

    Raises:
        UserError: fewer shards than ranks x workers; says by how many.
    """

    def __init__(
        self, streams: Streams, split: Split, decoder: Decoder, tokenizer: Tokenizer | None, pad_to: PadTo
    ):
        short = split.slots - len(streams.urls)
        if short > 0:
            raise UserError(
                f"{len(streams.urls)} shards for {split.world_size} ranks x {split.workers} workers: {short} "
                "short; write more (scripts/make_shards.py --samples-per-shard N) or use fewer --data.workers"
            )
        self.streams = streams
        self.split = split
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.pad_to = pad_to

    def __iter__(self) -> Iterator[Packet]:
        split = self.split
        info = get_worker_info()
        done = split.start // split.batch_size
        mine = (done + (info.id if info else 0)) % split.workers  # the first batch comes from worker 0
        before = len(range(mine, done, split.workers))
        size = split.batch_size // split.world_size
        slot = split.rank * split.workers + mine
        try:
            draws = self.streams.draws(slot, split.slots, before * size)
            for turn in itertools.count(before):
                skips = Skips()
                samples = [self._sample(next(draws), f"{slot}:{turn}:{j}", skips) for j in range(size)]
                position = (mine + turn * split.workers) * split.batch_size
                yield pack(samples, skips, position, self.tokenizer, self.pad_to)
        except UserError as error:
            yield Packet(failure=str(error))

    def _sample(self, draw: tuple[Raw, list[Raw]], place: str, skips: Skips) -> Sample:
        raw, pool = draw
        for attempt in range(100):
            rng = random.Random(f"{self.streams.seed}:{place}:{attempt}")
            if attempt and pool:
                raw = pool[rng.randrange(len(pool))]
            try:
                return self.decoder(raw, rng, "stream")
            except BadSample as bad:
                skips.add(bad, raw["__key__"].decode("utf-8", "replace"))
        raise UserError(f"100 samples in a row cannot be used: {'; '.join(skips.examples.values())}")


def _take(pool: list[Raw], rng: random.Random) -> Raw:
    k = rng.randrange(len(pool))
    pool[k], pool[-1] = pool[-1], pool[k]
    return pool.pop()


def _members(url: str) -> Iterator[Raw]:
    """The samples of one shard, front to back.

    Raises:
        UserError: the shard cannot be opened, is no tar, or breaks off.
    """
    tars = need("webdataset.tariterators")
    try:
        with need("webdataset").gopen(url) as stream:
            files = tars.tar_file_expander([{"url": url, "stream": stream}])
            for sample in tars.group_by_keys(files):
                raw = {name: data for name, data in sample.items() if not name.startswith("__")}
                yield {"__key__": sample["__key__"].encode("utf-8", "backslashreplace"), **raw}
    except Exception as error:  # tar, pipe, curl and decompressor each raise their own
        reason = error.args[0] if error.args else type(error).__name__
        raise UserError(f"cannot read the shard {url} as a stream: {reason}") from None


def _counts(urls: list[str]) -> list[int] | None:
    """Samples per shard from the index.json files beside them, None where one is missing."""
    counts, known = [], {}
    for url in urls:
        folder, slash, name = url.rpartition("/")
        if folder not in known:
            known[folder] = {} if url.startswith("pipe:") else _listed(folder + slash)
        if name not in known[folder]:
            return None
        counts.append(known[folder][name])
    return counts


def _listed(folder: str) -> dict[str, int]:
    """Shard name -> samples, as a folder's index.json (local or remote) says; empty where there is none."""
    if "://" not in folder:
        content = read_index(folder)
    else:
        try:
            with need("webdataset").gopen(folder + INDEX) as file:
                content = json.loads(file.read())
        except Exception:  # whatever the transport raises: there is no index to be had
            return {}
    return {s["name"]: s["samples"] for s in content["shards"]} if content else {}
