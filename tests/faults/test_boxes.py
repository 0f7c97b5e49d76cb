"""Odd annotations among good ones, for training and for evaluation: skipped, left out, or used; never NaN."""

import math

import pytest
import torch

from mmvit.data.detection import make_detection_loader, read_detection
from mmvit.data.image import ImagePreprocess
from mmvit.data.pixels import open_image, upright_size
from mmvit.data.text import ClipTokenizer
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from mmvit.evaluators.detection_truth import label_of, read_truth
from mmvit.models.config import DetectorConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.owl import OwlDetector
from mmvit.tasks.detection import DetectionTask
from tests.faults.cases_boxes import BOTH, CASES, GOOD, thing

KEYS = ["good-0", "good-1", "odd", "good-3", "good-4"]
SIDE, QUERIES = 24, 20
PREPROCESS = ImagePreprocess(size=(SIDE, SIDE), resize="pad_corner")
GOOD_MEMBERS = {
    "png": GOOD,
    "json": {"objects": [thing(BOTH[0]), thing(BOTH[1], "blue half")], "negatives": ["cat"]},
}
WHOLE = {"mosaics": ((1, 1.0),), "flip": 0.0, "crop": (1.0, 1.0), "draft": False}
WILD = {"mosaics": ((2, 0.5), (3, 0.5)), "max_boxes": 30, "min_area": 0.1}
# The test run makes errors of warnings; these cases are to be met as a user meets them.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def task():
    """A small detector with its loss."""
    core = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    image = ImageTowerConfig(core=CoreConfig(**core), image_size=(SIDE, SIDE), patch_size=8)
    text = TextTowerConfig(
        core=CoreConfig(**core, causal=True), vocab_size=49408, context_length=8, embed_dim=16
    )
    torch.manual_seed(0)
    return DetectionTask(OwlDetector(DetectorConfig(image=image, text=text, hide_padding=True)))


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(context_length=8)


@pytest.fixture
def train(tmp_path, tokenizer):
    """train(epochs, …) -> (batches of 5, the loader) of FOLDER/shards."""

    def read(batches, **options):
        loader = make_detection_loader(
            str(tmp_path / "shards"),
            tokenizer=tokenizer,
            preprocess=PREPROCESS,
            batch_size=5,
            num_batches=batches,
            num_queries=QUERIES,
            max_bad_rate=1.0,
            **options,
        )
        with loader:
            return list(loader), loader

    return read


def check_batch(batch):
    """Everything that is real is finite and in its range; every box answers a query."""
    real = batch.boxes[batch.box_mask]
    assert torch.isfinite(batch.boxes).all()
    assert ((real >= 0) & (real <= 1)).all()
    assert (real[:, 2:] > real[:, :2]).all()
    assert torch.isfinite(batch.regions).all()
    assert (batch.box_labels.any(-1) == batch.box_mask).all()
    assert not (batch.box_labels & ~batch.query_mask[:, None]).any()
    for labels in (m["labels"] for m in batch.meta):
        assert len(labels) == len(set(labels)) <= QUERIES


def check_loss(task, batch):
    """A training step's numbers are finite, also where nothing is matched."""
    task.zero_grad()
    out = task(batch)
    out["loss"].backward()
    assert all(torch.isfinite(value).all() for value in out.values()), out
    grads = [p.grad for p in task.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)


def check_good(batch):
    """The good samples' boxes are where they were written."""
    for b, key in enumerate(batch.keys):
        if key != "odd":
            names = [batch.meta[b]["labels"][q] for q in batch.box_labels[b].int().argmax(-1).tolist()]
            pixels = batch.boxes[b][batch.box_mask[b]] * SIDE
            assert dict(zip(names, pixels.tolist(), strict=False)) == {
                "red half": BOTH[0],
                "blue half": BOTH[1],
            }


def check_odd(case, batch):
    """The odd sample's boxes and queries in training are those that the case says."""
    for b in (b for b, key in enumerate(batch.keys) if key == "odd"):
        labels = batch.meta[b]["labels"]
        assert all(any(label.startswith(start) for label in labels) for start in case.asked)
        assert not set(labels) & set(case.never)
        found = batch.boxes[b][batch.box_mask[b]]
        if isinstance(case.trained, int):
            assert len(found) == case.trained
            continue
        size = sizes_of(case)
        wanted = torch.tensor(case.boxes if case.trained is None else case.trained, dtype=torch.float64)
        pixels = PREPROCESS.placement(*size).to_pixels(found.double())
        assert torch.allclose(pixels, wanted.reshape(-1, 4), atol=1e-3), pixels.tolist()


