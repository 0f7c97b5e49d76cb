"""The whole data pipeline: shards of JPEG pictures of 512 pixels -> batches of 224 pixels and tokens.

The peer is open_clip_train's reader. It needs the webdataset that it names (later ones break it) and pandas,
which are put into a folder of their own, once, that only the peer's processes see.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photos import write_photos
from benchmarks.timing import Options, Row, fresh, in_turn
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "build" / "bench" / "webdataset"
CODE = "from benchmarks.reading import main; main()"
SCRIPTS = str(ROOT / "scripts")
FEATURES = 512  # width of cached embeddings
WORDS = ("a", "red", "fox", "old", "house", "beside", "the", "river", "with", "two", "boats", "at", "night")
CLOSE = 0.02  # of 255, between the means of all pixels of the two sides' exact resize


def run(options: Options) -> Iterator[Row]:
    """Rows of reading for training, for evaluation, and of cached embeddings, in samples per CPU second."""
    pictures, batch = (24, 8) if options.small else (400, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        captions = [" ".join(rng.choice(WORDS, rng.integers(3, 16))) for _ in range(pictures)]
        size = write_photos(folder / "photos", captions)
        note = f"process and worker together; {size / 1024:.0f} KiB a picture"
        problem = _install(options.small)
        for work, samples, said in (
            ("train", pictures, "random crops"),
            ("evaluate", pictures, "exact resize"),
        ):
            asked = (work, str(folder / "photos"), samples // batch * batch, batch)
            yield _row(f"pictures, JPEG 512 px -> 224, {said}", asked, options, note, problem)
        rows, batch = (64, 16) if options.small else (20_000, 256)
        _write_features(folder / "cached", rows)
        asked = ("cached", str(folder / "cached"), rows // batch * batch, batch)
        said = f"cached embeddings, {FEATURES} float16, and captions"
        yield _row(said, asked, options, "process and worker together", "no peer has them")


def _row(said: str, asked: tuple[Any, ...], options: Options, note: str, problem: str) -> Row:
    """One comparison, or ours alone where there is a `problem` with the peer.

    Raises:
        UserError: the sides read different pictures, or another number of them.
    """
    unit = "samples / CPU s"
    if problem:
        rates = sorted(_read("ours", *asked)["rate"] for _ in range(options.rounds))
        middle = rates[len(rates) // 2]
        return Row(work=said, ours=middle, peer=None, unit=unit, ratio=None, peer_name=problem, note=note)
    last: dict[str, dict[str, Any]] = {}

    def rate(side: str) -> float:
        last[side] = _read(side, *asked)
        return float(last[side]["rate"])

    row = in_turn(
        said,
        partial(rate, "ours"),
        partial(rate, "peer"),
        options.rounds,
        unit=unit,
        peer_name="open_clip_train get_wds_dataset",
        aim=1.5,
        note=note,
        better="larger",
    )
    ours, peer = last["ours"], last["peer"]
    differ = asked[0] == "evaluate" and abs(ours["mean"] - peer["mean"]) > CLOSE
    if differ or ours["samples"] != peer["samples"]:
        raise UserError(f"{said}: ours read {ours} and open_clip {peer}, expected the same pictures")
    return row


def _read(side: str, *asked: Any) -> dict[str, Any]:
    """What one pass in a fresh process tells, see `benchmarks.reading`."""
    path = os.pathsep.join([SCRIPTS, str(PACKAGES)] if side == "peer" else [SCRIPTS])
    return fresh(CODE, side, *asked, environment={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def _install(small: bool) -> str:
    """Why the peer cannot run, "" when it can; fetches its packages the first time, never when `small`."""
    if PACKAGES.is_dir():
        return ""
    if small:
        return "not run: its packages are fetched without --small"
    temporary = PACKAGES.with_name(f"{PACKAGES.name}.{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(temporary)]
    done = subprocess.run(
        [*command, "webdataset>=0.2.5,<=0.2.86", "pandas"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(temporary, ignore_errors=True)
        return f"not run: webdataset 0.2.86 could not be installed ({done.stderr.strip()[-120:]})"
    temporary.rename(PACKAGES)
    return ""


def _write_features(folder: Path, count: int) -> None:
    """Nothing; writes shards of random features with captions."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "cached", 5000) as writer:
        for i in range(count):
            row = rng.standard_normal(FEATURES).astype(np.float16)
            words = " ".join(rng.choice(WORDS, rng.integers(3, 16)))
            writer.write(f"cached{i:06d}", {"npy": row, "txt": words})
