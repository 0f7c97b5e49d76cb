"""Shard patterns -> files -> `ShardIndex`: how many samples there are, and the raw bytes of any one of them.

`index.json` in the shards' folder says how many samples each shard holds; a table of offsets per shard,
loaded when first needed, says where they lie. Memory does not grow with the number of samples.
"""

from __future__ import annotations

import glob
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from mmvit.data.folder import Shard, open_folder, rebuild
from mmvit.data.offsets import Offsets, load_offsets
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError, need

log = logging.getLogger(__name__)
T = TypeVar("T")


def is_remote(url: str) -> bool:
    """Whether a pattern names something that can only be read from front to back."""
    return url.startswith(("pipe:", "http://", "https://")) or "://" in url.split("{")[0]


def expand(urls: str) -> list[str]:
    """The shards that a pattern names: "a-{000000..000009}.tar", "a-*.tar", or a folder (every .tar in it).

    Several sources joined by "::" are split by the caller; patterns joined by a space are not supported.

    Raises:
        UserError: nothing matches; the message says what to check.
    """
    try:
        patterns = list(need("braceexpand").braceexpand(urls))
    except Exception as error:  # the library's own error classes are not exported everywhere
        raise UserError(f"the shard pattern {urls!r} has unbalanced braces ({error})") from None
    found: list[str] = []
    for pattern in patterns:
        if is_remote(pattern):
            found.append(pattern)
        elif os.path.isdir(pattern):
            found += sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")))
        elif any(c in pattern for c in "*?["):
            found += sorted(glob.glob(pattern))
        elif os.path.exists(pattern):
            found.append(pattern)
        else:
            raise UserError(f"no such shard: {pattern} (from {urls!r}; quote braces against the shell)")
    if not found:
        raise UserError(f"no shard matches {urls!r}: check the path; a folder must hold .tar files")
    return found