def sizes_of(case):
    """(height, width) of the upright picture of a case."""
    members = case.members()
    width, height = upright_size(open_image(members.get("png") or members["jpg"], 10**6))
    return height, width


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.fault)
def test_a_fault_costs_its_own_boxes_and_no_others(case, tmp_path, told, train, task, only_indexes, capfd):
    with ShardWriter(tmp_path / "shards" / "s", 5) as writer:
        for key in KEYS:
            writer.write(key, case.members() if key == "odd" else GOOD_MEMBERS)
    good = [key for key in KEYS if key != "odd" or not case.reason]
    with only_indexes():
        with read_detection(str(tmp_path / "shards"), preprocess=PREPROCESS, batch_size=5) as evaluated:
            (batch,) = evaluated
        assert batch.keys == good
        assert evaluated.skipped[case.reason] == (1 if case.reason else 0)
        assert torch.isfinite(batch.regions).all()
        named = (label_of(thing) for meta in batch.meta for thing in meta.get("objects") or ())
        names = {name: i for i, name in enumerate(sorted(set(named) - {""}))}
        for key, meta in zip(batch.keys, batch.meta, strict=True):
            truth = read_truth(meta, names)
            assert truth.boxes.tolist() == (case.boxes if key == "odd" else BOTH)
            assert ((truth.area > 0) & (truth.area < 1e9)).all()
            assert not truth.exhaustive
        batches, loader = train(2, **WHOLE)
        assert {key for batch in batches for key in batch.keys} == set(good), "every good one"
        assert set(loader.skipped) == ({case.reason} if case.reason else set(case.left_out))
        for reason, count in case.left_out.items():
            assert loader.skipped[reason] % count == 0
            assert loader.skipped[reason] >= 2 * count
        for batch in batches:
            check_batch(batch)
            check_good(batch)
            check_odd(case, batch)
            check_loss(task, batch)
        for batch in train(2, **WILD)[0]:
            check_batch(batch)
            check_loss(task, batch)
    assert "Traceback" not in capfd.readouterr().err
    if case.reason:
        told(case.fault, "skipped and counted", f"`{case.reason}`")
    elif case.became:
        told(case.fault, "used", case.became)
    else:
        told(case.fault, "left out and counted", f"`{next(iter(case.left_out))}`")


@pytest.mark.parametrize(
    ("fault", "meta"),
    [
        ("shards without a single object", {"objects": []}),
        ("shards in which every box is NaN", {"objects": [thing([math.nan] * 4)]}),
    ],
)
def test_shards_without_a_usable_box_give_finite_losses(fault, meta, tmp_path, told, train, task):
    with ShardWriter(tmp_path / "shards" / "s", 5) as writer:
        for key in KEYS:
            writer.write(key, {"png": GOOD, "json": meta})
    for options in (WHOLE, WILD):
        for batch in train(2, **options)[0]:
            assert not batch.box_mask.any()
            check_batch(batch)
            check_loss(task, batch)
    told(fault, "used", "pictures of background; nothing is learned of boxes, losses are finite")


def test_shards_without_annotations_end_with_one_line(tmp_path, told, train):
    with ShardWriter(tmp_path / "shards" / "s", 5) as writer:
        for key in KEYS:
            writer.write(key, {"png": GOOD, "json": {"label": "red half"}})
    with pytest.raises(UserError) as error:
        train(2)
    assert "\n" not in str(error.value)
    told("shards of which no sample has boxes", "one error", str(error.value))
    with ShardWriter(tmp_path / "other" / "s", 5) as writer:
        writer.write("a", {"png": GOOD, "txt": "red half"})
    (tmp_path / "shards").rename(tmp_path / "were")
    (tmp_path / "other").rename(tmp_path / "shards")
    with pytest.raises(UserError) as error:
        train(2)
    told("shards without JSON in a detection run", "one error", str(error.value))
