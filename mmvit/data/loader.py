"""Shards -> batches, in this process or in workers: `make_loader` for training, `read_all` for evaluation.

Workers only compute ahead; what comes, and in which order, is decided by (seed, position) alone. A training
run's data position is therefore one number, `Loader.samples_seen`, given back as `start_position` to go on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmvit.data.audio import AudioAugment
from mmvit.data.batch import PadTo
from mmvit.data.clip import ClipPreprocess, ClipReader
from mmvit.data.decode import Decoder
from mmvit.data.draws import Draws, EvalBatches, Source, TrainBatches
from mmvit.data.feed import Loader
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.shards import ShardIndex, expand, is_remote
from mmvit.data.tokenizer import Tokenizer
from mmvit.data.video import ClipAugment
from mmvit.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data options of a recipe.

    Attributes:
        train: shard pattern(s); several sources are separated by "::".
        val: shard pattern(s) for evaluation during training; empty = none.
        weights: how often each source of `train` is drawn; empty = all samples equally often.
        workers: processes that read and decode ahead, per rank; 0 = in the training process.
        caption: "random" draws one of a sample's captions every time, "first" takes the main one.
        first_caption_rate: with "random": how often the main caption is taken without a draw, 0..1.
        languages: languages of the JSON's "texts" that are used; "*" = all.
        group_by: what makes two samples the same: "text", or a field of the JSON, e.g. "label".
        shuffle_block: samples that are shuffled together, after the shards.
        max_bad_rate: share of unusable samples, 0..1, above which the run stops.
        read: "index" reads local shards in any order, "stream" front to back, "auto" decides by the pattern.
        samples: for streams without an index.json: how many samples they hold.
    """

    train: str = ""
    val: str = ""
    weights: tuple[float, ...] = ()
    workers: int = 1
    caption: Literal["random", "first"] = "random"
    first_caption_rate: float = 0.0
    languages: tuple[str, ...] = ("en",)
    group_by: str = "text"
    shuffle_block: int = 65536
    max_bad_rate: float = 0.05
    read: Literal["auto", "index", "stream"] = "auto"
    samples: int | None = None