class ShardIndex:
    """Samples 0..samples-1 of a list of local shards, readable in any order.

    Attributes:
        shards: the tars, in the order of the pattern.
        samples: how many samples they hold.
        fields: member extensions that occur ("png", "txt", "json", "npy" …).
        metas: what the writers said about the folders' shards, e.g. fingerprints of cached embeddings.
        first: (len(shards)+1,) int64; shard s holds samples first[s]..first[s+1]-1.
        patience: seconds that storage may be away before reading gives up.
    """

    patience: float = 60.0

    def __init__(
        self, shards: list[Shard], fields: set[str], metas: list[dict[str, Any]], tables: dict[str, Offsets]
    ):
        self.shards = shards
        self.fields = fields
        self.metas = metas
        self.first = np.concatenate([[0], np.cumsum([s.samples for s in shards], dtype=np.int64)])
        self.samples = int(self.first[-1])
        self._pinned = tables
        self._tables: OrderedDict[int, Offsets] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._held = 0

    @classmethod
    def open(cls, urls: str) -> ShardIndex:
        """The index of the shards that `urls` names; a folder without index.json is scanned and gets one.

        Raises:
            UserError: no shard, a shard that is no tar, or an index that does not fit its shards.
        """
        paths = expand(urls)
        for path in paths:
            if is_remote(path):
                raise UserError(f"{path} cannot be read in any order: use read='stream' for it")
        listed: dict[str, Shard] = {}
        fields: set[str] = set()
        metas: list[dict[str, Any]] = []
        tables: dict[str, Offsets] = {}
        for folder in dict.fromkeys(os.path.dirname(p) for p in paths):
            wanted = [p for p in paths if os.path.dirname(p) == folder]
            found, names, meta = open_folder(folder, wanted, tables, urls)
            listed.update(found)
            fields |= names
            metas.append(meta)
        index = cls([listed[path] for path in paths], fields, metas, tables)
        if not index.samples:
            raise UserError(f"the shards of {urls!r} hold no samples")
        return index

    def read(self, i: int, want: Callable[[str], bool] | None = None) -> dict[str, bytes]:
        """The members of sample i by extension, and its key under "__key__" (UTF-8).

        Args:
            i: 0..samples-1.
            want: says of an extension whether its content is needed; None = all.

        Raises:
            BadSample: the tar ends inside the sample.
            UserError: the index does not fit the tar, or the shard stays unreadable.
        """
        if not 0 <= i < self.samples:
            raise IndexError(f"sample {i} of {self.samples}")
        s = int(np.searchsorted(self.first, i, side="right")) - 1
        table = self._table(s)
        row = i - int(self.first[s])
        key = table.key(row)
        raw = {"__key__": key.encode()}
        for extension, start, size in table.members(row):
            if want is not None and not want(extension):
                continue
            data = self._bytes(s, start - 512, min(size + 512, table.total_bytes))
            name = f"{key}.{extension}" if extension else key
            if not data.startswith(name.encode("utf-8", "replace") + b"\0") and not _names(data[:512], name):
                raise UserError(
                    f"the index of {self.shards[s].path} does not fit the tar, {name!r} is not "
                    f"at byte {start - 512}: {rebuild(self.shards[s].path)}"
                )
            if len(data) < size + 512:
                missing = size + 512 - len(data)
                raise BadSample("member-truncated", f"{name} ends {missing} bytes early")
            raw[extension] = data[512:]
        return raw

    def key(self, i: int) -> str:
        """Key of sample i."""
        s = int(np.searchsorted(self.first, i, side="right")) - 1
        return self._table(s).key(i - int(self.first[s]))

    def shard_of(self, i: int) -> str:
        """Path of the shard that holds sample i."""
        return self.shards[int(np.searchsorted(self.first, i, side="right")) - 1].path

    def close(self) -> None:
        """Nothing; closes the files. Reading again opens them again."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _table(self, s: int) -> Offsets:
        """Offsets of shard s; the least recently used are dropped above a million samples."""
        if s in self._tables:
            self._tables.move_to_end(s)
            return self._tables[s]
        shard = self.shards[s]
        table = self._pinned.get(shard.path)
        if table is None:
            table = self._patiently(s, lambda: _offsets(shard.path))
        if len(table) != shard.samples:  # which of the two lies? The tar knows
            table = load_offsets(shard.path, anew=True)
        if len(table) != shard.samples:
            raise UserError(
                f"index.json says {shard.path} holds {shard.samples} samples, the tar holds {len(table)}: "
                + rebuild(shard.path)
            )
        self._tables[s] = table
        self._held += len(table)
        while self._held > 1_000_000 and len(self._tables) > 1:
            self._held -= len(self._tables.popitem(last=False)[1])
        return table

    def _bytes(self, s: int, start: int, size: int) -> bytes:
        """`size` bytes of shard s from byte `start`."""
        return self._patiently(s, lambda: os.pread(self._file(s), size, start))

    def _patiently(self, s: int, read: Callable[[], T]) -> T:
        """What `read` returns; storage that fails is tried again for a while."""
        wait, deadline = 0.5, time.monotonic() + self.patience
        while True:
            try:
                return read()
            except OSError as error:
                if s in self._files:
                    os.close(self._files.pop(s))
                path = self.shards[s].path
                if time.monotonic() + wait > deadline:
                    raise UserError(f"cannot read the shard {path} any more: {error.strerror}") from None
                log.warning("cannot read %s (%s): trying again in %.1f s", path, error.strerror, wait)
                time.sleep(wait)
                wait = min(2 * wait, 10.0)

    def _file(self, s: int) -> int:
        """An open file descriptor of shard s; at most 128 stay open."""
        if s in self._files:
            self._files.move_to_end(s)
            return self._files[s]
        descriptor = os.open(self.shards[s].path, os.O_RDONLY)
        self._files[s] = descriptor
        if len(self._files) > 128:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_tables": OrderedDict(), "_held": 0}


def _offsets(path: str) -> Offsets:
    """As `load_offsets`, but storage that is away is the system's own error, which is worth waiting for."""
    try:
        return load_offsets(path)
    except UserError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _names(header: bytes, name: str) -> bool:
    """Whether 512 bytes are the tar header of member `name` (a name the header cuts is trusted)."""
    if len(header) < 512:
        return False
    stored = header[:100].rstrip(b"\0")
    if len(stored) >= 95 or not name.isascii():
        return header[257:262] == b"ustar"
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    full = (prefix + b"/" + stored if prefix else stored).decode("utf-8", "backslashreplace")
    return full.lower().rstrip(".") == name.lower()
