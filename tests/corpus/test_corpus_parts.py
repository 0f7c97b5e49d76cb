"""Parts on disk: whole or not at all, the same bytes every time, no leak between splits."""

import hashlib
import json

import pytest
from corpus.check import check, samples_in, texts_in
from corpus.parts import Job, PartWriter
from corpus.words import HeldOut

from mmvit.errors import UserError


def job(name, split, **facts):
    base = {
        "label": name,
        "tags": [],
        "texts": {"en": [name]},
        "package": "emojibase-data@17.0.0",
        "licence": "MIT",
    }
    return Job(name, split, name, {**base, **facts}, name)


def draw(work):
    return {"png": b"picture of " + work.rstrip("2").encode()} if work != "blank" else "draws nothing: at all"


JOBS = [
    job("fox", "train"),
    job("owl", "test_concept"),
    job("cat", "val"),
    job("dog", "train"),
    job("blank", "train"),
]


def build(out, jobs=JOBS, recipe="r1", taken=None, name="emoji"):
    return PartWriter(out, name, recipe, per_shard=1).write(jobs, draw, None, taken)


def digests(out):
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.tar")) + sorted(out.rglob("index.json"))
    }


def test_samples_stand_in_their_split_with_all_members(tmp_path):
    facts = build(tmp_path)
    assert facts["samples"] == {"train": 2, "val": 1, "test_concept": 1}
    assert facts["skipped"] == {"draws nothing": 1}
    [(key, members)] = list(samples_in(tmp_path / "val/emoji"))
    assert (key, members["png"], members["txt"]) == ("cat", b"picture of cat", b"cat")
    assert json.loads(members["json"])["part"] == "emoji"


def test_equal_jobs_in_any_order_give_equal_bytes(tmp_path):
    build(tmp_path / "a")
    build(tmp_path / "b", JOBS[::-1])
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_whole_part_is_recognised_until_recipe_or_files_change(tmp_path):
    assert PartWriter(tmp_path, "emoji", "r1").whole() is None
    build(tmp_path)
    assert PartWriter(tmp_path, "emoji", "r1").whole() is not None
    assert PartWriter(tmp_path, "emoji", "r2").whole() is None
    (tmp_path / "val/emoji/index.json").unlink()
    assert PartWriter(tmp_path, "emoji", "r1").whole() is None


def test_a_build_that_dies_leaves_no_stamp_and_the_next_one_is_whole(tmp_path):
    build(tmp_path, recipe="old")

    def dies(work):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PartWriter(tmp_path, "emoji", "new").write(JOBS, dies, None)
    assert PartWriter(tmp_path, "emoji", "new").whole() is None
    build(tmp_path, recipe="new")
    build(tmp_path / "fresh", recipe="new")
    assert digests(tmp_path / "fresh") == {k: v for k, v in digests(tmp_path).items() if "fresh" not in k}


def test_of_equal_bytes_in_two_splits_the_one_nearer_to_training_goes(tmp_path):
    facts = build(tmp_path, [job("fox", "test_style"), job("fox2", "train"), job("cat", "train")])
    assert facts["samples"] == {"train": 1, "test_style": 1}
    assert facts["skipped"] == {"same bytes in another split": 1}


def test_equal_bytes_of_an_earlier_part_are_dropped_too(tmp_path):
    first = build(tmp_path, [job("fox", "train")])
    second = build(tmp_path, [job("fox2", "val"), job("cat2", "val")], taken=first["hashes"], name="scratch")
    assert second["samples"] == {"val": 1}
    check(tmp_path, HeldOut([]))


def test_the_check_finds_a_training_text_that_mentions_a_held_out_word(tmp_path):
    build(tmp_path, [job("fox", "train", tags=["den", "like two OWLS"]), job("owl", "test_concept")])
    with pytest.raises(UserError, match="train/emoji/fox mentions the held-out word 'owl'"):
        check(tmp_path, HeldOut(["owl"]))


def test_the_check_finds_the_same_picture_in_two_splits(tmp_path):
    build(tmp_path, [job("fox", "train")])
    build(tmp_path, [job("fox2", "val")], name="scratch")
    with pytest.raises(UserError, match="two splits"):
        check(tmp_path, HeldOut([]))


def test_the_check_reads_all_english_texts_and_no_others():
    facts = {"label": "a", "texts": {"en": ["b"], "fr": ["c"]}, "tags": ["d"], "objects": [{"label": "e"}]}
    assert sorted(texts_in({**facts, "split": {"word": "f"}, "package": "g"})) == ["a", "b", "d", "e"]


def test_the_check_counts_what_it_read(tmp_path):
    build(tmp_path)
    found = check(tmp_path, HeldOut(["owl"]))
    assert found.samples[("emoji", "train")] == 2
    assert found.licences == {"MIT": 4}
    assert found.packages == {"emojibase-data@17.0.0": "MIT"}
