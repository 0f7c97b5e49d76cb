"""Reading clips: H.264 to 32 frames of 224 pixels and 3.2 s of sound, and how long a training run waits.

The peers are loops over PyAV in the same process: one decodes the whole file to RGB (what
torchvision.io.read_video did), one seeks and stops at the window's end. Rows are refused unless all read
the same frames.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.drawn import ROOT, WORDS, command, data_set, finish, rows
from benchmarks.drawn_clips import FPS, clip, write_shards
from benchmarks.timing import Options, Row, in_turn, spent
from benchmarks.video_reading import Reader, every_frame, ours, up_to_the_end
from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.errors import UserError

RECIPE = ROOT / "recipes" / "vatt.py"
SECONDS, SIZE = 10.0, (240, 320)  # of the clips; (height, width) in pixels
PEERS: dict[str, Callable[[ClipPreprocess, bool], Reader]] = {
    "PyAV, every frame of the file to RGB": every_frame,
    "PyAV, sought and stopped by hand": up_to_the_end,
}
LOUD = 0.02  # mean difference of the two sides' sound: cut and resampled in either order
SKIP = 3  # first steps of a run, which do not count


def run(options: Options) -> Iterator[Row]:
    """Rows of reading without and with sound against both peers, then of waiting."""
    seconds, number = (2.0, 2) if options.small else (SECONDS, 8)
    movies = [clip(seed, seconds, SIZE) for seed in range(number)]
    preprocess = ClipPreprocess(
        video=VideoPreprocess(frames=8 if options.small else 32), audio=AudioPreprocess()
    )
    for sound in (False, True):
        for name, peer in PEERS.items():
            yield reading(movies, seconds, preprocess, sound, name, peer(preprocess, sound), options)
    yield waiting(movies, options)


def reading(
    movies: list[bytes],
    seconds: float,
    preprocess: ClipPreprocess,
    sound: bool,
    name: str,
    peer: Reader,
    options: Options,
) -> Row:
    """The row of one peer, in clips per CPU second; windows begin anywhere, at the same seconds for both.

    Raises:
        UserError: the sides read different frames, or different sound.
    """
    place = random.Random(0)
    starts = [place.uniform(0, max(0.0, seconds - preprocess.seconds)) for _ in movies]
    assert preprocess.video is not None
    work = f"{seconds:g} s of {SIZE[1]} x {SIZE[0]} H.264 -> {preprocess.video.frames} frames of 224 px"
    work += ", with sound" if sound else ""
    decoded = {}

    def pass_of(side: str, reader: Reader) -> float:
        found: list[Any] = []
        pairs = list(zip(movies, starts, strict=True))
        used = spent(lambda: found.extend(reader(data, start)[2] for data, start in pairs))
        decoded[side] = sum(found) / len(found)
        return len(movies) / used

    mine = ours(preprocess, sound)
    _check(work, mine(movies[0], starts[0]), peer(movies[0], starts[0]))
    row = in_turn(
        work,
        partial(pass_of, "ours", mine),
        partial(pass_of, "peer", peer),
        options.rounds,
        unit="clips / CPU s",
        peer_name=name,
        better="larger",
    )
    assert row.ours is not None
    assert row.peer is not None
    a, b = decoded["ours"], decoded["peer"]
    note = f"{a:.0f} frames decoded a clip against {b:.0f}, "
    note += f"{a * row.ours:.0f} a CPU second against {b * row.peer:.0f}"
    return dataclasses.replace(row, note=note)


def waiting(movies: list[bytes], options: Options) -> Row:
    """The row of the share of a training run's time in which it waits for clips, one worker against none."""
    batch, steps = (4, 2) if options.small else (16, 10)
    chosen = {
        "--preset": "tiny" if options.small else "corpus",
        "--train.batch-size": batch,
        "--train.steps": SKIP + steps,
        "--train.log-every": 1,
        "--train.eval-every": 0,
        "--train.save-every": 0,
        "--train.threads": 1,
    }
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), count()
        data_set(folder / "words", 1, 32)
        write_shards(folder, movies, 4 * batch, WORDS)
        chosen |= {"--data.train": folder / "shards", "--model.tokenizer": folder / "words" / "tokenizer"}

        def waited(workers: int) -> float:
            out = folder / f"run-{next(number)}"
            finish(command(RECIPE, {**chosen, "--out": out, "--data.workers": workers}), 1)
            return 100 * statistics.median(row["perf/data_wait"] for row in rows(out)[SKIP:])

        fps = f"{SIZE[1]} x {SIZE[0]} at {FPS} fps, with sound"
        return in_turn(
            f"waiting for clips of {fps}, recipes/vatt.py --preset {chosen['--preset']}, batch {batch}",
            partial(waited, 1),
            partial(waited, 0),
            min(options.rounds, 2),
            unit="% of wall time",
            peer_name="no worker: read between the steps",
        )


def _check(work: str, mine: tuple[Any, ...], peer: tuple[Any, ...]) -> None:
    """Nothing; both sides read the same.

    Raises:
        UserError: they did not.
    """
    if not torch.equal(mine[0], peer[0]):
        different = (mine[0] != peer[0]).flatten(2).any(2).any(0).sum().item()
        raise UserError(f"{work}: {different} frames differ from PyAV's, expected the same pictures")
    if mine[1] is not None:
        length = min(len(mine[1]), len(peer[1]))
        apart = (mine[1][:length] - peer[1][:length]).abs().mean().item()
        if not (length and apart < LOUD):
            raise UserError(f"{work}: sounds are {apart:.2g} apart, expected less than {LOUD}")
