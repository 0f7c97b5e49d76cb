"""A saved image-text pair, ready to compute: what every evaluation program and console script opens first.

Started by `torchrun` or `accelerate launch`, the processes join one group and share the samples between them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from mmvit.cli.kept import KeptTexts, keep, kept_file, recall
from mmvit.data.cache import read_cache
from mmvit.data.image import ImagePreprocess
from mmvit.data.shards import ShardIndex
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.evaluators.embed import Embedded, text_encoder
from mmvit.evaluators.image_text import embed_pictures, read_facts, with_image
from mmvit.hub.folder import Loaded, load
from mmvit.models.lit import DualEncoder

# What a folder held, and (rank, number) of the processes that opened it.
Opened = tuple[Loaded, tuple[int, int]]


@dataclass
class Pair:
    """Two towers with everything that feeds them.

    Attributes:
        folder: where they were saved.
        model: in eval mode on `device`.
        preprocess: for pictures.
        tokenizer: for texts.
        config: config.json.
        fingerprint: of weights, config and preprocessing.
        rank: of this process.
        world_size: processes.
    """

    folder: str
    model: DualEncoder
    preprocess: ImagePreprocess
    tokenizer: Tokenizer
    config: dict[str, Any]
    fingerprint: str
    rank: int = 0
    world_size: int = 1


def pair_of(opened: Opened, folder: str) -> Pair:
    """The image-text pair that `open_saved` found."""
    loaded, (rank, world_size) = opened
    assert loaded.preprocess is not None
    assert loaded.tokenizer is not None
    return Pair(
        folder,
        cast(DualEncoder, loaded.model),
        loaded.preprocess,
        loaded.tokenizer,
        loaded.config,
        loaded.fingerprint,
        rank,
        world_size,
    )


def is_pair(opened: Opened) -> bool:
    """Whether this is a pair of an image and a text tower, and no other kind of model."""
    model = opened[0].model
    return isinstance(model, DualEncoder) and model.config.modality == "image"


def open_saved(folder: str, device: str, kind: type, what: str) -> Opened:
    """(what a folder holds, its model on the device; rank and number of the processes, now in one group).

    Args:
        folder: what `save` or a recipe's `model/` wrote.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, …
        kind: class of model that is expected.
        what: that, in words.

    Raises:
        UserError: no such folder, a damaged one, another kind of model in it, or no such device.
    """
    where = find_device(device)
    try:
        loaded = load(folder)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    if not isinstance(loaded.model, kind):
        raise UserError(f"'{folder}' holds a {loaded.config.get('kind')}: this needs {what}")
    loaded.model.to(where).eval()
    return loaded, join_processes()


def has_features(pair: Pair, urls: str, fingerprint: str) -> bool:
    """Whether the shards carry cached features of exactly this image tower; False = read the pictures.

    Args:
        pair: the model.
        urls: shard pattern(s).
        fingerprint: of the bare image tower and its preprocessing.

    Raises:
        UserError: the shards carry only features of another tower, and no pictures.
    """
    cache = read_cache(urls)
    if cache is not None and cache.fingerprint == fingerprint:
        return True
    fields = set().union(*(ShardIndex.open(pattern.strip()).fields for pattern in urls.split("::")))
    if cache is not None and not fields & {"png", "jpg", "jpeg", "webp"}:
        raise UserError(
            f"{urls} holds cached features of another image tower ({cache.fingerprint[:12]}, this one is "
            f"{fingerprint[:12]}) and no pictures: evaluate on the original shards"
        )
    return False


def embed(
    pair: Pair,
    urls: str,
    tower: str,
    *,
    batch_size: int = 64,
    precision: str = "fp32",
    workers: int = 0,
    captions: str | None = "first",
    cache: str = "",
) -> Embedded:
    """All samples of the shards with their image embeddings, with a progress display.

    Args:
        pair: the model.
        urls: shard pattern(s).
        tower: fingerprint of the bare image tower and its preprocessing.
        batch_size: pictures at once on each process.
        precision: fp32, bf16 or fp16.
        workers: processes that decode ahead, per process.
        captions: first, all, or None.
        cache: folder in which embeddings are kept for the next program, "" = nowhere.

    Raises:
        UserError: no shards, no usable sample, or only features of another tower.
    """
    samples = sum(ShardIndex.open(pattern.strip()).samples for pattern in urls.split("::"))
    file = kept_file(cache, urls, pair.fingerprint, precision) if cache else None
    if file is not None and (kept := recall(file)) is not None:
        found = with_image(read_facts(urls, captions=captions), *kept)
        return left_out(found, samples, pair.rank)
    cached = has_features(pair, urls, tower)
    share = samples * (pair.rank + 1) // pair.world_size - samples * pair.rank // pair.world_size
    with progress(f"embedding {urls}", share, quiet=pair.rank > 0) as step:
        found = embed_pictures(
            pair.model,
            urls,
            preprocess=pair.preprocess,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
            rank=pair.rank,
            world_size=pair.world_size,
            cached=cached,
            captions=captions,
            progress=step,
        )
    # What was left out for want of a caption must not be missing where captions are not asked for.
    if file is not None and pair.rank == 0 and (captions is None or len(found) == samples):
        keep(file, found.index, found.embeddings["image"])
    return left_out(found, samples, pair.rank)


def texts_of(pair: Pair, precision: str = "fp32", cache: str = "") -> KeptTexts:
    """The pair's text encoder, computing every text once; `save` keeps them in `cache` for other programs."""
    encode = text_encoder(pair.model, pair.tokenizer, precision)
    return KeptTexts(encode, cache if pair.rank == 0 else "", pair.fingerprint, precision)


@contextmanager
def progress(what: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A callback that counts samples: a bar with remaining time on a terminal, one plain line elsewhere."""
    if quiet or not sys.stderr.isatty():
        if not quiet:
            print(f"{what}: {total:,} samples", file=sys.stderr)
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def left_out(found: Embedded, samples: int, rank: int = 0) -> Embedded:
    """`found`, after saying on stderr how many samples it lacks."""
    if missing := samples - len(found):
        found.skipped = found.skipped or {"unusable": missing}
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.skipped.items())
        if rank == 0:
            print(f"left out {missing:,} of {samples:,} samples: {reasons}", file=sys.stderr)
    return found


def find_device(device: str) -> torch.device:
    """The device that --device names.

    Raises:
        UserError: there is none of that name.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}; use auto, cpu or cuda") from None
    return found


def join_processes() -> tuple[int, int]:
    """(rank, processes), after joining the others; what travels is on the CPU: gloo serves every device."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return int(os.environ.get("RANK", "0")), world_size
