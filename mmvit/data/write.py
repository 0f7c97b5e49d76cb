"""Samples -> tar shards with their index: what scripts, caches and tests write, and every reader reads.

A shard appears under its name only when it is whole; equal samples give equal bytes; names that would break a
reader (dots, slashes, over 128 characters) are refused.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from mmvit.data.captions import read_json
from mmvit.data.folder import Shard, read_index, rebuild, write_index
from mmvit.data.labels import BESIDE, LabelCounter
from mmvit.data.offsets import save_offsets, scan_tar
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError, need

_KEY = re.compile(r"[^./\\\x00-\x1f][^./\\\x00-\x1f]*")
_EXTENSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ShardWriter:
    """Writes DIR/NAME-000000.tar, -000001.tar, … and, when finished, the folder's index.json.

    Args:
        pattern: "DIR/NAME", or "DIR/NAME-%06d.tar".
        samples_per_shard: how many samples a shard holds; readers in streams want shards >= ranks x workers.
        meta: plain data kept in index.json, such as the fingerprint of the tower that made cached embeddings.
        overwrite: replace shards of that name; without it they are an error.

    Attributes:
        shards: those that are whole so far.
        samples: how many were written.

    Raises:
        UserError: shards of that name exist, or the folder cannot be written.
    """

    def __init__(
        self,
        pattern: str | os.PathLike[str],
        samples_per_shard: int = 1000,
        *,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ):
        prefix = re.sub(r"(-?%0?\d*d)?(\.tar)?$", "", os.fspath(pattern))
        self.folder, self.name = os.path.split(prefix)
        if not self.name or "." in self.name or samples_per_shard < 1:
            raise UserError(
                f"shards cannot be written as {os.fspath(pattern)!r} with {samples_per_shard} samples each: "
                "expected FOLDER/NAME without dots, and at least 1 sample"
            )
        self.samples_per_shard = samples_per_shard
        self.meta = dict(meta or {})
        self.samples = 0
        self.shards: list[Shard] = []
        self._fields: set[str] = set()
        self._keys: set[str] = set()
        self._labels = LabelCounter()
        self._tar: Any = None
        self._file: Any = None
        if not overwrite and (old := self._existing()):
            raise UserError(f"{old[0]} exists: choose another folder or name, or overwrite on purpose")
        try:
            os.makedirs(self.folder or ".", exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.folder}: {error.strerror}") from None

    def write(self, key: str, members: Mapping[str, Any]) -> None:
        """Nothing; appends one sample.

        Args:
            key: name of the sample, unique in its shard: no dot, slash or control character, at most 128
            characters.
            members: extension -> bytes, str (UTF-8), dict or list (JSON), or array (.npy); None is left out.

        Raises:
            UserError: a key or extension that readers would misread, a value of another type, or a full disk.
        """
        check_key(key)
        if self._tar is not None and len(self._keys) >= self.samples_per_shard:
            self._close_shard()
        if key in self._keys:
            raise UserError(f"the key {key!r} was written before in this shard: keys must be unique")
        content = {
            ext: to_bytes(value, f"{key}.{ext}") for ext, value in members.items() if value is not None
        }
        for extension in content:
            if not _EXTENSION.fullmatch(extension) or extension != extension.lower():
                raise UserError(f"{key!r}: {extension!r} is no member name; use lower-case png, txt, json, …")
        if not content:
            raise UserError(f"the sample {key!r} has no members")
        try:
            if self._tar is None:
                self._open_shard()
            self._tar.write({"__key__": key, **content})
        except OSError as error:
            self.abort()
            raise UserError(f"cannot write {self._path()}: {error.strerror}") from None
        self._keys.add(key)
        self._fields |= set(content)
        if b'"objects"' in content.get("json", b""):
            with suppress(BadSample):  # the reader's business
                self._labels.add(read_json(content["json"]))
        self.samples += 1

    def finish(self) -> list[Shard]:
        """The shards, after closing the last one and listing all of them in index.json."""
        if self._tar is not None:
            self._close_shard()
        ours = {shard.path for shard in self.shards}
        for stale in self._existing():
            if stale not in ours:  # overwritten by fewer shards than there were
                os.unlink(stale)
                Path(stale + ".idx").unlink(missing_ok=True)
                Path(stale + BESIDE).unlink(missing_ok=True)
        try:
            with _locked(self.folder):
                add_to_index(self.folder, self.shards, self._fields, self.meta, self.name)
        except OSError as error:
            raise UserError(
                f"cannot write the index of {self.folder}: {error.strerror}; the shards are whole, "
                f"{rebuild(self._path())} when there is room"
            ) from None
        return self.shards

    def abort(self) -> None:
        """Nothing; drops the shard in progress, keeps those that are whole, writes no index."""
        if self._file is not None:
            with suppress(OSError):
                self._tar.close()
            with suppress(OSError):
                self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
        self._tar = self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()

    def _path(self) -> str:
        return os.path.join(self.folder, f"{self.name}-{len(self.shards):06d}.tar")

    def _existing(self) -> list[str]:
        stem = glob.escape(os.path.join(self.folder, self.name))
        return sorted(glob.glob(stem + "-[0-9][0-9][0-9][0-9][0-9][0-9].tar"))

    def _open_shard(self) -> None:
        self._file = open(self._path() + ".tmp", "wb")  # noqa: SIM115 - lives until the shard is full
        self._tar = need("webdataset").TarWriter(
            self._file, encoder=False, mtime=0, user="mmvit", group="mmvit", format="PAX_FORMAT"
        )

    def _close_shard(self) -> None:
        """Nothing; the shard in progress gets its name, its table of offsets and its place in the list."""
        path = self._path()
        try:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(path + ".tmp", path)
            offsets = scan_tar(path)
            save_offsets(path, offsets)
            Path(path + BESIDE).unlink(missing_ok=True)
            if self._labels.counts:
                self._labels.save(path, offsets.total_bytes)
        except OSError as error:
            self.abort()
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        self._labels = LabelCounter()
        self.shards.append(Shard(path, len(offsets), offsets.total_bytes))
        self._tar = self._file = None
        self._keys.clear()


def check_key(key: str) -> None:
    """Nothing; raises UserError for a key that a reader would cut, misread or follow out of its folder."""
    if not _KEY.fullmatch(key) or len(key) > 128 or key.startswith("__"):
        raise UserError(
            f"{key[:140]!r} cannot be a key: at most 128 characters, no dot, slash or control character, "
            "no '__' at its start"
        )


def safe_key(key: str, taken: Collection[str] = ()) -> str:
    """`key`, or the nearest name that `check_key` accepts and `taken` does not hold."""
    name = key.replace("/", "_")
    if not _KEY.fullmatch(name) or len(name) > 128 or name.startswith("__"):
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        name = re.sub(r"[./\\\x00-\x1f]", "_", key).strip("_")[:100] + f"-{digest}"
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name[:110]}-{number}"
    return free


def to_bytes(value: Any, name: str) -> bytes:
    """What stands in the tar for a value; equal values give equal bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if isinstance(value, np.ndarray):
        sink = io.BytesIO()
        np.save(sink, np.ascontiguousarray(value), allow_pickle=False)
        return sink.getvalue()
    raise UserError(
        f"{name}: a {type(value).__name__} cannot be written; give bytes, text, JSON data or an array"
    )


