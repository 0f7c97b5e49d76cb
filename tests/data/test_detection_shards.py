"""COCO and LVIS files -> shards -> the same boxes again; label counts beside the shards; the validator."""

import importlib.util
import json
import sys

import pytest

from mmvit.data.detection import read_detection
from mmvit.data.folder import read_index
from mmvit.data.image import ImagePreprocess
from mmvit.data.labels import count_labels
from mmvit.data.shards import ShardIndex
from mmvit.data.validate import validate
from mmvit.data.write import ShardWriter, rebuild_index

CATEGORIES = [
    {"id": 7, "name": "fire_hydrant", "synonyms": ["fireplug"], "frequency": "c", "def": "x"},
    {"id": 3, "name": "cat", "synonyms": ["cat"], "frequency": "r"},
    {"id": 90, "name": "dog", "frequency": "f"},
]


@pytest.fixture
def make_shards(request):
    """make_shards(*arguments) runs scripts/make_shards.py as a command line would; returns its exit code."""
    path = request.config.rootpath / "scripts" / "make_shards.py"
    spec = importlib.util.spec_from_file_location("make_shards", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_shards"] = module
    spec.loader.exec_module(module)

    def run(*arguments) -> int:
        before, sys.argv = sys.argv, ["make_shards", *map(str, arguments)]
        try:
            module.main()
        except SystemExit as exit_:
            return exit_.code or 0
        finally:
            sys.argv = before
        return 0

    return run


@pytest.fixture
def folder(tmp_path, picture, image_bytes):
    for name in ("a.jpg", "sub/b.png", "c.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(picture(40, 30), "JPEG" if name.endswith("jpg") else "PNG"))
    return tmp_path


def annotation(number, image, category, box, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}


def write(folder, content) -> str:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return str(path)


def read(shards) -> dict[str, dict]:
    preprocess = ImagePreprocess(size=(16, 16))
    with read_detection(str(shards), preprocess=preprocess, batch_size=10) as loader:
        return {key: meta for b in loader for key, meta in zip(b.keys, b.meta, strict=True)}


def test_coco_becomes_shards_and_comes_back_exactly(make_shards, folder, capsys):
    nan = float("nan")
    images = [
        {"id": 11, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 12, "file_name": "sub/b.png", "width": 40, "height": 30},
        {"id": 13, "file_name": "c.jpg", "width": 40, "height": 30},
        {"id": 14, "file_name": "gone.jpg", "width": 40, "height": 30},
        {"id": 11, "file_name": "c.jpg", "width": 40, "height": 30},
        {"id": 15},
    ]
    annotations = [
        annotation(1, 11, 7, [1.25, 2.5, 10.13, 7.77], area=33.5, segmentation=[[1, 2, 3, 4, 5, 6]]),
        annotation(2, 11, 90, [0, 0, 40, 30], iscrowd=1),
        annotation(3, 12, 3, [30.5, 20.25, 9.5, 9.75]),
        annotation(3, 12, 3, [0, 0, 1, 1]),
        annotation(4, 12, 3, [5, 5, 0, 3]),
        annotation(5, 12, 3, [nan, 5, 1, 3]),
        annotation(6, 12, 3, [1, 2, 3]),
        annotation(7, 99, 3, [1, 2, 3, 4]),
        annotation(8, 11, 4, [1, 2, 3, 4]),
    ]
    source = write(folder, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    out = folder / "s" / "val"
    assert make_shards("--source", source, "--images", folder / "images", "--out", out) == 0
    said = capsys.readouterr()
    assert "5 pictures" not in said.out
    assert "4 pictures, 3 boxes, 3 categories" in said.out
    assert "3 samples in 1 shards" in said.out
    for reason in ("image-twice", "image-without-file", "annotation-twice", "box-empty", "box-not-finite",
                   "box-unreadable", "annotation-without-image", "annotation-without-category",
                   "file-unreadable"):  # fmt: skip
        assert f"left out 1: {reason}" in said.err
    found = read(folder / "s")
    assert set(found) == {"a", "sub_b", "c"}
    assert found["a"]["objects"] == [
        {"label": "fire hydrant", "box": [1.25, 2.5, 1.25 + 10.13, 2.5 + 7.77], "id": 1, "category_id": 7,
         "area": 33.5},
        {"label": "dog", "box": [0, 0, 40, 30], "id": 2, "category_id": 90, "crowd": True},
    ]  # fmt: skip
    assert found["sub_b"]["objects"] == [
        {"label": "cat", "box": [30.5, 20.25, 40.0, 30.0], "id": 3, "category_id": 3}
    ]
    assert found["c"]["objects"] == [], "a picture without a box stays"
    assert {meta["image_id"] for meta in found.values()} == {11, 12, 13}
    assert all(meta["exhaustive"] is True for meta in found.values())
    kept = read_index(str(folder / "s"))["meta"]["categories"]
    assert kept[0] == {"id": 7, "name": "fire hydrant", "frequency": "c", "synonyms": ["fireplug"]}
    assert make_shards("--validate", folder / "s") == 0
    assert "boxes: 2, 1 crowds, 3 labels" in capsys.readouterr().out
    again = folder / "t" / "val"
    make_shards("--source", source, "--images", folder / "images", "--out", again, "--no-exhaustive")
    assert all(meta["exhaustive"] is False for meta in read(folder / "t").values())


def test_lvis_becomes_shards_with_its_negatives(make_shards, folder):
    url = "http://images.cocodataset.org/"
    images = [
        {"id": 1, "coco_url": url + "sub/b.png", "width": 40, "height": 30,
         "neg_category_ids": [90, 555], "not_exhaustive_category_ids": [7]},
        {"id": 2, "coco_url": url + "val2017/a.jpg", "width": 40, "height": 30,
         "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]  # fmt: skip
    annotations = [{"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "area": 9}]
    source = write(folder, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    out = folder / "s" / "val"
    assert make_shards("--source", source, "--images", folder / "images", "--out", out) == 0
    found = read(folder / "s")
    assert found["sub_b"]["negatives"] == ["dog"]
    assert found["sub_b"]["not_exhaustive"] == ["fire hydrant"]
    assert "exhaustive" not in found["sub_b"], "LVIS says of every picture what is known"
    assert set(found) == {"sub_b", "val2017_a"}, "also where the folder is the inner one"


def test_equal_annotations_give_equal_shards(make_shards, folder):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "c.jpg"}]
    source = write(folder, {"images": images, "annotations": [], "categories": CATEGORIES})
    for name in ("one", "two"):
        make_shards("--source", source, "--images", folder / "images", "--out", folder / name / "x")
    one, two = (sorted((folder / name).iterdir()) for name in ("one", "two"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no COCO or LVIS file"),
        ({"images": [], "annotations": []}, "no COCO or LVIS file"),
        ({"images": [3], "annotations": [], "categories": []}, "no COCO or LVIS file"),
        ({"images": [], "annotations": [], "categories": [{"id": 1}]}, "has no id or no name"),
        ({"images": [], "annotations": [], "categories": []}, "lists no picture"),
    ],
)
def test_other_json_is_one_line(make_shards, folder, capsys, content, message):
    source = write(folder, content)
    assert make_shards("--source", source, "--images", folder / "images", "--out", folder / "s" / "x") == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert "\n" not in err


def test_where_the_pictures_are_must_be_said(make_shards, folder, capsys):
    source = write(folder, {"images": [], "annotations": [], "categories": []})
    assert make_shards("--source", source, "--out", folder / "s" / "x") == 2
    assert "give --images" in capsys.readouterr().err
    assert make_shards("--source", source, "--images", folder / "no", "--out", folder / "s" / "x") == 2
    assert "is not a folder" in capsys.readouterr().err


def counts(folder) -> dict[str, float]:
    found = count_labels(ShardIndex.open(str(folder)))
    return dict(zip(found.names, found.counts.tolist(), strict=True))


def test_label_counts_lie_beside_the_shards_and_are_a_function_of_them(
    scenes, tmp_path, picture, image_bytes
):
    want = dict.fromkeys(
        ["blue dog", "green cat", "moon", "old key", "red fox", "tea cup", "violin", "volcano"], 5.0
    )
    assert counts(scenes) == want
    with ShardWriter(tmp_path / "x", 2) as writer:
        for i in range(3):
            objects = [{"label": "Fox", "box": [0, 0, 1, 1], "promptable": False}, {"label": "dog"}][: i + 1]
            writer.write(f"k{i}", {"png": image_bytes(picture(4, 4)), "json": {"objects": objects}})
    beside = sorted(tmp_path.glob("*.labels"))
    assert [p.name for p in beside] == ["x-000000.tar.labels", "x-000001.tar.labels"]
    want = {"dog": 2.0, "fox": 3.0}
    assert counts(tmp_path) == want
    whole = [p.read_bytes() for p in beside]
    for damage in (b"", b"[]", b'{"bytes": 1, "labels": {"bird": 9}, "fixed": []}', b'{"labels": 3}'):
        for path in beside:
            path.write_bytes(damage)
        assert counts(tmp_path) == want
        assert [p.read_bytes() for p in beside] == whole, "counted anew and kept"
    rebuild_index(str(tmp_path))
    assert not list(tmp_path.glob("*.labels"))
    assert count_labels(ShardIndex.open(str(tmp_path))).fixed == {"fox"}
    with ShardWriter(tmp_path / "x", 9, overwrite=True) as writer:
        writer.write("k", {"txt": "no boxes"})
    assert not list(tmp_path.glob("*.labels")), "of shards that are no more"


def test_the_validator_names_bad_boxes_and_counts_labels(tmp_path, picture, image_bytes):
    nan, png = float("nan"), image_bytes(picture(40, 30))
    fox = {"label": "red fox", "box": [0, 0, 9, 9]}
    samples = {
        "good": {"objects": [fox, {**fox, "label": "Red_Fox"}, {**fox, "crowd": True}]},
        "bad": {
            "objects": [{**fox, "box": box} for box in ([0, 0, 0, 9], [nan, 0, 1, 1], [50, 0, 60, 9], [1])]
        },
        "turned": {"objects": [fox], "width": 30, "height": 40},
        "other": {"objects": ["fox", "dog"]},
    }
    with ShardWriter(tmp_path / "x") as writer:
        for key, meta in samples.items():
            writer.write(key, {"png": png, "json": meta})
    report = validate(str(tmp_path))
    assert dict(report.problems) == {
        "box-empty": 1, "box-not-finite": 1, "box-outside": 1, "box-unreadable": 1, "boxes-frame": 1,
    }  # fmt: skip
    assert "bad in x-000000.tar" in report.examples["box-outside"][0]
    assert (report.boxes, report.crowds) == (2, 1)
    assert report.labels.counts == {"red fox": 7}
    lines = "\n".join(report.lines())
    assert "boxes: 2, 1 crowds, 1 labels, the most frequent:" in lines
