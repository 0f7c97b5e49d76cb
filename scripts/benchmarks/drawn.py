"""A small drawn data set, a tokenizer for it, and training runs of the recipe on them in fresh processes."""

from __future__ import annotations

import io
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmvit.data.text import WordPieceTokenizer
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "lit.py"
COLORS = ("red", "green", "blue", "black", "orange", "purple", "gray", "brown")
SHAPES = ("circle", "square", "bar", "ring")
PLACES = ("left", "right", "top", "bottom", "middle")
WORDS = ("a", "and", "at", "on", "the", "picture", "of", "drawing", *COLORS, *SHAPES, *PLACES)


def data_set(folder: Path, samples: int, size: int) -> None:
    """Nothing; writes FOLDER/shards with `samples` JPEG pictures of `size` pixels, and FOLDER/tokenizer."""
    rng = random.Random(0)
    with ShardWriter(folder / "shards" / "drawn", 256) as writer:
        for i in range(samples):
            data, caption = picture(rng, size)
            writer.write(f"drawn{i:06d}", {"jpg": data, "txt": caption, "json": {"label": caption}})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)))
    WordPieceTokenizer(vocabulary, context_length=16).save(folder / "tokenizer")


def picture(rng: random.Random, size: int) -> tuple[bytes, str]:
    """(JPEG, caption of 6 to 14 words) of one to three shapes on white."""
    canvas, said = Image.new("RGB", (size, size), "white"), []
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(1, 3)):
        color, shape, place = rng.choice(COLORS), rng.choice(SHAPES), rng.choice(PLACES)
        x, y = (rng.randint(0, size // 2) for _ in range(2))
        side = rng.randint(size // 5, size // 2)
        box = (x, y, x + side, y + side // (4 if shape == "bar" else 1))
        draw = pen.ellipse if shape in ("circle", "ring") else pen.rectangle
        draw(box, fill=None if shape == "ring" else color, outline=color, width=max(1, size // 20))
        said.append(f"{color} {shape} at the {place}")
    out = io.BytesIO()
    canvas.save(out, "jpeg", quality=90)
    return out.getvalue(), "a " + " and ".join(said)


def command(script: Path, options: Mapping[str, Any], processes: int = 1) -> list[str]:
    """The words that start a recipe in so many CPU processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, *(launcher if processes > 1 else []), str(script), *words]


def environment(threads: int) -> dict[str, str]:
    """The environment of CPU processes with so many threads, without words of a launcher around this one."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    }
    return {**kept, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def finish(words: Sequence[str], threads: int) -> None:
    """Nothing; runs a command to its end.

    Raises:
        UserError: it failed; the message ends with what it said last.
    """
    done = subprocess.run(
        words, cwd=ROOT, env=environment(threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"a run of {Path(words[-1]).name} failed: {done.stderr.strip()[-600:]}")


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl that are whole; none when the file is not there yet."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def samples_per_second(out: Path, skip: int) -> float:
    """The median over a run's steps after the first `skip`; every step must have been logged."""
    speeds = [row["perf/samples_per_s"] for row in rows(out) if "perf/samples_per_s" in row]
    return statistics.median(speeds[skip:])
