"""Every fault of annotations in one set of shards, through recipes/owl.py: all are counted, none is NaN."""

import json

import numpy as np
import pytest
import torch

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer
from mmvit.data.write import ShardWriter
from mmvit.hub import folder as hub
from mmvit.models.config import DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.lit import DualEncoder
from mmvit.models.owl import OwlDetector
from tests.faults.cases_boxes import BOTH, CASES, GOOD, RUNS, thing
from tests.faults.running import the_error

pytestmark = pytest.mark.filterwarnings("default")
STEPS, BATCH = 12, 16
BAD = {case.reason for case in CASES if case.reason}
LEFT_OUT = {reason for case in CASES for reason in case.left_out} - {"box-over-limit"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """FOLDER/everything: every case among as many good samples."""
    out = tmp_path_factory.mktemp("all") / "everything"
    good = {"objects": [thing(BOTH[0]), thing(BOTH[1], "blue half")], "negatives": ["cat"]}
    with ShardWriter(out / "s", 25) as writer:
        for i, case in enumerate(CASES):
            writer.write(f"{i:03d} {case.key}", case.members())
            writer.write(f"good{i:03d}", {"png": GOOD, "json": good})
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of a small image-text pair."""
    core = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    image = ImageTowerConfig(core=CoreConfig(**core), image_size=(24, 24), patch_size=8, embed_dim=16)
    text = TextTowerConfig(
        core=CoreConfig(**core, causal=True), vocab_size=49408, context_length=8, embed_dim=16
    )
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("pair") / "model"
    model = DualEncoder(DualEncoderConfig(image=image, text=text))
    hub.save(model, out, preprocess=ImagePreprocess(size=(24, 24)), tokenizer=ClipTokenizer(context_length=8))
    return out


@pytest.fixture
def options(everything, pair):
    """options(out, …) -> a command line of 12 steps."""

    def make(out, **more):
        words = {"--preset": "tiny", "--data.train": everything, "--model.pair": pair, "--out": out,
                 "--model.query-length": 8, "--train.precision": "fp32", "--train.threads": 1,
                 "--train.steps": STEPS, "--train.batch-size": BATCH, "--data.max-bad-rate": 0.9,
                 **more}  # fmt: skip
        return [word for item in words.items() for word in item]

    return make


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mosaics", [(1.0,), pytest.param((0.0, 0.5, 0.5), marks=pytest.mark.slow)])
def test_a_run_trains_through_all_of_them(everything, options, tmp_path, runs, only_writes, mosaics):
    out = tmp_path / "run"
    words = options(out, **{"--data.val": everything})
    with only_writes(out):
        status, said = runs("owl", [*words, "--data.mosaics", *mosaics])
    assert status == 0, said
    assert "Traceback" not in said
    assert "Warning" not in said
    found = rows(out)
    trained = [row for row in found if "train/loss" in row]
    assert len(trained) == STEPS
    losses = [value for row in trained for name, value in row.items() if name.startswith("train/")]
    assert np.isfinite(losses).all()
    counted = {name.removeprefix("data/") for name in trained[-1] if name.startswith("data/")}
    assert counted >= BAD | LEFT_OUT, "each is counted"
    assert all(f": {reason}" in said for reason in BAD | LEFT_OUT), "each is told of"
    assert 0 <= next(row["eval/AP"] for row in found if "eval/AP" in row) <= 1
    detector = hub.load(out / "model").model
    assert isinstance(detector, OwlDetector)
    assert all(torch.isfinite(p).all() for p in detector.parameters())


@pytest.mark.parametrize(
    ("fault", "change"),
    zip(
        RUNS,
        [{"--data.max-bad-rate": 0.05}, {"--data.mosaics": "0 0 0 0 1"}, {"--model.pair": "shards"}],
        strict=True,
    ),
)
def test_a_run_that_cannot_be_ends_with_one_line(fault, change, everything, options, tmp_path, runs, told):
    change = {k: everything if v == "shards" else v for k, v in change.items()}
    words = [w for word in options(tmp_path / "run", **change) for w in str(word).split()]
    status, said = runs("owl", words)
    told(fault, "one error", the_error(status, said), **{"FOLDER/shards": everything})
