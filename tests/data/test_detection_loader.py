"""Batches with boxes: the same for any ranks and workers, and every box where its object is."""

import logging
import pickle
import random

import pytest
import torch

from mmvit.data.detection import make_detection_loader, read_detection
from mmvit.data.image import ImagePreprocess
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from mmvit.types import Batch

FIELDS = ("image", "queries", "queries_mask", "query_mask", "boxes", "box_mask", "box_labels", "regions")
CORNER = ImagePreprocess(size=(120, 96), resize="pad_corner", background=(0, 0, 0))
TOLERANCE = 0.53  # half a pixel, and what 8 bits leave open about where it is half bright
PLAIN = {"templates": "plain", "min_negatives": 3}


def run(urls, n, tokenizer, *, batch=6, ranks=1, start=0, **options) -> list[list[Batch]]:
    """The batches of every rank: [rank][batch]."""
    out = []
    for rank in range(ranks):
        with make_detection_loader(
            urls, tokenizer=tokenizer, batch_size=batch, rank=rank, world_size=ranks, num_batches=n,
            start_position=start, **{"preprocess": CORNER, **PLAIN, **options},
        ) as loader:  # fmt: skip
            out.append(list(loader))
            assert loader.samples_seen == start + n * batch
    return out


def content(batches) -> list:
    """Per sample, in order, everything that does not depend on a batch's padding."""
    out = []
    for b in batches:
        for i, meta in enumerate(b.meta):
            q, m = int(b.query_mask[i].sum()), int(b.box_mask[i].sum())
            tensors = b.image[i], b.queries[i, :q], b.boxes[i, :m], b.box_labels[i, :m, :q]
            out.append((b.keys[i], meta, [t.tolist() for t in tensors]))
    return out


def equal(one, two) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)


def test_a_batch_has_the_agreed_shapes(scenes, sentencepiece):
    ((batch,),) = run(scenes, 1, sentencepiece)
    B, Q, L = batch.queries.shape
    M, R = batch.boxes.shape[1], batch.regions.shape[1]
    assert (B, L) == (6, 8)
    assert batch.image.shape == (6, 3, 120, 96)
    assert batch.queries_mask.shape == (B, Q, L)
    assert batch.query_mask.shape == (B, Q)
    assert batch.boxes.shape == (B, M, 4)
    assert batch.box_mask.shape == (B, M)
    assert batch.box_labels.shape == (B, M, Q)
    assert batch.regions.shape == (B, R, 4)
    assert batch.image.dtype == torch.uint8
    assert all(getattr(batch, name).dtype == torch.bool for name in FIELDS if "mask" in name)
    assert batch.queries_mask.any(-1).all(), (
        "a padded query has real tokens, so that nothing attends to nothing"
    )
    assert batch.box_labels.any(-1).equal(batch.box_mask), (
        "every real box answers a query, no padded one does"
    )
    assert not (batch.box_labels & ~batch.query_mask[:, None]).any()
    for i, meta in enumerate(batch.meta):
        want = sentencepiece(meta["queries"]).ids
        assert torch.equal(batch.queries[i, : len(want)], want)


def test_fixed_shapes(scenes, sentencepiece):
    (batches,) = run(scenes, 3, sentencepiece, fixed_shapes=True, num_queries=7, max_boxes=5)
    assert {b.queries.shape for b in batches} == {(6, 7, 8)}
    assert {b.box_labels.shape for b in batches} == {(6, 5, 7)}
    assert {b.regions.shape for b in batches} == {(6, 9, 4)}


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (3, 0), (1, 2)])
def test_ranks_and_workers_change_nothing(scenes, sentencepiece, ranks, workers):
    want = content(run(scenes, 3, sentencepiece)[0])
    parts = run(scenes, 3, sentencepiece, ranks=ranks, workers=workers)
    got = [sample for step in zip(*parts, strict=True) for sample in content(step)]
    assert got == want


