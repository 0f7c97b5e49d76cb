import gzip
import json
import logging
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import pytest

from mmvit.data.offsets import load_offsets, scan_tar, split_name
from mmvit.data.pixels import BadSample
from mmvit.data.shards import ShardIndex, expand
from mmvit.data.write import rebuild_index
from mmvit.errors import UserError


def test_expand_knows_braces_globs_and_folders(tmp_path):
    for i in range(4):
        (tmp_path / f"a-{i:06d}.tar").touch()
    names = [str(tmp_path / f"a-{i:06d}.tar") for i in range(4)]
    assert expand(f"{tmp_path}/a-{{000000..000003}}.tar") == names
    assert expand(f"{tmp_path}/a-*.tar") == expand(str(tmp_path)) == names
    assert expand("pipe:cat x-{0..1}.tar") == ["pipe:cat x-0.tar", "pipe:cat x-1.tar"]
    with pytest.raises(UserError, match=r"no such shard: .*a-000004\.tar .*quote"):
        expand(f"{tmp_path}/a-{{000003..000004}}.tar")
    with pytest.raises(UserError, match="no shard matches"):
        expand(f"{tmp_path}/b-*.tar")


def test_read_gives_the_bytes_that_were_written(shards):
    index = ShardIndex.open(shards)
    assert index.samples == 60
    assert len(index.shards) == 9
    assert index.fields == {"png", "txt", "json", "npy"}
    for i in (0, 6, 7, 59):
        raw = index.read(i)
        assert raw["__key__"] == f"s{i:05d}".encode()
        assert raw["txt"] == f"s caption {i}".encode()
        assert raw["png"][:4] == b"\x89PNG"
    assert set(index.read(3, lambda name: name == "txt")) == {"__key__", "txt"}
    with pytest.raises(IndexError):
        index.read(60)


def test_index_travels_to_other_processes(shards):
    index = ShardIndex.open(shards)
    index.read(0)
    assert pickle.loads(pickle.dumps(index)).read(59) == index.read(59)


def test_missing_index_is_built_once_and_kept(raw_tar, tmp_path):
    raw_tar("a-000000.tar", [("x.txt", b"1"), ("y.txt", b"2")])
    assert ShardIndex.open(str(tmp_path)).samples == 2
    listed = json.loads((tmp_path / "index.json").read_text())
    assert listed["shards"][0]["samples"] == 2
    assert (tmp_path / "a-000000.tar.idx").exists()
    raw_tar("a-000001.tar", [("z.txt", b"3")])
    assert ShardIndex.open(str(tmp_path)).samples == 3
    assert len(json.loads((tmp_path / "index.json").read_text())["shards"]) == 2


def test_offsets_file_equals_a_scan(shards):
    path = str(Path(shards) / "train-000003.tar")
    stored, scanned = load_offsets(path), scan_tar(path)
    assert stored.key(4) == scanned.key(4) == "s00025"
    assert all(stored.members(i) == scanned.members(i) for i in range(7))


def test_members_out_of_order_are_joined(raw_tar):
    path = raw_tar("o.tar", [("a.txt", b"A"), ("b.txt", b"B"), ("a.png", b"pa"), ("b.png", b"pb")])
    index = ShardIndex.open(path)
    assert index.samples == 2
    assert index.read(0) == {"__key__": b"a", "txt": b"A", "png": b"pa"}
    assert index.read(1) == {"__key__": b"b", "txt": b"B", "png": b"pb"}


def test_the_same_member_again_is_another_sample(raw_tar):
    index = ShardIndex.open(raw_tar("t.tar", [("a.txt", b"1"), ("a.txt", b"2")]))
    assert [index.read(i)["txt"] for i in range(2)] == [b"1", b"2"]


def test_hostile_names_are_only_names(raw_tar, tmp_path):
    path = raw_tar("h.tar", [("../../evil.txt", b"1"), ("/etc/evil.txt", b"2"), ("v1.2.jpg", b"3")])
    before = set(tmp_path.parent.iterdir())
    index = ShardIndex.open(path)
    assert [index.key(i) for i in range(3)] == ["../../evil", "/etc/evil", "v1"]
    assert index.read(2) == {"__key__": b"v1", "2.jpg": b"3"}
    assert set(tmp_path.parent.iterdir()) == before
    assert split_name("a.b/c.mask.PNG") == ("a.b/c", "mask.png")