def make_loader(
    urls: str,
    *,
    batch_size: int,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    start_position: int = 0,
    num_batches: int | None = None,
    fields: Sequence[str] = ("image", "text"),
    preprocess: ImagePreprocess | None = None,
    augment: ImageAugment | None = None,
    clip: ClipPreprocess | None = None,
    clip_augment: ClipAugment | None = None,
    audio_augment: AudioAugment | None = None,
    optional: Sequence[str] = (),
    num_candidates: int = 5,
    tokenizer: Tokenizer | None = None,
    pad_to: PadTo = "context",
    caption: Literal["random", "first"] = "random",
    first_caption_rate: float = 0.0,
    languages: Sequence[str] = ("en",),
    group_by: str = "text",
    embedding_dim: int | None = None,
    shuffle_block: int = 65536,
    max_bad_rate: float = 0.05,
    pure_batches: bool = False,
    read: Literal["auto", "index", "stream"] = "auto",
    samples: int | None = None,
    prefetch: int = 2,
    start_method: str | None = None,
) -> Loader:
    """Endless (or `num_batches`) training batches of batch_size / world_size samples each.

    Every sample comes exactly once per epoch over all ranks, batches may straddle two epochs, all ranks get
    the same number of batches, and the batches do not depend on `workers`; only for streams do they.

    Args:
        urls: shard pattern(s), several sources separated by "::".
        batch_size: GLOBAL batch; a multiple of `world_size`.
        seed: of order, augmentation, captions.
        weights: one per source: how often each is drawn; None = one common order over all samples.
        rank: this process, 0..world_size-1; it gets the rank-th slice of every global batch.
        world_size: processes.
        workers: processes that read ahead, for this rank.
        start_position: `samples_seen` of the run that is continued.
        num_batches: None = endless.
        fields: image, image_embedding, video, audio, text, candidates; "meta" to get the JSON as well.
        preprocess: size and filter of pictures; None = those of `clip`, where there is one.
        augment: random views of pictures.
        clip: what is taken of video and sound; both begin at the same second, anywhere in the sample.
        clip_augment: random views of video.
        audio_augment: noise and masks.
        optional: fields that a sample may lack: its rows are zeros and False in the field's mask. Sources may
            then differ in their fields; one that no source has at all is left out.
        num_candidates: P, captions near in time.
        tokenizer: makes `text` and `text_mask`, or `candidates` and their masks.
        pad_to: "context" or "longest", see `collate`.
        caption: "random" draws one of a sample's captions, "first" takes the main one.
        first_caption_rate: with "random": how often the main caption is taken without a draw.
        languages: keys of the JSON's "texts" that count; ("*",) = all.
        group_by: what makes two samples the same: "text", or a field of the JSON.
        embedding_dim: D of cached embeddings, where it should be checked.
        shuffle_block: samples shuffled together.
        max_bad_rate: share of bad samples above which iteration stops with an error.
        pure_batches: every global batch comes from one source.
        read: "index", "stream" or "auto", see `DataConfig`.
        samples: how many there are, for streams without an index.json.
        prefetch: batches that each worker prepares ahead.
        start_method: fork, forkserver or spawn; None = the system's default.

    Raises:
        UserError: no shards, a field they do not have, a batch that the ranks cannot share.
    """
    check_ranks(rank, world_size)
    check_batch(batch_size, world_size)
    reader = _reader(fields, optional, clip, clip_augment, audio_augment)
    decoder = Decoder(
        fields=tuple(fields),
        optional=tuple(optional),
        preprocess=preprocess or _pictures(clip),
        augment=augment,
        clip=replace(reader, random_start=True) if reader is not None else None,
        candidates=num_candidates,
        caption=caption,
        first_caption_rate=first_caption_rate,
        languages=tuple(languages),
        group_by=group_by,
        embedding_dim=embedding_dim,
        random_view=True,
    )
    run: dict[str, Any] = {
        "batch_size": batch_size,
        "start": start_position,
        "workers": workers,
        "max_bad_rate": max_bad_rate,
        "prefetch": prefetch,
        "start_method": start_method,
    }
    if read == "stream" or (read == "auto" and any(is_remote(u) for u in urls.split("::"))):
        from mmvit.data.stream import Split, StreamBatches, Streams  # webdataset: only streams need it

        if weights or pure_batches:
            raise UserError("data weights need local shards read by index: leave --data.read at auto")
        streams = Streams([url for u in urls.split("::") for url in expand(u)], seed, samples)
        split = Split(batch_size, rank, world_size, max(1, workers), start_position)
        return Loader(
            StreamBatches(streams, split, decoder, tokenizer, pad_to),
            num_batches,
            samples=streams.samples,
            **run,
        )
    sources = open_sources(urls, decoder)
    decoder = decoder.without({f for f in optional if not _anywhere(f, sources, decoder)})
    draws = Draws(
        sources, weights or None, decoder, seed, shuffle_block, unit=batch_size if pure_batches else 1
    )
    dataset = TrainBatches(draws, batch_size, rank, world_size, start_position, tokenizer, pad_to)
    return Loader(dataset, num_batches, samples=sum(s.index.samples for s in sources), **run)


