"""Two training processes with one thread each, against one process with two threads, at one global batch.

Real runs of recipes/lit.py on drawn shards, in turn, with one loader worker a process (the recipe's default);
the figure is the median over the steps of a run, after its first ones. Wall time: a busy machine spoils it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.drawn import RECIPE, ROOT, command, data_set, finish, samples_per_second
from benchmarks.timing import Options, Row, in_turn
from mmvit.data.image import ImagePreprocess
from mmvit.hub.folder import save
from mmvit.models.presets import create_model

MOST_ROUNDS = 3  # a pair of runs takes about a minute


@dataclass(frozen=True)
class Sizes:
    """What is trained how long: pictures of `image` pixels, steps that count after those that do not."""

    tower: str = "vit_tiny_patch16_224"
    text: str = "text_tiny"
    image: int = 112
    samples: int = 2048
    scratch_batch: int = 64
    cached_batch: int = 256
    skip: int = 5
    steps: int = 20


SMALL = Sizes("vit_mu_patch16_224", "text_mu", 32, 64, 16, 16, 2, 4)


def run(options: Options) -> Iterator[Row]:
    """Rows of a run from scratch and of one on cached features; without two cores, what cannot be said."""
    cores = len(os.sched_getaffinity(0))
    sizes = SMALL if options.small else Sizes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_set(folder, sizes.samples, sizes.image)
        tower = cache(folder, sizes)
        scratch = {
            "--data.train": folder / "shards",
            "--model.image": sizes.tower,
            "--model.image-options": f"image_size={sizes.image}",
            "--model.lock": "uu",
            "--train.batch-size": sizes.scratch_batch,
        }
        cached = {
            "--data.train": folder / "cache",
            "--model.image": tower,
            "--model.lock": "Lu",
            "--train.batch-size": sizes.cached_batch,
        }
        work = f"from scratch, {sizes.tower} at {sizes.image} px, {sizes.text}, batch {sizes.scratch_batch}"
        yield row(work, scratch, folder, sizes, options, cores)
        work = f"locked from cache, {sizes.text}, batch {sizes.cached_batch}"
        yield row(work, cached, folder, sizes, options, cores)


def row(work: str, chosen: dict[str, Any], folder: Path, sizes: Sizes, options: Options, cores: int) -> Row:
    """The row of one kind of run, in milliseconds a sample."""
    chosen = {
        "--preset": "quickstart",
        "--model.text": sizes.text,
        "--model.tokenizer": folder / "tokenizer",
        "--train.steps": sizes.skip + sizes.steps,
        "--train.log-every": 1,
        "--train.eval-every": 0,
        "--train.save-every": 0,
        **chosen,
    }
    number = count()

    def trained(processes: int, threads: int) -> float:
        out = folder / f"run-{work[:4]}-{next(number)}"
        more = {"--out": out, "--train.threads": threads, "--train.world-size": processes}
        finish(command(RECIPE, {**chosen, **more}, processes), threads)
        return 1e3 / samples_per_second(out, sizes.skip)

    return in_turn(
        f"2 processes on 2 cores: {work}",
        partial(trained, 2, 1),
        partial(trained, 1, 2),
        min(options.rounds, MOST_ROUNDS),
        unit="ms/sample",
        peer_name="1 process, 2 threads",
        aim=0.9,
        note="" if cores == 2 else f"on {cores} cores",
    )


def cache(folder: Path, sizes: Sizes) -> Path:
    """The folder of a tower drawn by chance; its features of all pictures are written to FOLDER/cache."""
    torch.manual_seed(0)
    side = (sizes.image, sizes.image)
    tower = create_model(sizes.tower, image_size=sizes.image)
    save(tower, folder / "tower", preprocess=ImagePreprocess(size=side))
    chosen = {"--model": folder / "tower", "--data": folder / "shards", "--out": folder / "cache"}
    finish(command(ROOT / "recipes" / "embed_shards.py", chosen), 2)
    return folder / "tower"
