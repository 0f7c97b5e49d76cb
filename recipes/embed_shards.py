"""Features cached as shards: embed once with a locked tower, then tune text towers many times faster.

What the tower takes, pictures, sounds or clips, is what is read of the samples.
Source: LiT, Zhai et al. 2022 (arXiv:2111.07991), section 5.6 and appendix G: valid for a locked tower and
preprocessing without chance (or with the chance frozen into a number of views).

    python recipes/embed_shards.py --model TOWER --data 'data/corpus/train/*/*.tar' --out DIR
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 recipes/embed_shards.py …

Each shard gets a twin of the same name and order below --out: KEY.npy (D,) or (views,D) features before any
head, KEY.txt and KEY.json as they were. index.json says which tower made them (a training run refuses
another one), embedding_mean.npy holds their mean. A shard that is there is skipped: run the same command
again after a break.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset

from mmvit.data.cache import MEAN
from mmvit.data.clip import ClipPreprocess, ClipReader
from mmvit.data.decode import Decoder
from mmvit.data.folder import Shard, write_index
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.offsets import save_offsets, scan_tar, write_atomic
from mmvit.data.pixels import BadSample
from mmvit.data.shards import ShardIndex
from mmvit.data.workers import read_ahead, share
from mmvit.data.write import ShardWriter, safe_key
from mmvit.errors import UserError, one_line
from mmvit.hub.fingerprint import fingerprint
from mmvit.hub.plain import kind_of
from mmvit.hub.towers import load_tower
from mmvit.models.towers import bare
from mmvit.options import parse
from mmvit.train.memory import keep_memory
from mmvit.train.setup import choose_precision, set_threads

COPIED = ("txt", "json")
NOUNS = {"image": "a picture", "audio": "a sound", "video": "a clip"}


@dataclass(frozen=True)
class Seen:
    """What the tower takes: a field of samples (image, audio or video), and how it is prepared."""

    field: str
    preprocess: ImagePreprocess | ClipPreprocess


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to embed with what.

    Attributes:
        model: folder of a saved tower or pair (of pictures, sounds or clips), or a peer's "library:folder".
        image_size: side in pixels to feed the tower; 0 = its own.
        seconds: length of the sounds or clips to feed it; 0 = its own.
        data: shard pattern(s), "::" between several; their folders' structure is kept below --out.
        out: folder of the new shards.
        views: features per sample: view 0 is the plain preprocessing, the others are random crops of
            pictures, random windows of sounds and clips, fixed by (key, view).
        flip: probability of a left-right flip of pictures in views 1 and up.
        seed: of the random views.
        dtype: of the stored features; float16 rounds cosines by about 1e-4.
        precision: of the tower: auto, fp32 or bf16.
        batch_size: inputs of the tower at once, per process.
        workers: processes that decode, per process; 0 = none.
        threads: CPU threads of the tower; 0 = the machine's cores shared by its processes.
    """

    preset: str = "default"
    model: str = ""
    image_size: int = 0
    seconds: float = 0.0
    data: str = ""
    out: str = ""
    views: int = 1
    flip: float = 0.0
    seed: int = 0
    dtype: Literal["float16", "float32"] = "float16"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int = 32
    workers: int = 1
    threads: int = 0


PRESETS = {"default": Config(), "tiny": Config(batch_size=8, workers=0)}


@dataclass
class Item:
    """One sample on its way: key, members to copy, V views of what the tower takes or why there are none."""

    key: str
    members: dict[str, bytes]
    views: Tensor | None = None
    bad: str = ""
    failure: str = ""


class Views(Dataset[Item]):
    """Samples first..stop-1 of an index in all views, each as a decoder of the tower's field makes it."""

    def __init__(self, index: ShardIndex, first: int, stop: int, config: Config, seen: Seen) -> None:
        self.index, self.first, self.stop = index, first, stop
        self.config, self.field = config, seen.field
        reader = None
        if isinstance(seen.preprocess, ClipPreprocess):
            one = {name: name == seen.field for name in ("video", "audio")}
            reader = ClipReader(preprocess=seen.preprocess, **one)
        pictures = seen.preprocess if isinstance(seen.preprocess, ImagePreprocess) else ImagePreprocess()
        self.plain = Decoder(fields=(seen.field,), preprocess=pictures, clip=reader)
        self.drawn = replace(
            self.plain,
            augment=ImageAugment(flip=config.flip),
            clip=None if reader is None else replace(reader, random_start=True),
        )

    def __len__(self) -> int:
        return self.stop - self.first

    def __getitem__(self, i: int) -> Item:
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            raw = self.index.read(self.first + i, lambda name: name in COPIED or self.plain.wants(name))
        except BadSample as bad:
            return Item(self.index.key(self.first + i), {}, bad=bad.reason)
        except UserError as error:  # a worker's exception would come back as a traceback
            return Item("", {}, failure=str(error))
        key = raw["__key__"].decode()
        item = Item(key, {name: raw[name] for name in COPIED if name in raw})
        try:
            samples = [self.plain(raw, random.Random(0))]
            for view in range(1, self.config.views):
                samples.append(self.drawn(raw, random.Random(f"{self.config.seed}:{key}:{view}")))
            item.views = torch.stack([getattr(sample, self.field) for sample in samples])
        except BadSample as bad:
            item.bad = bad.reason
        return item


