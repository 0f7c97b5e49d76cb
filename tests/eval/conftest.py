"""A small random image-text pair on disk and shards of drawn pictures, for everything that evaluates."""

import io
import json
import string

import pytest
import torch
from PIL import Image, ImageDraw

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordPieceTokenizer
from mmvit.data.write import ShardWriter
from mmvit.hub.folder import save
from mmvit.models.config import CoreConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.lit import DualEncoder
from tests.eval.media_case import PREPROCESS, tiny_vatt, write_clips

COLOURS = ("red", "green", "blue", "yellow", "black", "pink")
SHAPES = ("square", "disc", "bar")


def picture(colour, shape, offset):
    image = Image.new("RGB", (40, 32), "white")
    box = (4 + offset, 4, 24 + offset, 24 if shape != "bar" else 10)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def write_shards(folder):
    """36 pictures: 6 colours x 3 shapes x 2 artists; both artists use the same caption."""
    writer = ShardWriter(folder / "toy", samples_per_shard=15)
    for artist in range(2):
        for colour in COLOURS:
            for shape in SHAPES:
                facts = {
                    "label": shape,
                    "texts": {"en": [f"{colour} {shape}", f"a {shape} in {colour}"]},
                    "package": f"artist{artist}@1.0",
                    "licence": "CC0-1.0",
                }
                members = {
                    "png": picture(colour, shape, 6 * artist),
                    "txt": f"{colour} {shape}",
                    "json": facts,
                }
                writer.write(f"{colour}-{shape}-{artist}", members)
    writer.finish()
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Folder whose path names the data set "drawings" and the split "test_toy"."""
    return write_shards(tmp_path_factory.mktemp("data") / "drawings" / "test_toy")


def tiny_pair(seed=0):
    core = CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=64)
    image = ImageTowerConfig(core=core, image_size=(16, 16), patch_size=8, embed_dim=24)
    text = TextTowerConfig(core=core, vocab_size=56, context_length=24, pool="mean", embed_dim=24)
    torch.manual_seed(seed)
    model = DualEncoder(DualEncoderConfig(image=image, text=text))
    for p in model.parameters():  # the initial values are so small that all embeddings look alike
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model


def tiny_tokenizer():
    letters = list(string.ascii_lowercase)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    return WordPieceTokenizer("\n".join(vocabulary).encode(), context_length=24)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of a saved pair in a run folder "runs/tiny/model"."""
    folder = tmp_path_factory.mktemp("runs") / "tiny" / "model"
    save(tiny_pair(), folder, preprocess=ImagePreprocess(size=(16, 16)), tokenizer=tiny_tokenizer())
    return folder


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """Another pair in "runs/other/model"."""
    folder = tmp_path_factory.mktemp("runs") / "other" / "model"
    save(tiny_pair(1), folder, preprocess=ImagePreprocess(size=(16, 16)), tokenizer=tiny_tokenizer())
    return folder


@pytest.fixture
def program(root, monkeypatch, capsys):
    """program("eval/zero_shot.py", "--model", …) -> (exit code, stdout, stderr), run in this process."""
    import importlib.util
    import sys

    def run(path, *arguments):
        spec = importlib.util.spec_from_file_location(f"program_{path.replace('/', '_')[:-3]}", root / path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Folder of 12 clips: data set "drawings", split "test_clips"."""
    return write_clips(tmp_path_factory.mktemp("media") / "drawings" / "test_clips")


@pytest.fixture(scope="session")
def vatt(tmp_path_factory):
    """Folder of a saved model of video, audio and text in "runs/vatt/model"."""
    folder = tmp_path_factory.mktemp("media_runs") / "vatt" / "model"
    save(tiny_vatt(), folder, preprocess=PREPROCESS, tokenizer=tiny_tokenizer())
    return folder
