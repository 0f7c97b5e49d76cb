"""Lies about shards: index.json and NAME.tar.idx of s-000000.tar (a, b, c) and s-000001.tar (d, e)."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmvit.data.offsets import load_offsets, save_offsets

KEYS = ["a", "b", "c", "d", "e"]


@dataclass(frozen=True)
class Lie:
    """`tell` changes the folder; the error matches `error`, or all is used, as `became` says."""

    fault: str
    tell: Callable[[Path], None]
    error: str = ""
    became: str = ""


def index(**change):
    """Entries of index.json replaced."""

    def tell(folder):
        content = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**content, **change}))

    return tell


def shard(**change):
    """Facts of the first shard replaced."""

    def tell(folder):
        content = json.loads((folder / "index.json").read_text())
        content["shards"][0].update(change)
        (folder / "index.json").write_text(json.dumps(content))

    return tell


def entries(change):
    def tell(folder):
        content = json.loads((folder / "index.json").read_text())
        content["shards"] = change(content["shards"])
        (folder / "index.json").write_text(json.dumps(content))

    return tell


def bytes_of(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def a_folder_called(name):
    def tell(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return tell


def table(**change):
    """Columns of the first shard's table replaced: name -> function of the old column."""

    def tell(folder):
        path = str(folder / "s-000000.tar")
        old = load_offsets(path)
        save_offsets(path, replace(old, **{name: f(getattr(old, name)) for name, f in change.items()}))

    return tell


def swap(folder):
    one, two = (folder / f"s-00000{i}.tar.idx" for i in (0, 1))
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])


def cut_table(folder):
    path = folder / "s-000000.tar.idx"
    path.write_bytes(path.read_bytes()[:-40])


def cut_tar(folder):
    path = folder / "s-000000.tar"
    path.write_bytes(path.read_bytes()[:-2048])


