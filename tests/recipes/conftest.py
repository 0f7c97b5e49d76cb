"""Small drawn shards, a tokenizer, towers and a pair; recipes run inside the test's process."""

import importlib.util
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordPieceTokenizer
from mmvit.data.write import ShardWriter
from mmvit.hub import folder
from mmvit.models.presets import create_model
from mmvit.models.towers import join
from mmvit.options import parse
from tests.conftest import kill_all

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "black": (10, 10, 10)}
SHAPES = ("circle", "square", "bar")


def draw(rng, color, shape):
    picture = Image.new("RGB", (32, 32), "white")
    x, y, size = rng.randrange(2, 10), rng.randrange(2, 10), rng.randrange(14, 20)
    box = [x, y, x + size, y + size // 4 if shape == "bar" else y + size]
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLORS[color])
    return as_png(picture)


def as_png(picture):
    out = io.BytesIO()
    picture.save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with train/, val/, more/, tokenizer/, tower/ and text/; one training picture is broken."""
    out = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for split, count, per_shard in (("train", 70, 25), ("val", 24, 25), ("more", 17, 6)):
        with ShardWriter(out / split / "shapes", per_shard) as writer:
            for i in range(count):
                color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
                label = f"{color} {shape}"
                png = b"broken" if (split, i) == ("train", 5) else draw(rng, color, shape)
                facts = {"label": label, "texts": {"en": [label, f"picture of a {label}"]}}
                writer.write(f"{split}{i:04d}", {"png": png, "txt": f"a {label}", "json": facts})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "of", "picture", "drawing", *COLORS, *SHAPES]
    (out / "vocab.txt").write_text("\n".join(words))
    WordPieceTokenizer(out / "vocab.txt", context_length=8).save(out / "tokenizer")
    torch.manual_seed(5)
    tower = create_model("vit_mu_patch16_224", image_size=16, patch_size=8)
    folder.save(tower, out / "tower", preprocess=ImagePreprocess(size=(16, 16)))
    text = create_model("text_mu", vocab_size=len(words), context_length=8, embed_dim=32, dropout=0.2)
    folder.save(text, out / "text", tokenizer=WordPieceTokenizer(out / "vocab.txt", context_length=8))
    return out


def draw_scene(rng):
    """(picture of any shape, its objects): one to three shapes side by side, boxes in its pixels."""
    count = rng.choice((1, 2, 2, 3))
    step, height = rng.randrange(18, 24), rng.randrange(24, 56)
    picture, objects = Image.new("RGB", (count * step, height), (235, 235, 230)), []
    pen = ImageDraw.Draw(picture)
    for i in range(count):
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        side = rng.randrange(12, 17)
        x, y = i * step + rng.randrange(0, step - side), rng.randrange(0, height - side)
        box = [x, y, x + side, y + (side // 2 if shape == "bar" else side)]
        (pen.ellipse if shape == "circle" else pen.rectangle)(
            [box[0], box[1], box[2] - 1, box[3] - 1], fill=COLORS[color]
        )
        objects.append({"label": f"{color} {shape}", "box": box})
    return picture, objects


@pytest.fixture(scope="session")
def scenes(corpus, tmp_path_factory):
    """A folder with train/, more/, val/, shards with boxes, and pair/, a small image-text pair of 48 pixels.

    In train/ one picture is broken, one shows nothing and one has a box outside; more/ knows "grey key" too.
    """
    out, rng = tmp_path_factory.mktemp("scenes"), random.Random(1)
    for split, count, per_shard in (("train", 40, 15), ("more", 11, 4), ("val", 8, 5)):
        with ShardWriter(out / split / "boxes", per_shard) as writer:
            for i in range(count):
                picture, objects = draw_scene(rng)
                if (split, i) == ("train", 7):
                    picture, objects = Image.new("RGB", (30, 40), "white"), []
                elif (split, i) == ("train", 9):
                    objects.append({"label": "red bar", "box": [500, 0, 520, 20]})
                elif split == "more":
                    objects[0]["label"] = "grey key"
                png = b"broken" if (split, i) == ("train", 5) else as_png(picture)
                facts = {"width": picture.width, "height": picture.height, "objects": objects}
                writer.write(f"{split}{i:04d}", {"png": png, "json": facts | {"negatives": ["black bar"]}})
    torch.manual_seed(6)
    image = create_model("vit_mu_patch16_224", image_size=48, patch_size=8, depth=2)
    words = WordPieceTokenizer(corpus / "vocab.txt", context_length=8)
    fields = {"vocab_size": words.vocab_size, "context_length": 8, "embed_dim": 32, "depth": 2}
    pair = join(image, create_model("text_mu", **fields), embed_dim=32)
    folder.save(pair, out / "pair", preprocess=ImagePreprocess(size=(48, 48)), tokenizer=words)
    return out


@pytest.fixture(scope="module")
def recipe_module():
    """`recipe` for fixtures that serve a whole file."""
    threads = torch.get_num_threads()

    def run(name, *options):
        AcceleratorState._reset_state(True)
        spec = importlib.util.spec_from_file_location(f"recipes_{name}", ROOT / "recipes" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        module.main(parse(module.Config, module.PRESETS, [str(o) for o in options]))
        AcceleratorState._reset_state(True)
        torch.set_num_threads(threads)

    return run


@pytest.fixture
def recipe(recipe_module):
    """recipe("lit", *options) runs recipes/lit.py in this process."""
    threads = torch.get_num_threads()
    yield recipe_module
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)


@pytest.fixture
def losses():
    """losses(OUT) -> the train/loss column of a run, every step once."""

    def read(out):
        rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "train/loss" in row]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["train/loss"] for row in rows]

    return read


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    """forked(words, recipe=, world=, kill=, keys=) runs a recipe in forked processes: (statuses, words)."""
    script, logs = Path(__file__).parent / "forked_runs.py", tmp_path_factory.mktemp("logs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    numbers, started = iter(range(10**6)), []

    def run(words, world=1, kill=None, keys=None, environment=None, recipe="lit"):
        if not started:
            started.append(subprocess.Popen([sys.executable, str(script)], **pipes))
        log = logs / f"{next(numbers)}.txt"
        job = {"words": words, "world": world, "kill": kill, "keys": keys and str(keys), "log": str(log)}
        job |= {"environment": environment or {}, "recipe": recipe}
        try:
            started[0].stdin.write(json.dumps(job) + "\n")
            started[0].stdin.flush()
            answer = started[0].stdout.readline()  # it ends runs that take too long
            assert answer, "the process that forks has died"
        except BaseException:  # its answer would come to the next one who asks
            kill_all(started.pop())
            raise
        return json.loads(answer)["status"], log.read_text()

    yield run
    for process in started:
        kill_all(process)
