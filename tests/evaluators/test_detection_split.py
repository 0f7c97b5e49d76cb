"""Whole splits through a toy detector whose right answers are known: it sees colours, names are colours."""

import dataclasses
import io
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from mmvit.data.image import ImagePreprocess
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from mmvit.evaluators.detection import evaluate
from mmvit.evaluators.detection_one_shot import draw_references, one_shot, one_shot_metrics
from mmvit.evaluators.detection_split import detect_split, gathered, labels_of, query_rows
from mmvit.evaluators.detection_truth import label_counts, make_truth
from mmvit.heads.detect import grid_mask
from mmvit.types import Candidates, Detections

COLOURS = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255), "teal": (0, 128, 128)}
GRID = 4
PREPROCESS = ImagePreprocess(size=(64, 64), resize="pad_corner", interpolation="bilinear")


class ColourTokens:
    """Texts -> one id: which colour the text names, the last one where it names none."""

    def __call__(self, texts):
        ids = [next((i for i, name in enumerate(COLOURS) if name in text), len(COLOURS)) for text in texts]
        ids = torch.tensor(ids)[:, None]
        return types.SimpleNamespace(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))


class ColourDetector(nn.Module):
    """One token for each of 4x4 cells; its box is the cell, its embedding how the cell differs from white."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.drop = nn.Dropout()

    def encode_image(self, pixels, regions=None):
        assert not self.training
        side = pixels.shape[-1] // GRID
        cells = pixels.float().unfold(2, side, side).unfold(3, side, side).flatten(4)
        offset = 255 - cells.median(-1).values.flatten(2).transpose(1, 2)  # (B,N,3)
        y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        boxes = torch.stack([(x + 0.5) / GRID, (y + 0.5) / GRID], -1).reshape(-1, 2)
        boxes = torch.cat([boxes, torch.full_like(boxes, 1 / GRID)], -1)
        B, N = offset.shape[:2]
        shift, scale = torch.full((B, N), -0.95), torch.full((B, N), 100.0)
        mask = grid_mask(regions, (GRID, GRID))
        return Candidates(offset, shift, scale, boxes.expand(B, N, 4), (GRID, GRID), mask=mask)

    def encode_queries(self, ids, mask=None):
        table = 255 - torch.tensor([*COLOURS.values(), (254, 255, 255)], dtype=torch.float32)
        return table[ids[..., 0]]


def scene(key, size, things):
    """A white picture with filled cells, a quarter of its width each; `things` are (colour, column, row)."""
    width, height = size
    cell = width // GRID
    image = Image.new("RGB", size, "white")
    objects = []
    for colour, column, row in things:
        box = [column * cell, row * cell, (column + 1) * cell, (row + 1) * cell]
        ImageDraw.Draw(image).rectangle(
            (box[0], box[1], box[2] - 1, box[3] - 1), fill=COLOURS[colour.lower()]
        )
        objects.append({"label": colour, "box": box})
    out = io.BytesIO()
    image.save(out, "png")
    facts = {"width": width, "height": height, "objects": objects}
    return key, {"png": out.getvalue(), "json": facts}


SCENES = [
    scene("a", (128, 64), [("Red", 0, 0), ("blue", 2, 1)]),
    scene("b", (64, 64), [("red", 3, 3), ("red", 1, 0), ("green", 0, 2)]),
    scene("c", (256, 128), [("blue", 1, 1)]),
    scene("d", (64, 32), []),
    scene("e", (32, 32), [("green", 2, 2), ("teal", 1, 3)]),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours") / "test"
    writer = ShardWriter(folder / "cells", samples_per_shard=2)
    for key, members in SCENES:
        writer.write(key, members)
    writer.finish()
    return str(folder)


@pytest.fixture
def model():
    return ColourDetector().train()


def search(model, shards, **options):
    options = {"preprocess": PREPROCESS, "templates": "plain", "batch_size": 2} | options
    return detect_split(model, ColourTokens(), shards, **options)


def test_what_the_toy_sees_is_all_right_in_original_pixels(model, shards):
    found = search(model, shards)
    assert found.categories == ["blue", "green", "red", "teal"]
    assert found.index == [0, 1, 2, 3, 4]
    assert model.training, "modules get their own mode back"
    assert model.drop.training
    metrics = evaluate(found.predictions, found.truths, found.categories).metrics
    assert metrics["AP"] == pytest.approx(1.0)
    assert (metrics["boxes"], metrics["n"], metrics["without_boxes"]) == (8, 5, 1)
    picture = found.predictions[2]
    sure = picture.scores > 0.9
    assert picture.boxes[sure].tolist() == [[64, 64, 128, 128]]
    assert picture.labels[sure].tolist() == [0]
    assert (picture.boxes[:, 2] <= 256).all(), "padding below the picture is cut off"
    assert (picture.boxes[:, 3] <= 128).all()


def test_several_prompts_and_every_ensemble_agree_here(model, shards):
    one = search(model, shards)
    for ensemble in ("logit", "prob", "embed"):
        more = search(model, shards, templates=["a {}", "{} thing"], ensemble=ensemble, batch_size=5)
        for a, b in zip(one.predictions, more.predictions, strict=True):
            torch.testing.assert_close(a.scores, b.scores, atol=1e-5, rtol=0)
    rows, prompts = query_rows(model, ColourTokens(), ["red", "blue"], ["a {}", "{} thing", "{}"])
    assert (rows.shape, prompts) == ((6, 3), 3)
    rows, prompts = query_rows(
        model, ColourTokens(), {"warm": ["red"], "cold": ["blue", "teal"]}, "plain", "embed"
    )
    assert (rows.shape, prompts) == ((2, 3), 1)


def test_only_the_classes_that_are_asked_count(model, shards):
    found = search(model, shards, classes=["Green", "purple"])
    assert found.categories == ["green", "purple"]
    measured = evaluate(found.predictions, found.truths, found.categories)
    assert list(measured.classes) == ["green"]
    assert measured.metrics["boxes"] == 2
    assert sum(truth.left_out.get("other category", 0) for truth in found.truths) == 6


def test_ranks_share_the_pictures(model, shards):
    whole = search(model, shards)
    parts = [search(model, shards, classes=whole.categories, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(i for part in parts for i in part.index) == whole.index
    for part in parts:
        for i, found in zip(part.index, part.predictions, strict=True):
            assert torch.equal(found.boxes, whole.predictions[i].boxes)


def test_a_picture_that_came_twice_counts_once_and_order_is_restored():
    truth = make_truth([[0, 0, 1, 1]], [0])
    found = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [])
    merged = gathered([(3, found, truth), (1, found, truth), (3, found, truth)], {"bad": 2}, ["a"], "x")
    assert merged.index == [1, 3]
    assert merged.skipped == {"bad": 2}
    with pytest.raises(UserError, match="x holds no usable picture; skipped: {'bad': 2}"):
        gathered([], {"bad": 2}, ["a"], "x")


def test_top_k_limits_each_picture(model, shards):
    assert [len(p.scores) for p in search(model, shards, top_k=3).predictions] == [3] * 5


def test_bad_calls_are_refused(model, shards, tmp_path):
    with pytest.raises(ValueError, match="differ only in case or punctuation"):
        search(model, shards, classes=["red", "Red"])
    with pytest.raises(ValueError, match="as many synonyms for one class as for the others"):
        search(model, shards, classes={"red": ["red"], "blue": ["blue", "teal"]})
    with pytest.raises(ValueError, match="has no '{}'"):
        search(model, shards, templates=["nothing"])
    writer = ShardWriter(tmp_path / "empty" / "x")
    writer.write(*scene("d", (64, 32), []))
    writer.finish()
    with pytest.raises(UserError, match="holds no boxes"):
        labels_of(str(tmp_path / "empty"))


def test_a_box_finds_its_like_in_the_other_pictures(model, shards):
    (found,) = one_shot(model, shards, preprocess=PREPROCESS, batch_size=2)
    assert found.categories == ["blue", "green", "red"], "teal is in one picture only"
    boxes = sum(len(truth.boxes) for truth in found.truths)
    assert boxes in (3, 4), "of 7 boxes those in each query's own picture are left out"
    metrics = one_shot_metrics([found], seen=["red"])
    assert metrics["AP50"] == pytest.approx(1.0)
    assert metrics["AP50_seen"] == pytest.approx(1.0)
    assert (metrics["draws"], "AP50_std" in metrics) == (1, False)


def test_draws_repeat_and_differ(model, shards):
    twice = [one_shot(model, shards, preprocess=PREPROCESS, draws=4, batch_size=3) for _ in range(2)]
    for a, b in zip(*twice, strict=True):
        assert [len(t.boxes) for t in a.truths] == [len(t.boxes) for t in b.truths]
        assert all(torch.equal(p.scores, q.scores) for p, q in zip(a.predictions, b.predictions, strict=True))
    assert len({tuple(len(t.boxes) for t in s.truths) for s in twice[0]}) > 1
    metrics = one_shot_metrics(twice[0])
    assert metrics["draws"] == 4
    assert metrics["AP50_std"] == pytest.approx(0, abs=1e-9)


def test_references_depend_on_seed_and_category_alone():
    names = ["a", "b", "c"]
    truths = {
        i: make_truth([[0, 0, 1 + i, 1], [0, 0, 1, 1 + i]], [0, 1], crowd=[False, i == 3]) for i in range(4)
    }
    truths[9] = make_truth([[0, 0, 5, 5]] * 3, [2, 2, 2])
    drawn = draw_references(truths, names, seed=0)
    assert set(drawn) == {"a", "b"}, "c has three boxes in one picture"
    assert draw_references(dict(reversed(truths.items())), names, seed=0) == drawn
    many = [draw_references(truths, names, seed)["b"].picture for seed in range(40)]
    assert set(many) == {0, 1, 2}, "a crowd is no query"
    fewer = {
        i: dataclasses.replace(t, labels=np.where(t.labels == 0, 2, t.labels)) for i, t in truths.items()
    }
    assert draw_references(fewer, names, seed=0)["b"] == drawn["b"]


def test_labels_that_only_crowds_have_are_not_asked():
    crowd = {"label": "sheep", "box": [0, 0, 4, 4], "crowd": True}
    own = {"label": "Dog", "box": [0, 0, 2, 2]}
    assert label_counts([{"objects": [crowd, own]}, {"objects": [own, own]}]) == {"dog": 2}