@pytest.mark.parametrize(("start", "batch"), [(12, 6), (7, 6), (12, 3)])
def test_resume_equals_never_stopped(scenes, sentencepiece, start, batch):
    whole = content(run(scenes, 4, sentencepiece)[0])
    rest = content(run(scenes, 2, sentencepiece, start=start, batch=batch)[0])
    assert rest == whole[start : start + 2 * batch]


def test_every_picture_is_the_main_tile_once_an_epoch(scenes, sentencepiece):
    (batches,) = run(scenes, 10, sentencepiece, batch=8)
    keys = [key for b in batches for key in b.keys]
    assert sorted(keys[:40]) == sorted(keys[40:]) == [f"b{i:05d}" for i in range(40)]
    assert all(key in meta["tiles"] for b in batches for key, meta in zip(b.keys, b.meta, strict=True))
    assert content(batches[:1]) != content(run(scenes, 1, sentencepiece, batch=8, seed=1)[0])


def test_a_dataset_can_travel_and_draws_from_nobody_elses_generator(scenes, sentencepiece):
    loader = make_detection_loader(scenes, tokenizer=sentencepiece, preprocess=CORNER, batch_size=4, **PLAIN)
    torch.manual_seed(3)
    random.seed(3)
    want = torch.rand(1), random.random()
    torch.manual_seed(3)
    random.seed(3)
    one, two = loader.dataset[1].batch, pickle.loads(pickle.dumps(loader.dataset))[1].batch
    assert (torch.rand(1), random.random()) == want
    assert equal(one, two)


def miss(batch: Batch, i: int, m: int) -> float | None:
    """Pixels between box m of picture i and the bounds of what is bright in its tile, None for thin ones."""
    grid = round(len(batch.meta[i]["tiles"]) ** 0.5)
    height, width = batch.image.shape[2] // grid, batch.image.shape[3] // grid
    box = batch.boxes[i, m].double() * torch.tensor([batch.image.shape[3], batch.image.shape[2]] * 2)
    if (box[2:] - box[:2]).min() < 5:
        return None
    column, row = int((box[0] + box[2]) / 2 // width), int((box[1] + box[3]) / 2 // height)
    tile = batch.image[i, 0, row * height : (row + 1) * height, column * width : (column + 1) * width]
    level = 130 + 3 * int(batch.meta[i]["tiles"][row * grid + column][1:])
    bright = tile > level / 2
    ys, xs = (
        bright.any(1).nonzero().flatten() + row * height,
        bright.any(0).nonzero().flatten() + column * width,
    )
    bounds = torch.tensor([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], dtype=torch.float64)
    return float((box - bounds).abs().max())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mosaics": ((1, 1.0),), "flip": 1.0, "crop": (1.0, 1.0)},
        {"mosaics": ((2, 1.0),), "crop": (1.0, 1.0), "flip": 0.0},
        {"mosaics": ((3, 1.0),), "min_area": 0.0},
        {"preprocess": ImagePreprocess(size=(90, 120), resize="squash")},
        {"preprocess": ImagePreprocess(size=(96, 96), resize="shortest_crop"), "min_area": 0.3},
        {"preprocess": ImagePreprocess(size=(96, 144), resize="pad", background=(0, 0, 0))},
    ],
    ids=("all", "flip", "grid", "many", "squash", "shortest_crop", "pad"),
)
def test_every_box_is_where_its_object_is(scenes, sentencepiece, options):
    """Property: after any crop, flip, resize and mosaic, to within half a pixel of the tensor."""
    (batches,) = run(scenes, 5, sentencepiece, batch=8, **options)
    errors = [miss(b, i, m) for b in batches for i in range(len(b)) for m in range(int(b.box_mask[i].sum()))]
    errors = [error for error in errors if error is not None]
    assert len(errors) > 25
    assert max(errors) <= TOLERANCE