def read(views: Views, workers: int) -> Iterator[Item]:
    """The items in order; a worker that fails or dies is one clear error."""
    places = range(len(views))
    with closing(read_ahead(views, places, workers, option="--workers", finish=_share)) as items:
        for item in items:
            if item.failure:
                raise UserError(item.failure)
            yield item


def embed(items: Iterator[Item], tower: Any, config: Config, precision: str) -> Iterator[tuple[Item, Any]]:
    """(item, features (V,D) float32 or None) in order, with full batches through the tower."""
    device, waiting = next(tower.parameters()).device, []

    def flush() -> Iterator[tuple[Item, Any]]:
        parts = [item.views for item in waiting if item.views is not None]
        rows = iter(())
        if parts:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                features = tower.features(torch.cat(parts).to(device)).float().cpu().numpy()
            rows = iter(features.reshape(len(parts), config.views, -1))
        for item in waiting:
            yield item, None if item.views is None else next(rows)
        waiting.clear()

    for item in items:
        waiting.append(item)
        if len(waiting) * config.views >= config.batch_size:
            yield from flush()
    yield from flush()


@dataclass(frozen=True)
class Work:
    """One shard to embed: the number of a shard in an index, and where its twin goes."""

    source: ShardIndex
    shard: int
    target: Path

    @property
    def stats(self) -> Path:
        """Sum and count of the twin's features; written last, so that it says the twin is whole."""
        return self.target.with_name(f".{self.target.stem}.stats.json")

    @property
    def samples(self) -> int:
        """Samples of the shard."""
        return self.source.shards[self.shard].samples

    def done(self) -> bool:
        """Whether the twin is there and whole."""
        return self.target.exists() and self.stats.exists()


def embed_shard(work: Work, tower: Any, config: Config, seen: Seen, precision: str) -> None:
    """Writes one shard's twin and its statistics, whole or not at all."""
    first, stop = (int(work.source.first[work.shard + i]) for i in (0, 1))
    views = Views(work.source, first, stop, config, seen)
    total, count, bad = np.zeros(tower.width, np.float64), 0, Counter[str]()
    names: set[str] = set()
    aside = work.target.parent / f".{work.target.stem}.part"
    with ShardWriter(aside / "part", max(1, stop - first), overwrite=True) as writer:
        for item, features in embed(read(views, config.workers), tower, config, precision):
            members: dict[str, Any] = dict(item.members)
            if features is None:
                bad[item.bad] += 1
            else:
                stored = features.astype(config.dtype)
                if not np.isfinite(stored).all():
                    raise UserError(
                        f"{item.key}: features do not fit into {config.dtype}: use --dtype float32"
                    )
                members["npy"] = stored[0] if config.views == 1 else stored
                total, count = total + stored.astype(np.float64).sum(0), count + len(stored)
            # A sample without what the tower takes keeps its place, so that orders agree with the source's.
            name = safe_key(item.key, names)
            names.add(name)
            writer.write(name, members or {"json": {}})
    os.replace(aside / "part-000000.tar", work.target)
    save_offsets(str(work.target), scan_tar(str(work.target)))
    shutil.rmtree(aside)
    facts = {"sum": total.tolist(), "count": count, "bad": dict(bad)}
    write_atomic(work.stats, json.dumps(facts).encode())


