"""A saved model of clips, sounds and pictures, ready to be measured: what the evaluation programs open.

Embeddings of shards are computed once, by all processes together, and kept for the next program where a
cache is given. Pairs of an image and a text tower go through `cli/pair.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.api.embedder import Embedder
from mmvit.api.ways import Way
from mmvit.cli.kept import KeptTexts, keep_rows, kept_file, recall_rows
from mmvit.cli.pair import Opened, left_out, progress
from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import read_all
from mmvit.data.shards import ShardIndex
from mmvit.errors import UserError
from mmvit.evaluators.embed import Embedded, autocast, gather
from mmvit.evaluators.image_text import read_facts
from mmvit.evaluators.media import FEATURES, MODALITIES, MediaEncoder, embed_media, modalities_in

_AT_ONCE = {"video": 8, "image": 64, "audio": 32}


@dataclass
class Media:
    """A model that sees or hears, with everything that feeds it.

    Attributes:
        folder: where it was saved.
        embedder: the model with its preprocessing, tokenizer and ways.
        precision: of the towers.
        rank: of this process.
        world_size: processes.
    """

    folder: str
    embedder: Embedder
    precision: str = "fp32"
    rank: int = 0
    world_size: int = 1

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self.embedder.config

    @property
    def ways(self) -> dict[str, Way]:
        """Modality -> how it goes through the model."""
        return self.embedder.ways

    @property
    def spaces(self) -> dict[str, tuple[str, ...]]:
        """Modality -> its spaces, the default one first, the finer ones after it."""
        return {name: way.spaces for name, way in self.ways.items()}

    def texts(self, cache: str = "") -> KeptTexts:
        """The text encoder, computing every text once; `save` keeps them in `cache` for other programs."""

        def encode(texts: Sequence[str]) -> Tensor:
            return self.embedder.encode(text=list(texts))

        fingerprint = self.embedder.fingerprint
        return KeptTexts(encode, cache if self.rank == 0 else "", fingerprint, self.precision)


@dataclass(frozen=True)
class Reading:
    """What is read of shards, and how.

    Attributes:
        modalities: of video, image, audio; those that the shards lack are left out.
        views: windows of a clip or a sound, spread evenly; 1 = the one in the middle.
        crops: of every window of a clip: left, middle, right (or top to bottom).
        still: pictures are the clips' middle frames, where the shards have no pictures of their own.
        features: what the towers give before their heads, view by view, in place of embeddings.
        captions: first, all, or None.
    """

    modalities: tuple[str, ...]
    views: int = 1
    crops: int = 1
    still: bool = False
    features: bool = False
    captions: str | None = "first"


def media_of(opened: Opened, folder: str, precision: str = "fp32") -> Media:
    """What `open_saved` found, ready to be measured, of any kind that embeds video, audio or pictures.

    Raises:
        UserError: a model that sees and hears nothing.
    """
    loaded, (rank, world_size) = opened
    device = next(loaded.model.parameters()).device
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    try:
        embedder = Embedder(loaded, device=device, dtype=dtypes.get(precision))
    except ValueError as error:
        raise UserError(f"'{folder}': {error}") from None
    if not set(embedder.ways) & set(MODALITIES):
        kind = loaded.config.get("kind")
        raise UserError(f"'{folder}' holds a {kind}: this needs a model that embeds video, audio or pictures")
    return Media(folder, embedder, precision, rank, world_size)


def choose(media: Media, urls: str, modality: str = "") -> str:
    """The modality that is named: the given one, else the first that model and data have; "" for none."""
    data = modalities_in(urls)
    return modality or next((name for name in media.ways if name in data and name != "text"), "")


def embed_shards(
    media: Media, urls: str, reading: Reading, *, batch_size: int = 16, workers: int = 0, cache: str = ""
) -> Embedded:
    """All samples of the shards with their embeddings in every space, with a progress display.

    Args:
        media: the model.
        urls: shard pattern(s).
        reading: what is read.
        batch_size: windows decoded together on each process.
        workers: processes that decode ahead, per process.
        cache: folder in which embeddings are kept for the next program, "" = nowhere.

    Raises:
        UserError: no shards, none of the modalities in them or in the model, or no usable sample.
    """
    names, still = _read(media, urls, reading)
    samples = sum(ShardIndex.open(pattern.strip()).samples for pattern in urls.split("::"))
    file = kept_file(cache, urls, _facts(media, names, still, reading), media.precision) if cache else None
    if file is not None and (kept := recall_rows(file)) is not None:
        facts = read_facts(urls, captions=reading.captions, optional=True)
        return left_out(_with_rows(facts, kept), samples, media.rank)
    fields = ["video" if name == "image" and still else name for name in names]
    clip, image = _preprocessing(media, fields)
    words = ["text"] if reading.captions else []
    share = samples * (media.rank + 1) // media.world_size - samples * media.rank // media.world_size
    stacked = reading.views * reading.crops > 1
    with (
        progress(f"embedding {urls}", share, quiet=media.rank > 0) as step,
        read_all(
            urls,
            batch_size=max(1, batch_size // max(1, reading.views * reading.crops)),
            rank=media.rank,
            world_size=media.world_size,
            workers=workers,
            fields=[*dict.fromkeys(fields), *words, "meta"],
            optional=[*dict.fromkeys(fields), *words],
            preprocess=image,
            clip=clip,
            views=reading.views,
            crops=reading.crops,
            caption="all" if reading.captions == "all" else "first",
        ) as loader,
    ):
        encoders = {name: _encoder(media.ways[name], media, reading.features) for name in names}
        at_once = min(_AT_ONCE[name] for name in names)
        part = embed_media(loader, encoders, stacked=stacked, still=still, at_once=at_once, progress=step)
    whole = gather(part)
    if not len(whole):
        raise UserError(f"{urls} holds no usable sample; skipped: {whole.skipped or 'none'}")
    if file is not None and media.rank == 0:
        there = {f"present {name}": rows for name, rows in whole.present.items()}
        keep_rows(file, {"index": whole.index, **there, **whole.embeddings})
    return left_out(whole, samples, media.rank)


def _read(media: Media, urls: str, reading: Reading) -> tuple[list[str], bool]:
    """(modalities that are read, whether pictures are frames of the clips)."""
    data = modalities_in(urls)
    still = reading.still or "image" not in data
    there = set(data) - {"image"} if still else set(data)
    if still and "video" in data and "video" in media.ways:
        there.add("image")
    names = [name for name in reading.modalities if name in there and name in media.ways]
    if not names:
        wanted = " or ".join(filter(None, reading.modalities)) or "modality"
        raise UserError(
            f"{urls} holds {', '.join(data) or 'nothing'} and '{media.folder}' embeds "
            f"{', '.join(media.ways)}: no {wanted} that both have"
        )
    return names, still and "image" in names


def _preprocessing(
    media: Media, fields: Sequence[str]
) -> tuple[ClipPreprocess | None, ImagePreprocess | None]:
    """What prepares clips and sounds, and what prepares pictures."""
    parts = {
        name: media.ways[name].prepare for name in ("video", "audio") if name in fields and name in media.ways
    }
    image = media.ways["image"].prepare if "image" in fields else None
    return (ClipPreprocess(**parts) if parts else None), image


def _encoder(way: Way, media: Media, features: bool) -> MediaEncoder:
    """Inputs (n,…) -> {"features": (n,D)}, or space -> (n,E), not normalised."""
    device = media.embedder.device

    @torch.no_grad()
    def encode(inputs: Tensor) -> Mapping[str, Tensor]:
        with autocast(device, media.precision):
            x = inputs.to(device)
            x = x if way.still is None else way.still(x)
            found = way.tower.features(x)
            return {FEATURES: found} if features else way.finish(way.tower.project(found))

    return encode


def _facts(media: Media, names: Sequence[str], still: bool, reading: Reading) -> str:
    """All that embeddings of given shards depend on."""
    how = f"{'+'.join(names)} views={reading.views} crops={reading.crops} still={still} "
    return f"{media.embedder.fingerprint} {how} features={reading.features}"


def _with_rows(facts: Embedded, kept: dict[str, Tensor]) -> Embedded:
    """The samples of `facts` that were embedded, with what was kept of them."""
    row = {int(number): i for i, number in enumerate(kept.pop("index"))}
    rows = [i for i, number in enumerate(facts.index.tolist()) if number in row]
    order = [row[int(facts.index[i])] for i in rows]
    present = {name.removeprefix("present "): values[order] for name, values in kept.items() if " " in name}
    return Embedded(
        facts.index[rows],
        [facts.keys[i] for i in rows],
        {name: values[order] for name, values in kept.items() if " " not in name},
        [facts.captions[i] for i in rows],
        [facts.meta[i] for i in rows],
        present=present,
    )