def test_long_and_foreign_names(raw_tar):
    names = ["k" * 120, "d/" * 40 + "k" * 60, "ключ" * 30, "猫"]
    index = ShardIndex.open(raw_tar("n.tar", [(f"{name}.txt", name.encode()) for name in names]))
    for i, name in enumerate(names):
        assert index.key(i) == name
        assert index.read(i)["txt"] == name.encode()


def test_truncated_tar_keeps_what_is_whole(raw_tar, caplog):
    path = Path(raw_tar("t.tar", [("a.txt", b"A" * 2000), ("b.txt", b"B" * 2000)]))
    path.write_bytes(path.read_bytes()[:4000])
    with caplog.at_level(logging.WARNING):
        index = ShardIndex.open(str(path))
    assert "tail is lost" in caplog.text
    assert index.read(0)["txt"] == b"A" * 2000
    with pytest.raises(BadSample) as bad:
        index.read(1)
    assert bad.value.reason == "member-truncated"


def test_garbage_in_the_middle_is_reported(raw_tar, caplog):
    path = Path(raw_tar("g.tar", [("a.txt", b"A"), ("b.txt", b"B"), ("c.txt", b"C")]))
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"x" * 512
    path.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        assert ShardIndex.open(str(path)).samples == 1
    assert "no end mark" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x89PNG" + b"x" * 3000, "not a tar"),
        (b"short", "not a tar"),
        (gzip.compress(b"x" * 3000), "compressed"),
    ],
    ids=["empty", "png", "short", "gzip"],
)
def test_what_is_no_tar_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "bad.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        ShardIndex.open(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_index_that_lies_is_found(shards, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(shards, folder)
    listed = json.loads((folder / "index.json").read_text())

    def lie(**change):
        other = json.loads(json.dumps(listed))
        other["shards"][2].update(change)
        (folder / "index.json").write_text(json.dumps(other))
        return ShardIndex.open(str(folder))

    with pytest.raises(UserError, match="bytes, it has"):
        lie(bytes=17)
    index = lie(samples=9)
    assert index.samples == 62
    with pytest.raises(UserError, match="holds 9 samples, the tar holds 7"):
        index.read(14)
    for broken in ("{", "[]", '{"version": 1}', '{"version": 99, "shards": [], "fields": []}'):
        (folder / "index.json").write_text(broken)
        with pytest.raises(UserError, match=r"index\.json"):
            ShardIndex.open(str(folder))
    rebuild_index(str(folder))
    assert ShardIndex.open(str(folder)).samples == 60


def test_offsets_of_another_tar_are_found(raw_tar, tmp_path):
    first = raw_tar("a.tar", [("a.txt", b"1" * 600), ("b.txt", b"2")])
    ShardIndex.open(first)
    raw_tar("a.tar", [("a.txt", b"1"), ("b.txt", b"2" * 600)])  # the same number of bytes
    with pytest.raises(UserError, match="does not fit the tar"):
        ShardIndex.open(first).read(1)
    (tmp_path / "a.tar.idx").write_bytes(b"nonsense")
    assert ShardIndex.open(first).read(1)["txt"] == b"2" * 600


def test_a_folder_that_cannot_be_written_is_read_all_the_same(raw_tar, tmp_path, monkeypatch):
    path = raw_tar("r.tar", [("a.txt", b"A")])

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mmvit.data.offsets.os.replace", refuse)
    index = ShardIndex.open(path)
    assert index.read(0)["txt"] == b"A"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.tar"]
    assert pickle.loads(pickle.dumps(index)).read(0)["txt"] == b"A"


def test_a_folder_that_vanishes_and_comes_back_is_waited_for(shards, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(shards, folder)
    index = ShardIndex.open(str(folder))
    away = tmp_path / "away"
    os.rename(folder, away)

    def back():
        time.sleep(0.3)
        os.rename(away, folder)

    thread = threading.Thread(target=back)
    thread.start()
    assert index.read(30)["txt"] == b"s caption 30"
    thread.join()
    os.rename(folder, away)
    index.patience = 0.1
    with pytest.raises(UserError, match="any more"):
        index.read(0)


def test_many_shards_do_not_stay_open(shards):
    index = ShardIndex.open(shards)
    for i in range(60):
        index.read(i)
    assert len(index._files) == 9
    index.close()
    assert not index._files
    assert index.read(0)["txt"] == b"s caption 0"
