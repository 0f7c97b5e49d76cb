"""Shards that can only be read front to back (pipes, http): webdataset opens them, the order is ours.

Each epoch permutes the shards and deals them to rank x worker slots; a slot shuffles raw members in a pool
and empties it at the epoch's end, so every sample comes exactly once per epoch. Streams never end, so all
ranks take the same number of steps. A slot draws exactly its share per batch (a bad sample is replaced by
one that waits in the pool), which makes a restart a matter of counting.
Differs: unlike local shards, the order depends on how many ranks and workers share the work.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import tarfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch.utils.data import IterableDataset

from mmvit.data.batch import PadTo
from mmvit.data.decode import Decoder
from mmvit.data.draws import Packet, Skips, pack
from mmvit.data.folder import INDEX, read_index, rebuild
from mmvit.data.offsets import split_name
from mmvit.data.pixels import BadSample
from mmvit.data.tokenizer import Tokenizer
from mmvit.data.workers import get_worker_info
from mmvit.errors import UserError, need
from mmvit.types import Sample

Raw = Mapping[str, bytes]
_CUT = "has_no_end_mark"
log = logging.getLogger(__name__)


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
        self._warned = False
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
        """Raw samples of a slot for ever, from its `skip`-th on, each with others that could replace it."""
        for epoch in itertools.count():
            shards = self.shards(epoch, slot, slots)
            whole = sum(self.counts[s] for s in shards) if self.counts is not None else None
            if whole is not None and skip >= whole > 0:
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
            if whole is not None and seen != whole and not self._warned:
                self._warned = True
                log.warning(
                    "%s … hold %d samples, index.json says %d: a run that is continued in a later epoch will "
                    "not go on exactly; %s", self.urls[shards[0]], seen, whole, rebuild(self.urls[shards[0]])
                )  # fmt: skip

    def _epoch(self, epoch: int, slot: int, shards: list[int]) -> Iterator[tuple[Raw, list[Raw]]]:
        rng = random.Random(f"{self.seed}:{epoch}:{slot}")
        pool: list[Raw] = []
        recent: deque[Raw] = deque(maxlen=64)  # stand in for a bad sample when the pool is empty
        for raw in itertools.chain.from_iterable(_members(self.urls[s]) for s in shards):
            pool.append(raw)
            if len(pool) >= self.pool:
                recent.append(_take(pool, rng))
                yield recent[-1], pool
        while pool:
            taken = _take(pool, rng)
            yield taken, pool or list(recent)
            recent.append(taken)


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
        self.layout = decoder.layout()

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
                yield pack(samples, skips, position, self.tokenizer, self.pad_to, self.layout)
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
                skips.add(bad, raw["__key__"].decode("utf-8", "backslashreplace"))
        raise UserError(f"100 samples in a row cannot be used: {'; '.join(skips.examples.values())}")


def _take(pool: list[Raw], rng: random.Random) -> Raw:
    k = rng.randrange(len(pool))
    pool[k], pool[-1] = pool[-1], pool[k]
    return pool.pop()


def _members(url: str) -> Iterator[Raw]:
    """The samples of one shard, front to back; members of one sample must stand side by side.

    Raises:
        UserError: the shard cannot be opened, is no tar, or breaks off.
    """
    key, raw = "", dict[str, bytes]()
    try:
        with need("webdataset").gopen(url) as source:
            for name, data in _files(source, url):
                before, (key, extension) = key, split_name(name)
                if raw and (key != before or extension in raw):
                    yield raw
                    raw = {}
                raw = raw or {"__key__": key.encode("utf-8", "surrogateescape")}
                raw[extension] = data
            if raw:
                yield raw
    except RecursionError:
        raise UserError(f"cannot read the shard {url} as a stream: headers that make no sense") from None
    except Exception as error:  # tar, pipe, curl and decompressor each raise their own
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise UserError(f"cannot read the shard {url} as a stream: {reason.splitlines()[0][:200]}") from None


class _Header(tarfile.TarInfo):
    """A member's header; what is no header is an error, where tarfile would take it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            member = super().fromtarfile(archive)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            setattr(archive, _CUT, archive.offset > 0)
            raise
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged at byte {archive.offset} ({error})") from None
        if member.size < 0:
            raise tarfile.ReadError(f"damaged at byte {archive.offset} (a member of {member.size} bytes)")
        return member


def _files(source: Any, url: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the plain files in a tar, compressed or not."""
    links = 0
    with tarfile.open(fileobj=source, mode="r|*", tarinfo=_Header) as archive:
        for member in archive:
            links += member.issym() or member.islnk()
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                yield member.name, file.read()
            archive.members = []  # type: ignore[attr-defined]  # headers need not stay in memory
        rest = archive.fileobj.read(1 << 16) if archive.fileobj is not None else b""
        cut = getattr(archive, _CUT, False)
    if cut:
        log.warning("%s has no end mark: its tail is lost", url)
    if links:
        log.warning("%s holds %d links: members must be plain files, these are left out", url, links)
    if rest.strip(b"\0"):
        log.warning("%s goes on behind its end mark (tars put together?): its tail is lost", url)


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