def test_labels_follow_their_boxes_and_negatives_are_not_there(scenes, sentencepiece):
    (batches,) = run(scenes, 10, sentencepiece, batch=8, min_negatives=4)
    sizes = []
    for b in batches:
        for i, meta in enumerate(b.meta):
            grid2 = len(meta["tiles"])
            names = meta["labels"]
            assert len(set(names)) == len(names)
            there = {LABEL[int(key[1:]) % 8] for key in meta["tiles"]}
            m = int(b.box_mask[i].sum())
            answered = {names[q] for q in b.box_labels[i].any(0).nonzero().flatten().tolist()}
            assert answered <= there
            negatives = set(names) - answered
            assert not negatives & there, "also not those that a crop has cut away"
            assert len(negatives) == min(4, 8 - len(there)), "4, or all that there are"
            assert m <= grid2
            sizes.append(grid2)
    assert set(sizes) == {1, 4, 9}


LABEL = ["red fox", "blue dog", "volcano", "green cat", "tea cup", "violin", "moon", "old key"]


def test_mosaics_shrink_boxes_by_the_grid(scenes, sentencepiece):
    """Sum of areas / g^2: without crops, and where tensor and tile have the same shape."""
    share = {}
    for g in (1, 2, 3):
        options = {"mosaics": ((g, 1.0),), "crop": (1.0, 1.0), "merge_iou": 2.0}
        (batches,) = run(scenes, 5, sentencepiece, batch=8, **options)
        size = {
            int(tile[1:]): float((b.boxes[i, k, 2:] - b.boxes[i, k, :2]).prod())
            for b in batches
            for i, meta in enumerate(b.meta)
            for k, tile in enumerate(meta["tiles"])
        }
        share[g] = size
    for g in (2, 3):
        both = set(share[1]) & set(share[g])
        assert len(both) > 20
        for key in both:
            assert share[g][key] == pytest.approx(share[1][key] / g**2, rel=1e-4)


def test_regions_cover_the_tiles_pictures(scenes, sentencepiece):
    (batches,) = run(scenes, 4, sentencepiece, mosaics=((2, 1.0),), crop=(1.0, 1.0))
    for b in batches:
        regions = b.regions.reshape(-1, 2, 2, 4)
        corner = regions[..., :2]
        assert torch.equal(corner[0], torch.tensor([[[0, 0], [0.5, 0]], [[0, 0.5], [0.5, 0.5]]]))
        assert ((regions[..., 2:] - corner).amax(-1) == 0.5).all(), "the longer side fills its tile"
        boxes = b.boxes[:, :, None]
        inside = ((boxes[..., :2] >= b.regions[:, None, :, :2] - 1e-6)
                  & (boxes[..., 2:] <= b.regions[:, None, :, 2:] + 1e-6)).all(-1).any(-1)  # fmt: skip
        assert inside[b.box_mask].all()


def test_sizes_that_a_mosaic_does_not_divide_are_refused(scenes, sentencepiece):
    with pytest.raises(UserError, match=r"100 x 96 pixels cannot be a mosaic of 3 x 3"):
        run(scenes, 1, sentencepiece, preprocess=ImagePreprocess(size=(100, 96)))
    run(scenes, 1, sentencepiece, preprocess=ImagePreprocess(size=(100, 96)), mosaics=((1, 1), (3, 0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mosaics": ()}, "pairs"),
        ({"mosaics": ((0, 1.0),)}, "pairs"),
        ({"mosaics": ((1, 0.0),)}, "must not all be 0"),
        ({"max_boxes": 0}, "max_boxes=0"),
        ({"min_area": 2}, "min_area=2"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"templates": "olw"}, "did you mean owl"),
        ({"templates": ["no place"]}, "no '{}'"),
        ({"crop": (0.5, 0.1)}, "rising range"),
        ({"flip": 3}, "flip=3"),
        ({"batch": 0}, "positive"),
    ],
)
def test_mistakes_are_one_line(scenes, sentencepiece, options, message):
    with pytest.raises(UserError, match=message):
        run(scenes, 1, sentencepiece, **options)


def test_shards_that_cannot_have_boxes(shards, sentencepiece, tmp_path):
    with pytest.raises(UserError, match="need local shards"):
        run("pipe:cat x.tar", 1, sentencepiece)
    with pytest.raises(UserError, match="need local shards"):
        read_detection("https://x.org/a.tar", preprocess=CORNER, batch_size=1)
    with pytest.raises(UserError, match="100 samples of .* in a row cannot be used: .*boxes-missing"):
        run(shards, 1, sentencepiece)
    with ShardWriter(tmp_path / "p") as writer:
        writer.write("a", {"png": b"x", "txt": "a"})
    with pytest.raises(UserError, match="no boxes: they stand in KEY.json"):
        run(str(tmp_path), 1, sentencepiece)