def add_to_index(folder: str, shards: list[Shard], fields: set[str], meta: dict[str, Any], name: str) -> None:
    """Nothing; index.json lists `shards` beside those of other names that it listed and that still exist."""
    try:
        before = read_index(folder) or {}
    except UserError:
        before = {}  # damaged: what is written now is whole again
    mine = re.compile(re.escape(name) + r"-\d{6}\.tar")
    others = [
        Shard(os.path.join(folder, s["name"]), s["samples"], s["bytes"])
        for s in before.get("shards", [])
        if not mine.fullmatch(s["name"]) and os.path.exists(os.path.join(folder, s["name"]))
    ]
    kept = set(before.get("fields", [])) if others else set()
    write_index(
        folder, others + shards, kept | fields, {**before.get("meta", {}), **meta} if others else meta
    )


def rebuild_index(folder: str) -> list[Shard]:
    """The shards of a folder, after scanning every .tar in it anew and writing its tables and index.json.

    Raises:
        UserError: no .tar there, one that is no tar, or a folder that cannot be written.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*.tar")))
    if not paths:
        raise UserError(f"{folder} holds no .tar files")
    shards, fields = [], set()
    try:
        meta = (read_index(folder) or {}).get("meta", {})
    except UserError:
        meta = {}
    try:
        for path in paths:
            offsets = scan_tar(path)
            save_offsets(path, offsets)
            Path(path + BESIDE).unlink(missing_ok=True)  # its first reader counts anew
            shards.append(Shard(path, len(offsets), offsets.total_bytes))
            fields |= set(offsets.extensions)
        write_index(folder, shards, fields, meta)
    except OSError as error:
        raise UserError(f"cannot write the index of {folder}: {error.strerror}") from None
    return shards


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Only one writer at a time changes a folder's index.json."""
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