def read_all(
    urls: str,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    fields: Sequence[str] = ("image", "text", "meta"),
    preprocess: ImagePreprocess | None = None,
    clip: ClipPreprocess | None = None,
    views: int = 1,
    crops: int = 1,
    optional: Sequence[str] = (),
    num_candidates: int = 5,
    tokenizer: Tokenizer | None = None,
    pad_to: PadTo = "context",
    caption: Literal["first", "all"] = "first",
    languages: Sequence[str] = ("en",),
    group_by: str = "text",
    embedding_dim: int | None = None,
    max_bad_rate: float = 1.0,
    prefetch: int = 2,
    start_method: str | None = None,
) -> Loader:
    """Every sample exactly once over all ranks, in index order; bad samples are left out and counted.

    Rank r reads samples N*r//W .. N*(r+1)//W - 1. `batch_size` is this process's; the last batch may be
    smaller. With "meta" in `fields`, meta["__index__"] is the sample's number over all of `urls`; with
    caption="all", meta["captions"] lists all captions (the text is the first).

    Args:
        urls: shard pattern(s), several separated by "::".
        batch_size: of this process.
        rank: this process, 0..world_size-1.
        world_size: processes that share the samples.
        workers: processes that read ahead, for this rank.
        fields: image, image_embedding, video, audio, text, candidates, meta.
        preprocess: size and filter of pictures; None = those of `clip`, where there is one.
        clip: what is taken of video and sound, from the middle of the sample.
        views: evenly spaced windows instead.
        crops: places along the long side, for every window of the video. With several views or crops `video`
            is (B,views*crops,3,T,H,W), crops fastest, and `audio` (B,views,…).
        optional: fields that a sample may lack, as for `make_loader`.
        num_candidates: P, captions near in time.
        tokenizer: makes `text` and `text_mask`, or `candidates` and their masks.
        pad_to: "context" or "longest", see `collate`.
        caption: "first", or "all".
        languages: keys of the JSON's "texts" that count; ("*",) = all.
        group_by: what makes two samples the same: "text", or a field of the JSON.
        embedding_dim: D of cached embeddings, where it should be checked.
        max_bad_rate: share of bad samples above which iteration stops with an error.
        prefetch: batches that each worker prepares ahead.
        start_method: fork, forkserver or spawn; None = the system's default.

    Raises:
        UserError: no shards, or a field they do not have.
    """
    check_ranks(rank, world_size)
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    reader = _reader(fields, optional, clip)
    decoder = Decoder(
        fields=tuple(fields),
        optional=tuple(optional),
        preprocess=preprocess or _pictures(clip),
        clip=replace(reader, views=views, crops=crops) if reader is not None else None,
        candidates=num_candidates,
        caption=caption,
        languages=tuple(languages),
        group_by=group_by,
        embedding_dim=embedding_dim,
    )
    sources = open_sources(urls, decoder)
    decoder = decoder.without({f for f in optional if not _anywhere(f, sources, decoder)})
    total = sum(s.index.samples for s in sources)
    first, stop = total * rank // world_size, total * (rank + 1) // world_size
    dataset = EvalBatches(sources, decoder, batch_size, first, stop, tokenizer, pad_to)
    return Loader(
        dataset,
        len(dataset),
        samples=total,
        batch_size=batch_size,
        start=first,
        workers=workers,
        max_bad_rate=max_bad_rate,
        prefetch=prefetch,
        start_method=start_method,
    )


def open_sources(urls: str, decoder: Decoder) -> list[Source]:
    """The sources of a "::" list, checked to have the fields that the decoder needs."""
    sources = []
    for pattern in urls.split("::"):
        if not pattern.strip():
            raise UserError(f"no shards given: {urls!r} has an empty pattern")
        index = ShardIndex.open(pattern.strip())
        decoder.check(index.fields, pattern)
        name = os.path.basename(pattern.rstrip("/")).split("{")[0].split("*")[0].removesuffix(".tar")
        sources.append(Source(name.rstrip("-_.") or pattern, index))
    return sources


def _reader(
    fields: Sequence[str],
    optional: Sequence[str],
    clip: ClipPreprocess | None,
    augment: ClipAugment | None = None,
    audio_augment: AudioAugment | None = None,
) -> ClipReader | None:
    """How the fields "video" and "audio" are read, None where neither is wanted."""
    if clip is None or not {"video", "audio"}.intersection(fields):
        return None
    return ClipReader(
        preprocess=clip,
        video="video" in fields,
        audio="audio" in fields,
        optional=tuple(optional),
        augment=augment,
        audio_augment=audio_augment,
    )


def _pictures(clip: ClipPreprocess | None) -> ImagePreprocess:
    return clip.image if clip is not None and clip.video is not None else ImagePreprocess()


def _anywhere(name: str, sources: Sequence[Source], decoder: Decoder) -> bool:
    """Whether any source has an optional field; says so where none has."""
    if any(decoder.carried(name, source.index.fields) for source in sources):
        return True
    log.warning("no source has %s: batches come without it", name)
    return False


def check_batch(batch_size: int, world_size: int) -> None:
    """Nothing; raises UserError for a global batch that the ranks cannot share evenly."""
    if batch_size < 1 or batch_size % world_size:
        raise UserError(f"batch size {batch_size} must be a positive multiple of the {world_size} processes")


def check_ranks(rank: int, world_size: int) -> None:
    """Nothing; fails where this process is not one of the group."""
    assert world_size >= 1, world_size
    assert 0 <= rank < world_size, (rank, world_size)
