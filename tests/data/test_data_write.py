import gc
import hashlib
import io
import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from mmvit.data.shards import ShardIndex
from mmvit.data.validate import validate
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_what_is_read_is_what_was_written(tmp_path):
    array = np.eye(2, dtype=np.float16)
    members = {"jpg": b"\xff\xd8", "txt": "caf\u00e9", "json": {"a": [1, "\u00e9"]}, "npy": array,
               "fr.wav": b"RIFF", "mask.png": None}  # fmt: skip
    with ShardWriter(tmp_path / "a") as writer:
        writer.write("k-1", members)
    raw = ShardIndex.open(str(tmp_path)).read(0)
    assert raw["jpg"] == b"\xff\xd8"
    assert raw["txt"].decode() == "caf\u00e9"
    assert json.loads(raw["json"]) == {"a": [1, "\u00e9"]}
    assert np.array_equal(np.load(io.BytesIO(raw["npy"])), array)
    assert raw["fr.wav"] == b"RIFF"
    assert "mask.png" not in raw


def test_equal_samples_give_equal_bytes(tmp_path, write_shards):
    for name in ("one", "two"):
        write_shards(tmp_path / name / "train", 20)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "train-000000.tar") as tar:
        first = tar.next()
        assert (first.mtime, first.uid, first.gid, first.uname) == (0, 0, 0, "mmvit")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_our_shards(shards):
    urls = [s.path for s in ShardIndex.open(shards).shards]
    keys = [s["__key__"] for s in webdataset.WebDataset(urls, shardshuffle=False)]
    gc.collect()  # webdataset leaves its files to the collector
    assert keys == [f"s{i:05d}" for i in range(60)]


@pytest.mark.parametrize("key", ["a.b", "a/b", "..", "", "x" * 129, "a\nb", "__a", "a\\b"])
def test_keys_that_readers_misread_are_refused(tmp_path, key):
    with ShardWriter(tmp_path / "a") as writer:
        writer.write("ok", {"txt": "1"})
        with pytest.raises(UserError, match="cannot be a key"):
            writer.write(key, {"txt": "2"})
    assert ShardIndex.open(str(tmp_path)).samples == 1


def test_a_key_of_128_characters_survives(tmp_path):
    with ShardWriter(tmp_path / "a") as writer:
        writer.write("\u00e9" * 128, {"txt": "1"})
    assert ShardIndex.open(str(tmp_path)).key(0) == "\u00e9" * 128


def test_other_mistakes_are_named(tmp_path):
    with ShardWriter(tmp_path / "a") as writer:
        writer.write("k", {"txt": "1"})
        for members, message in [({"txt": "2"}, "before"), ({}, "no members")]:
            with pytest.raises(UserError, match=message):
                writer.write("k" if members else "m", members)
        with pytest.raises(UserError, match="lower-case"):
            writer.write("n", {"TXT": "2"})
        with pytest.raises(UserError, match="int cannot be written"):
            writer.write("o", {"txt": 3})
    with pytest.raises(UserError, match="exists"):
        ShardWriter(tmp_path / "a")
    with pytest.raises(UserError, match="without dots"):
        ShardWriter(tmp_path / "a.b")


def test_overwriting_drops_stale_shards_and_keeps_others(tmp_path, write_shards):
    write_shards(tmp_path / "a", 20)
    write_shards(tmp_path / "b", 5, prefix="t")
    assert ShardIndex.open(str(tmp_path)).samples == 25
    with ShardWriter(tmp_path / "a-%06d.tar", overwrite=True) as writer:
        writer.write("new", {"txt": "1"})
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == ["a-000000.tar", "b-000000.tar"]
    index = ShardIndex.open(str(tmp_path))
    assert [index.key(i) for i in range(index.samples)] == ["new", *[f"t{i:05d}" for i in range(5)]]


def test_a_failure_leaves_nothing_half_written(tmp_path):
    def fail():
        with ShardWriter(tmp_path / "a", 2) as writer:
            for i in range(3):
                writer.write(str(i), {"txt": "1"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-000000.tar", "a-000000.tar.idx"]


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    writer = ShardWriter(tmp_path / "a")
    writer.write("k", {"txt": "1"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmvit.data.write.os.fsync", full)
    with pytest.raises(UserError, match=r"a-000000\.tar: No space left"):
        writer.finish()
    assert not (tmp_path / "a-000000.tar").exists()
    assert not (tmp_path / "index.json").exists()


def test_several_writers_share_one_index(tmp_path, write_shards):
    threads = [
        threading.Thread(target=write_shards, args=(tmp_path / f"p{i}", 8, 4, f"p{i}x")) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((tmp_path / "index.json").read_text())["shards"]) == 8


def test_notes_of_the_writer_reach_the_reader(tmp_path, write_shards):
    write_shards(tmp_path / "a", 3, fingerprint="abc")
    assert ShardIndex.open(str(tmp_path)).metas == [{"fingerprint": "abc"}]


def test_validate_passes_good_shards(shards):
    report = validate(shards)
    assert report.ok
    assert (report.shards, report.samples) == (9, 60)
    assert report.fields == {"png": 60, "txt": 60, "json": 60, "npy": 60}
    assert report.sides == (12, 12)
    text = "\n".join(report.lines())
    assert "no problem found" in text
    assert "ranks x workers = 9" in text


def test_validate_finds_every_kind_of_damage(tmp_path, raw_tar, image_bytes, picture):
    png = image_bytes(picture(8, 8))
    raw_tar("a.tar", [
        ("good.png", png), ("good.txt", b"fine"), ("empty.png", b""), ("empty.txt", b"x"),
        ("broken.png", png[:60]), ("notext.txt", b" "), ("latin.txt", b"caf\xe9"), ("bad.json", b"[1"),
        ("dots.v2.png", png), ("/abs.png", png), ("good.png", png), ("emb.npy", b"nope"),
    ])  # fmt: skip
    Path(raw_tar("cut.tar", [("y.txt", b"1" * 600)])).write_bytes((tmp_path / "cut.tar").read_bytes()[:1000])
    (tmp_path / "none.tar").write_bytes(b"")
    listed = {"version": 1, "fields": ["png"], "shards": [{"name": "a.tar", "samples": 99, "bytes": 5}]}
    (tmp_path / "index.json").write_text(json.dumps(listed))
    report = validate(str(tmp_path))
    assert set(report.problems) == {
        "member-empty", "image-truncated", "text-empty", "text-not-utf8", "json-unreadable", "key-with-dots",
        "key-unsafe", "key-twice", "embedding-unreadable", "shard-damaged", "member-truncated",
        "shard-unreadable", "index-lies",
    }  # fmt: skip
    assert not report.ok
    assert any("index-lies: 1, e.g. a.tar: 99 samples" in line for line in report.lines())
    assert Image.MAX_IMAGE_PIXELS is not None, "limits of the library stay as they were"