@pytest.fixture(scope="module")
def odd(tmp_path_factory, picture, image_bytes) -> str:
    """Pictures with everything that can be wrong with boxes."""
    nan = float("nan")
    box = {"label": "fox", "box": [2, 2, 30, 30]}
    cases = {
        "none": [],
        "outside": [box, {"label": "dog", "box": [90, 90, 95, 95]}],
        "empty": [box, {"label": "dog", "box": [3, 3, 3, 8]}],
        "nan": [box, {"label": "dog", "box": [nan, 0, 1, 1]}],
        "crowd": [box, {"label": "dog", "box": [0, 0, 9, 9], "crowd": True}],
        "many": [
            {"label": f"thing {k}", "box": [k % 30, k // 30, k % 30 + 5, k // 30 + 5]} for k in range(300)
        ],
        "twice": [{"label": "fox", "box": [2, 2, 30, 30]}, {"label": "Red Fox", "box": [2, 2, 30, 30]}],
    }
    folder = tmp_path_factory.mktemp("odd")
    with ShardWriter(folder / "o", 100) as writer:
        for key, objects in cases.items():
            writer.write(key, {"png": image_bytes(picture(40, 40)), "json": {"objects": objects}})
        line = {"label": "line", "box": [0, 0, 1, 5000]}
        writer.write("sliver", {"png": image_bytes(picture(1, 5000)), "json": {"objects": [line]}})
        frame = {"objects": [box], "width": 99, "height": 40}
        writer.write("frame", {"png": image_bytes(picture(40, 40)), "json": frame})
    return str(folder)


def test_bad_boxes_are_counted_and_samples_survive(odd, sentencepiece, caplog):
    options = {"mosaics": ((1, 1.0),), "crop": (1.0, 1.0), "flip": 0.0, "max_boxes": 100, "num_queries": 150}
    with caplog.at_level(logging.WARNING), make_detection_loader(
        odd, tokenizer=sentencepiece, preprocess=CORNER, batch_size=9, num_batches=1, max_bad_rate=0.2,
        min_negatives=500, templates="plain", **options,
    ) as loader:  # fmt: skip
        (batch,) = loader
    rows = {key: i for i, key in enumerate(batch.keys)}
    count = {key: int(batch.box_mask[i].sum()) for key, i in rows.items()}
    assert {k: count[k] for k in ("none", "outside", "empty", "nan", "crowd", "many", "twice", "sliver")} == {
        "none": 0, "outside": 1, "empty": 1, "nan": 1, "crowd": 1, "many": 100, "twice": 1, "sliver": 1,
    }  # fmt: skip
    skipped = dict(loader.skipped)
    assert skipped.pop("boxes-frame") >= 1
    assert skipped.pop("box-over-limit") % 200 == 0
    assert {"box-outside", "box-empty", "box-not-finite", "box-crowd"} == set(skipped)
    assert "outside in" in caplog.text, "the first of each reason is logged with its place"
    assert loader.drawn == 9 + loader.skipped["boxes-frame"], "a bad box is no bad sample"
    assert torch.isfinite(batch.boxes).all()
    assert ((batch.boxes >= 0) & (batch.boxes <= 1)).all()
    assert (batch.boxes[..., 2:] > batch.boxes[..., :2]).all(-1).equal(batch.box_mask)
    i = rows["twice"]
    names = batch.meta[i]["labels"]
    answers = batch.box_labels[i, 0, : len(names)]
    assert {names[q] for q in answers.nonzero().flatten().tolist()} == {"fox", "red fox"}, (
        "one box, two labels"
    )
    for key in ("outside", "empty", "nan", "crowd"):
        assert "dog" not in batch.meta[rows[key]]["labels"], (
            "a box that cannot be used is no proof of absence"
        )
    left = [f"thing {k}" for k in range(300)]
    asked = batch.meta[rows["many"]]["labels"]
    assert set(left) & set(asked) == {
        asked[q] for q in batch.box_labels[rows["many"]].any(0).nonzero().flatten()
    }


def test_more_labels_than_queries(odd, sentencepiece):
    (batches,) = run(odd, 3, sentencepiece, batch=9, num_queries=10, max_bad_rate=1.0, mosaics=((1, 1.0),))
    for b in batches:
        assert b.queries.shape[1] <= 10
        assert b.box_labels.any(-1).equal(b.box_mask)


def test_too_many_bad_samples_stop_the_run_but_bad_boxes_do_not(
    tmp_path, picture, image_bytes, sentencepiece
):
    bad = {"label": "fox", "box": [5, 5, 1, 1]}
    for name, objects, width in (("boxes", [bad] * 9, 8), ("samples", [], 9)):
        with ShardWriter(tmp_path / name / "x") as writer:
            for i in range(10):
                frame = {"width": width if i < 3 else 8, "height": 30 if i < 3 and width == 9 else 8}
                writer.write(
                    f"s{i}", {"png": image_bytes(picture(8, 8)), "json": {"objects": objects, **frame}}
                )
    options = {"batch": 50, "mosaics": ((1, 1.0),)}
    run(str(tmp_path / "boxes"), 5, sentencepiece, **options)
    with pytest.raises(UserError, match=r"unusable \(boxes-frame \d+\)"):
        run(str(tmp_path / "samples"), 5, sentencepiece, **options)


def test_two_sources_keep_their_labels_apart(tmp_path, write_scenes, scenes, sentencepiece):
    other = write_scenes(tmp_path / "o" / "x", 10, prefix="c", negatives=["a ghost"], objects=[])
    (batches,) = run(f"{scenes}::{other}", 6, sentencepiece, weights=(1, 1), batch=8)
    for b in batches:
        for key, meta in zip(b.keys, b.meta, strict=True):
            assert {tile[0] for tile in meta["tiles"]} == {key[0]}, "a mosaic is of one source"
            assert meta["labels"] == ["a ghost"] if key[0] == "c" else "a ghost" not in meta["labels"]


@pytest.mark.parametrize(("ranks", "workers", "batch"), [(1, 0, 7), (3, 0, 4), (1, 1, 40)])
def test_read_detection_gives_every_picture_once_with_its_truth(scenes, ranks, workers, batch):
    keys = []
    for rank in range(ranks):
        with read_detection(
            scenes, preprocess=CORNER, batch_size=batch, rank=rank, world_size=ranks, workers=workers
        ) as loader:
            for b in loader:
                keys += b.keys
                assert b.regions.shape == (len(b), 1, 4)
                assert b.queries is None
                for i, meta in enumerate(b.meta):
                    placement = CORNER.placement(meta["height"], meta["width"])
                    assert b.regions[i, 0].tolist() == pytest.approx(placement.region)
                    (thing,) = meta["objects"]
                    box = placement.to_fractions(torch.tensor(thing["box"], dtype=torch.float64))
                    want = box * torch.tensor([96, 120] * 2)
                    bright = (b.image[i, 0] > meta["level"] / 2).nonzero()
                    ys, xs = bright[:, 0], bright[:, 1]
                    got = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).double()
                    assert (got - want).abs().max() <= TOLERANCE
    assert keys == [f"b{i:05d}" for i in range(40)]


def test_read_detection_counts_what_it_leaves_out(odd):
    with read_detection(odd, preprocess=CORNER, batch_size=20) as loader:
        (batch,) = loader
    assert len(batch) == 8
    assert dict(loader.skipped) == {"box-outside": 1, "box-empty": 1, "box-not-finite": 1, "boxes-frame": 1}
    objects = {key: meta["objects"] for key, meta in zip(batch.keys, batch.meta, strict=True)}
    assert len(objects["many"]) == 300, "evaluation has no limit"
    assert len(objects["crowd"]) == 2
    assert objects["none"] == []