def plan(config: Config, notes: dict[str, Any], state: PartialState) -> list[Work]:
    """Every shard of --data with its place below --out.

    Raises:
        UserError: --out holds embeddings that were made otherwise.
    """
    out, indexes = Path(config.out), [ShardIndex.open(pattern) for pattern in config.data.split("::")]
    folders = [os.path.dirname(os.path.abspath(shard.path)) for index in indexes for shard in index.shards]
    common, work = os.path.commonpath(folders), []
    for index in indexes:
        for number, shard in enumerate(index.shards):
            inside = os.path.relpath(os.path.abspath(shard.path), common)
            work.append(Work(index, number, out / inside))
    if out.resolve() == Path(common):
        raise UserError(f"--out {out} is where the shards are: choose another folder")
    notebook = out / "embedding.json"
    if notebook.exists():
        before = json.loads(notebook.read_text())
        changed = [name for name in notes if before.get(name) != notes[name]]
        if changed:
            raise UserError(
                f"--out {out} holds embeddings made with another {changed[0]} "
                f"({before.get(changed[0])}, now {notes[changed[0]]}): choose another folder or delete it"
            )
    state.wait_for_everyone()
    if state.is_main_process:
        for folder in {item.target.parent for item in work}:
            folder.mkdir(parents=True, exist_ok=True)
        notebook.write_text(json.dumps(notes, indent=2) + "\n")
    state.wait_for_everyone()
    return work


def finish(work: list[Work], notes: dict[str, Any], seen: Seen) -> None:
    """Writes each folder's index and mean."""
    bad: Counter[str] = Counter()
    for folder in dict.fromkeys(item.target.parent for item in work):
        shards, fields, stats = [], set[str](), []
        for target in sorted(folder.glob("*.tar")):
            offsets = scan_tar(str(target))
            shards.append(Shard(str(target), len(offsets), offsets.total_bytes))
            fields |= set(offsets.extensions)
            stats.append(json.loads(target.with_name(f".{target.stem}.stats.json").read_text()))
            bad.update(stats[-1]["bad"])
        mean = np.sum([s["sum"] for s in stats], axis=0) / max(1, sum(s["count"] for s in stats))
        np.save(folder / MEAN, mean.astype(np.float32))
        write_index(str(folder), shards, fields, {"embedding": notes})
    if bad:
        print(
            f"without {NOUNS[seen.field]}: " + ", ".join(f"{reason} {n}" for reason, n in bad.most_common())
        )


def main(config: Config) -> None:
    """This rank's shards, then, on rank 0, index and mean."""
    for option in ("model", "data", "out"):
        if not getattr(config, option):
            raise UserError(f"--{option} is missing")
    if config.views < 1 or config.batch_size < 1:
        raise UserError("--views and --batch-size must be at least 1")
    state = PartialState(cpu=not torch.cuda.is_available())
    set_threads(config.threads, state.device)
    if state.device.type == "cpu":
        keep_memory()
    precision = choose_precision(config.precision)
    try:
        embed_all(config, state, precision)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or config.out}: {error.strerror}; the shards that are done stay, "
            "the same command goes on"
        ) from None


def embed_all(config: Config, state: PartialState, precision: str) -> None:
    """Between the start of the processes and their end: tower, plan, shards, index."""
    try:
        loaded, preprocess = load_tower(config.model, image_size=config.image_size, seconds=config.seconds)
    except (ValueError, OSError) as error:
        raise UserError(f"--model: {error}") from None
    tower = bare(loaded).eval().to(state.device)
    seen = Seen(kind_of(tower.config).removesuffix("_tower"), preprocess)
    random_views = config.views > 1
    notes = {
        "fingerprint": fingerprint(tower, preprocess),
        "dim": tower.width,
        "views": config.views,
        "dtype": config.dtype,
        "precision": precision,
        "seed": config.seed if random_views else None,
        "flip": config.flip if random_views else None,
        "preprocess": json.loads(json.dumps(preprocess.to_dict())),
        "model": Path(config.model).name,
    }
    work = plan(config, notes, state)
    left = [item for item in work if not item.done()]
    state.wait_for_everyone()
    samples, total, began = 0, sum(item.samples for item in left), time.perf_counter()
    if state.is_main_process:
        print(f"{len(work)} shards, {len(work) - len(left)} done; {total} samples to embed in {precision}")
    for item in left[state.process_index :: state.num_processes]:
        embed_shard(item, tower, config, seen, precision)
        samples += item.samples
        rate = samples / (time.perf_counter() - began)
        print(f"{item.target}: {samples}/{total} samples, {rate:,.0f}/s per process", flush=True)
    state.wait_for_everyone()
    if state.is_main_process:
        finish(work, notes, seen)
        print(f"done: {config.out}")
    state.wait_for_everyone()


def _share(item: Item) -> Item:
    problem = share([item.views], "--workers")
    return item if problem is None else Item("", {}, failure=problem)


@one_line
def command() -> None:
    """The command line."""
    main(parse(Config, PRESETS, description=__doc__ or ""))


if __name__ == "__main__":
    command()