MEAN = "embedding_mean.npy"
DAMAGED, UNFIT, ANEW = "index.json is damaged", "does not fit the tar", "the table is made anew"
FIRST = "s-000000.tar.idx"
LIES = [
    Lie("index.json with a wrong count", shard(samples=4), "holds 4 samples, the tar holds 3"),
    Lie("index.json with a wrong size", shard(bytes=7), "has 7 bytes, it has"),
    Lie("shard cut off after its index was made", cut_tar, "bytes, it has"),
    Lie("index.json lists a shard that is not there", lambda folder: (folder / "s-000001.tar").unlink(),
        r"s-000001\.tar, which is not there \(1 of 2"),
    Lie("index.json leaves a shard out", entries(lambda s: s[:1]), became="the shard is scanned and listed"),
    Lie("index.json lists a shard twice", entries(lambda s: [*s, s[0]]), became="once"),
    Lie("index.json lists a shard outside its folder", entries(lambda s: [*s, {"name": "../x.tar",
         "samples": 1, "bytes": 1}]),
        became="the shards of the folder"),
    Lie("index.json of zero bytes", bytes_of("index.json", b""), DAMAGED),
    Lie("index.json cut off", bytes_of("index.json", b'{"version": 1, "shards": [{"na'), DAMAGED),
    Lie("index.json of random bytes", bytes_of("index.json", bytes(range(256))), DAMAGED),
    Lie("index.json that is a list", bytes_of("index.json", b"[]"), DAMAGED),
    Lie("index.json 100,000 levels deep", bytes_of("index.json", b"[" * 100_000), DAMAGED),
    Lie("index.json that is a folder", a_folder_called("index.json"), DAMAGED),
    Lie("index.json of a later version", index(version=99), "version 99"),
    Lie("index.json without shards", index(shards=None), DAMAGED),
    Lie("index.json with a negative count", shard(samples=-3), DAMAGED),
    Lie("index.json with half a sample", shard(samples=2.5), DAMAGED),
    Lie("index.json with a count in words", shard(samples="three"), DAMAGED),
    Lie("index.json with a count of 10^30", shard(samples=10**30), DAMAGED),
    Lie("index.json with NaN for a size", shard(bytes=float("nan")), DAMAGED),
    Lie("index.json without a shard's name", shard(name=None), DAMAGED),
    Lie("index.json whose fields are a number", index(fields=7), DAMAGED),
    Lie("index.json that names no picture among its fields", index(fields=["txt"]), "has no image"),
    Lie("index.json whose notes are a list", index(meta=[1]), DAMAGED),
    Lie("NAME.tar.idx of zero bytes", bytes_of(FIRST, b""), became=ANEW),
    Lie("NAME.tar.idx of random bytes", bytes_of(FIRST, bytes(range(256)) * 9), became=ANEW),
    Lie("NAME.tar.idx that claims to be 8 exabytes long", bytes_of(FIRST, b"\xff" * 7 + b"\x7f" + b"{}"),
         became=ANEW),
    Lie("NAME.tar.idx cut off", cut_table, became=ANEW),
    Lie("NAME.tar.idx that is a folder", a_folder_called(FIRST), became="the tar is scanned"),
    Lie("NAME.tar.idx of another tar of the same size", swap, became=ANEW),
    Lie("NAME.tar.idx with members one block too far", table(start=lambda v: v + 512), UNFIT),
    Lie("NAME.tar.idx with members exchanged", table(start=lambda v: v[::-1].copy()), UNFIT),
    Lie("NAME.tar.idx with keys exchanged", table(keys=lambda v: v[::-1]), UNFIT),
    Lie("NAME.tar.idx with a key of which the right one is the end", table(
        keys=lambda v: b"x" + v, key_end=lambda v: v + 1), UNFIT),
    Lie("NAME.tar.idx with members before the tar", table(start=lambda v: v - 5000), became=ANEW),
    Lie("NAME.tar.idx with members behind the tar", table(start=lambda v: v + 10**12), became=ANEW),
    Lie("NAME.tar.idx with negative sizes", table(size=lambda v: -v), became=ANEW),
    Lie("NAME.tar.idx with members that do not exist", table(first=lambda v: v * 7), became=ANEW),
    Lie("NAME.tar.idx with extensions that do not exist", table(extension=lambda v: v + 9), became=ANEW),
    Lie("NAME.tar.idx with keys that do not end", table(key_end=lambda v: v + 99), became=ANEW),
    Lie("NAME.tar.idx with half members", table(start=lambda v: v.astype(np.float64)), became=ANEW),
    Lie("NAME.tar.idx without its samples", table(first=lambda v: v[:1] * 0), became=ANEW),
]  # fmt: skip


def cache(**notes):
    return index(meta={"embedding": notes})


def mean(write):
    """A sound note and an odd embedding_mean.npy."""

    def tell(folder):
        cache(fingerprint="f", dim=4)(folder)
        write(folder / MEAN)

    return tell


CACHES = [
    Lie("index.json that calls its embeddings 7", index(meta={"embedding": 7}), "names no tower and width"),
    Lie("index.json without the width of its embeddings", cache(fingerprint="f"), "names no tower and width"),
    Lie("index.json with a width in words", cache(fingerprint="f", dim="four"), "names no tower and width"),
    Lie("mean of the embeddings: random bytes", mean(lambda p: p.write_bytes(bytes(99))),
         "cannot read the mean features"),
    Lie("mean of the embeddings: of zero bytes", mean(lambda p: p.write_bytes(b"")),
         "cannot read the mean features"),
    Lie("mean of the embeddings: another width", mean(lambda p: np.save(p, np.ones(3, np.float32))),
         "expected D = 4"),
    Lie("mean of the embeddings: NaN", mean(lambda p: np.save(p, np.full(4, np.nan, np.float32))),
         "not finite"),
    Lie("mean of the embeddings: whole numbers", mean(lambda p: np.save(p, np.ones(4, int))),
         "expected a float vector"),
    Lie("mean of the embeddings: a .npz", mean(lambda p: (np.savez(p.with_suffix(".npz"), np.ones(4)),
        shutil.move(p.with_suffix(".npz"), p))), "several arrays"),
]  # fmt: skip
