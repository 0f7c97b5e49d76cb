"""eval/detection.py against the functions it is made of; mistakes are one line."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmvit.cli.detector import open_detector
from mmvit.cli.report.gallery import RawPictures
from mmvit.cli.scenes import draw_sheet, upright
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer
from mmvit.data.write import ShardWriter
from mmvit.evaluators.detection import evaluate
from mmvit.evaluators.detection_split import Searched, detect_split
from mmvit.evaluators.detection_truth import make_truth
from mmvit.evaluators.table import comparison_table
from mmvit.hub.folder import save
from mmvit.models.config import CoreConfig, DetectorConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.owl import OwlDetector
from mmvit.types import Detections

COLOURS = ("red", "green", "blue", "orange")


def write_scenes(folder, seed, count, colours, stated=None, **facts):
    """`count` pictures of different sizes with one to three coloured boxes; the index lists `stated`."""
    rng = np.random.default_rng(seed)
    meta = {"categories": stated} if stated else None
    writer = ShardWriter(folder / "boxes", samples_per_shard=4, meta=meta)
    for i in range(count):
        width, height = (int(v) for v in rng.integers(30, 90, 2))
        image, objects = Image.new("RGB", (width, height), "white"), []
        for _ in range(rng.integers(1, 4)):
            x, y = (int(rng.integers(0, side - 16)) for side in (width, height))
            box = [x, y, x + int(rng.integers(8, 16)), y + int(rng.integers(8, 16))]
            colour = colours[rng.integers(len(colours))]
            ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
            objects.append({"label": f"{colour} box", "box": box})
        out = io.BytesIO()
        image.save(out, "png")
        meta = {"width": width, "height": height, "objects": objects} | facts
        writer.write(f"s{i}", {"png": out.getvalue(), "json": meta})
    writer.finish()
    return folder


def tiny_detector(seed=0):
    core = CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=64)
    text = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32, causal=True)
    torch.manual_seed(seed)
    model = OwlDetector(
        DetectorConfig(
            image=ImageTowerConfig(core=core, image_size=(48, 48), patch_size=8, pool="cls"),
            text=TextTowerConfig(core=text, vocab_size=49408, context_length=16, embed_dim=16),
        )
    )
    for p in model.parameters():  # the initial values are so small that all logits look alike
        if p.ndim > 1 and p.shape[0] < 1000:
            torch.nn.init.normal_(p, std=0.3)
    return model


PREPROCESS = ImagePreprocess(size=(48, 48), resize="pad_corner")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "toy" / "test_boxes", 0, 10, COLOURS)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "toy" / "train", 1, 6, COLOURS[:2])


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny" / "model"
    save(tiny_detector(), folder, preprocess=PREPROCESS, tokenizer=ClipTokenizer().with_context(16))
    return folder


def test_the_result_is_what_the_functions_say(program, detector, scenes, training, tmp_path):
    out, sheet = tmp_path / "deep" / "r.json", tmp_path / "sheets" / "s.png"
    code, stdout, stderr = program(
        "eval/detection.py", "--model", detector, "--data", scenes, "--out", out, "--seen", training,
        "--one-shot", 2, "--picture", sheet, "--picture-count", 3, "--batch-size", 4,
    )  # fmt: skip
    assert code == 0, stderr
    found = json.loads(out.read_text())
    opened = open_detector(str(detector), "cpu")
    searched = detect_split(opened.model, opened.tokenizer, str(scenes), preprocess=opened.preprocess)
    seen = ["red box", "green box"]
    expected = evaluate(searched.predictions, searched.truths, searched.categories, seen=seen)
    assert {name: found["metrics"][name] for name in expected.metrics} == pytest.approx(
        expected.metrics, abs=1e-6
    )
    assert set(found["per_class"]) == set(expected.classes) == {f"{colour} box" for colour in COLOURS}
    assert {"chance_AP", "chance_AP50", "one_shot_AP50", "one_shot_AP50_std"} <= set(found["metrics"])
    assert found["metrics"]["one_shot_draws"] == 2
    assert (found["dataset"], found["split"], found["task"]) == ("toy", "test_boxes", "object_detection")
    assert (found["n"], found["protocol"], found["classes_asked"], found["skipped"]) == (10, "coco", 4, {})
    assert (found["templates"], found["ensemble"]) == ("clip7", "logit")
    for words in (
        "detection",
        "AP of classes",
        "unseen",
        "one-shot",
        "boxes of 4 classes",
        "chance: the same boxes",
    ):
        assert words in stdout
    with Image.open(sheet) as picture:
        assert picture.width > 3 * 400


def test_rules_classes_and_grades(program, detector, training, tmp_path):
    data = write_scenes(tmp_path / "toy" / "val", 2, 6, COLOURS, exhaustive=True)
    classes, out = tmp_path / "classes.txt", tmp_path / "r.json"
    classes.write_text("Red box\nblue box\npurple hat\n")
    run = ["--model", detector, "--data", data, "--out", out, "--templates", "plain"]
    code, _, stderr = program(
        "eval/detection.py", *run, "--classes", classes, "--protocol", "lvis", "--seen", training
    )
    assert code == 0, stderr
    found = json.loads(out.read_text())
    assert set(found["per_class"]) == {"red box", "blue box"}
    assert {"APr", "AR300"} <= set(found["metrics"])
    assert "APf" not in found["metrics"]
    assert found["left_out"]["other category"] > 0
    assert program("eval/detection.py", *run, "--classes", "all", "--seen", training)[0] == 0
    assert json.loads(out.read_text())["classes_asked"] == 4


def test_shards_may_state_categories_and_how_frequent_they_are(program, detector, tmp_path):
    grades = {"Red box": "r", "green box": "c", "blue box": "f", "orange box": "f", "grey box": "f"}
    stated = [
        {"id": 3 * i, "name": name, "frequency": grade} for i, (name, grade) in enumerate(grades.items())
    ]
    data = write_scenes(tmp_path / "toy" / "val", 3, 6, COLOURS, stated, exhaustive=True)
    out = tmp_path / "r.json"
    run = ["--model", detector, "--data", data, "--out", out, "--templates", "plain", "--protocol", "lvis"]
    code, _, stderr = program("eval/detection.py", *run)
    assert code == 0, stderr
    found = json.loads(out.read_text())
    assert found["classes_asked"] == 5, "a category without a box is asked too"
    per_class = {name: entry["AP"] for name, entry in found["per_class"].items()}
    assert found["metrics"]["APr"] == pytest.approx(per_class["red box"])
    assert found["metrics"]["APf"] == pytest.approx((per_class["blue box"] + per_class["orange box"]) / 2)


@pytest.mark.slow
def test_two_processes_agree_with_one(program, detector, scenes, tmp_path, root, start):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    run = [
        "--model",
        detector,
        "--data",
        scenes,
        "--templates",
        "plain",
        "--one-shot",
        "1",
        "--batch-size",
        "3",
    ]
    assert program("eval/detection.py", *run, "--out", one)[0] == 0
    port = str(29500 + os.getpid() % 1000)
    command = [sys.executable, root / "eval/detection.py", *run, "--out", two]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        start(command, env=os.environ | world | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert "one-shot" in said[0]
    assert said[1] == ""
    a, b = json.loads(one.read_text()), json.loads(two.read_text())
    assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-6)
    assert a["per_class"] == b["per_class"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "PAIR"}, "holds a dual_encoder: this needs a detector"),
        ({"--model": "/none"}, "/none"),
        ({"--data": "/none"}, "/none"),
        ({"--templates": "clip8"}, "unknown template set 'clip8'"),
        ({"--one-shot": -1}, "--one-shot -1 must be 0 or more"),
        ({"--picture": "/dev/null/x.png"}, "cannot write --picture /dev/null/x.png: "),
        ({"--picture": "x.wrong"}, "cannot write --picture x.wrong: unknown file extension"),
        ({"--classes": "FILE"}, "none of the 10 pictures has a true box of the 1 categories"),
    ],
)
def test_mistakes_are_one_line(program, detector, model, scenes, tmp_path, change, message):
    classes = tmp_path / "classes.txt"
    classes.write_text("purple hat\n")
    change = {k: {"PAIR": model, "FILE": classes}.get(v, v) for k, v in change.items()}
    options = {
        "--model": detector,
        "--data": scenes,
        "--out": tmp_path / "r.json",
        "--templates": "plain",
    } | change
    code, _, stderr = program("eval/detection.py", *(word for pair in options.items() for word in pair))
    assert code == 2
    error = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert "Traceback" not in stderr


def test_the_sheet_shows_boxes_where_they_are(scenes):
    first = upright(RawPictures(str(scenes))(9))
    truth = make_truth([[2, 2, 20, 20]], [0], key="s9", size=(first.height, first.width))
    box = torch.tensor([[1.0, 1, 25, 25]]).repeat(3, 1)
    found = Detections(box, torch.tensor([0.9, 0.5, 0.05]), torch.tensor([0, 1, 1]), [])
    nothing = Detections(box[:0], box[:0, 0], torch.zeros(0, dtype=torch.int64), [])
    names = ["red box", "blue box"]
    with_box, without = (
        np.asarray(draw_sheet(str(scenes), Searched([9], [p], [truth], names))).astype(int)
        for p in (found, nothing)
    )
    assert with_box.shape == without.shape
    changed = np.argwhere(np.abs(with_box - without).sum(-1) > 0)
    scale = 448 / max(first.size)
    low, high = changed.min(0) - 12, changed.max(0) - 12  # 12 pixels of margin
    assert low == pytest.approx(scale * np.array([1, 1]), abs=30), "the label stands above the box"
    assert high[0] == pytest.approx(scale * 25, abs=30)
    one = Detections(box[:1], found.scores[:1], found.labels[:1], [])
    alone = np.asarray(draw_sheet(str(scenes), Searched([9], [one], [truth], names)))
    assert np.array_equal(alone, with_box), "a second name for the same place is not drawn"


def test_detection_stands_in_its_own_columns_of_the_table():
    def entry(task, metrics):
        return {
            "model": "runs/a/model",
            "dataset": "d",
            "split": "s",
            "task": task,
            "n": 5,
            "metrics": metrics,
        }

    metrics = {"AP": 0.25, "AP50": 0.5, "AP_unseen": 0.125, "chance_AP": 0.01, "boxes": 1200, "classes": 7}
    text = comparison_table([entry("object_detection", metrics)], terminal=False).split("\n")
    assert text[0] == "d s: 5 samples, 1,200 boxes of 7 classes; percent"
    assert text[3].split() == ["a", "│", "25.0", "50.0", "│", "12.5"]
    assert text[4].split() == ["chance", "│", "1.0", "–", "│", "–"]
