"""Where in a tar shard every member of every sample lies: the table that makes a tar readable in any order.

Members that share the name before the first dot of the file name are one sample, also when others stand
between them. The table lies beside the shard as `NAME.tar.idx`: a safetensors file, some 20 bytes a member.
Letters: S samples, M members.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from mmvit.errors import UserError

log = logging.getLogger(__name__)
VERSION = 1
_NONSENSE = "headers that make no sense"
_HUGE = 1 << 40  # a header may claim any size


@dataclass(slots=True, frozen=True)
class Offsets:
    """The members of one shard, grouped by sample.

    Attributes:
        first: (S+1,) int64; members first[i]..first[i+1]-1 belong to sample i.
        start: (M,) int64 byte position of a member's content in the tar.
        size: (M,) int64 bytes of the content, as the tar's header says.
        extension: (M,) int16 index into `extensions`.
        extensions: what follows the first dot of the file name, lower-cased.
        key_end: (S,) int64 end of each key in `keys`.
        keys: the S keys in UTF-8, one after the other.
        total_bytes: size of the tar that was read.
    """

    first: np.ndarray
    start: np.ndarray
    size: np.ndarray
    extension: np.ndarray
    extensions: tuple[str, ...]
    key_end: np.ndarray
    keys: bytes
    total_bytes: int

    def __len__(self) -> int:
        return len(self.first) - 1

    def key(self, i: int) -> str:
        """Key of sample i: its members' name up to the first dot, folders included."""
        begin = int(self.key_end[i - 1]) if i else 0
        return self.keys[begin : int(self.key_end[i])].decode("utf-8", "backslashreplace")

    def members(self, i: int) -> list[tuple[str, int, int]]:
        """(extension, start, size) of each member of sample i, in the order of the tar."""
        rows = range(int(self.first[i]), int(self.first[i + 1]))
        return [(self.extensions[self.extension[m]], int(self.start[m]), int(self.size[m])) for m in rows]


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a member: split at the first dot of the file name, as webdataset does."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def scan_tar(path: str, damage: list[str] | None = None) -> Offsets:
    """The offsets of a shard, read from the tar's own headers; contents are skipped, nothing is extracted.

    A tar that ends too early keeps the members it still names; reading the cut one is the sample's fault.

    Args:
        path: the shard.
        damage: gets a line for what is wrong with the tar's tail; without it the line is logged.

    Raises:
        UserError: no such file, an empty file, a folder, or not an uncompressed tar.
    """
    total = _size(path)
    left_out: list[str] = []
    table: dict[str, int] = {}
    samples: list[list[tuple[int, int, int]]] = []
    keys: list[bytes] = []
    extensions: dict[str, int] = {}
    taken: list[set[int]] = []
    for member in _headers(path, damage):
        if member.islnk() or member.issym() or member.issparse():
            left_out.append(member.name)  # what they stand for is elsewhere, or not as long as it says
        if not member.isreg() or member.issparse():
            continue
        key, extension = split_name(member.name)
        ext = extensions.setdefault(extension, len(extensions))
        row = table.get(key, -1)
        if row < 0 or ext in taken[row]:  # the same member again: another sample of that name
            row = table[key] = len(samples)
            samples.append([])
            taken.append(set())
            keys.append(key.encode("utf-8", "surrogateescape"))
        samples[row].append((member.offset_data, min(member.size, _HUGE), ext))
        taken[row].add(ext)
    if left_out:
        some = f"{len(left_out)} links or sparse files, first {left_out[0]!r}"
        _report(f"{path} holds {some}: members must be plain files, these are left out", damage)
    flat = np.array([m for sample in samples for m in sample], dtype=np.int64).reshape(-1, 3)
    return Offsets(
        first=np.concatenate([[0], np.cumsum([len(s) for s in samples], dtype=np.int64)]).astype(np.int64),
        start=flat[:, 0].copy(),
        size=flat[:, 1].copy(),
        extension=flat[:, 2].astype(np.int16),
        extensions=tuple(extensions),
        key_end=np.cumsum([len(k) for k in keys], dtype=np.int64),
        keys=b"".join(keys),
        total_bytes=total,
    )


def load_offsets(path: str, keep: bool = True, anew: bool = False) -> Offsets:
    """The offsets of shard `path`, from `path`.idx if that fits, else scanned (and written if `keep`).

    Args:
        path: the shard.
        keep: write what was scanned to `path`.idx, where that can be.
        anew: scan in any case.

    Raises:
        UserError: as `scan_tar`.
    """
    found = None if anew else _read(path + ".idx", _size(path))
    if found is not None:
        return found
    offsets = scan_tar(path)
    if keep:
        try:
            save_offsets(path, offsets)
        except OSError as error:
            log.info("cannot keep %s.idx (%s): the shard is scanned again next time", path, error.strerror)
    return offsets


def save_offsets(path: str, offsets: Offsets) -> None:
    """Nothing; writes `path`.idx at once or not at all."""
    arrays = {
        "first": offsets.first,
        "start": offsets.start,
        "size": offsets.size,
        "extension": offsets.extension,
        "key_end": offsets.key_end,
        "keys": np.frombuffer(offsets.keys, dtype=np.uint8),
    }
    about = {"version": VERSION, "bytes": offsets.total_bytes, "extensions": list(offsets.extensions)}
    write_atomic(path + ".idx", to_safetensors(arrays, metadata={"mmvit": json.dumps(about)}))


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Nothing; `path` holds either its old content or all of `data`, whatever happens in between."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str, total: int) -> Offsets | None:
    """A stored table, or None where there is none, it is damaged, or it describes a tar of another size."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["mmvit"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if about["version"] != VERSION or about["bytes"] != total:
            return None
        keys = arrays.pop("keys").tobytes()
        table = Offsets(extensions=tuple(about["extensions"]), keys=keys, total_bytes=total, **arrays)
        return table if _sound(table) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sound(table: Offsets) -> bool:
    """Whether a stored table is one at all: every number points into its array and into the tar."""
    rows = (table.first, table.start, table.size, table.extension, table.key_end)
    if any(row.ndim != 1 or row.dtype.kind != "i" for row in rows) or not len(table.first):
        return False
    if not all(isinstance(name, str) for name in table.extensions):
        return False
    members = len(table.start)
    bounds = (int(table.first[0]), int(table.first[-1]), table.key_end[-1:].tolist())
    return (
        bounds == (0, members, [len(table.keys)] if len(table) else [])
        and len(table.size) == len(table.extension) == members
        and len(table.key_end) == len(table)
        and bool((np.diff(table.first) > 0).all() and (np.diff(table.key_end) >= 0).all())
        and bool(((table.start >= 512) & (table.start <= table.total_bytes)).all())
        and bool(((table.size >= 0) & (table.size <= _HUGE)).all())
        and bool(((table.extension >= 0) & (table.extension < len(table.extensions))).all())
    )


def _headers(path: str, damage: list[str] | None) -> Iterator[tarfile.TarInfo]:
    """Every member header; a broken tail ends the walk with a warning."""
    with _opened(path) as file:
        found, reached = 0, 0
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closed with the file
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= reached:
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                found, reached = found + 1, tar.offset
                yield member
                tar.members = []  # type: ignore[attr-defined]  # ten thousand headers need not stay in memory
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # the storage, not the tar
                raise UserError(f"cannot read the shard {path}: {error.strerror}") from None
            if not found:
                raise UserError(_not_a_tar(path)) from None
            what = str(error) if isinstance(error, tarfile.TarError | OSError | ValueError) else _NONSENSE
            _report(f"{path} is damaged after member {found} ({what}): its tail is lost", damage)
            return
        file.seek(tar.offset)
        rest = file.read(1 << 16)
        if rest[:1] != b"\0":  # tarfile takes any odd header for the end
            _report(f"{path} has no end mark after member {found}: its tail is lost", damage)
        elif rest.strip(b"\0"):
            _report(f"{path} goes on behind its end mark (tars put together?): its tail is lost", damage)


def _report(line: str, damage: list[str] | None) -> None:
    if damage is None:
        log.warning("%s", line)
    else:
        damage.append(line)


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}") from None


def _size(path: str) -> int:
    try:
        total = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}") from None
    if os.path.isdir(path):
        raise UserError(f"the shard {path} is a folder: give its files, or the folder that holds the shards")
    if total == 0:
        raise UserError(f"the shard {path} is empty (0 bytes): write it again, or take it out of the list")
    return total


def _not_a_tar(path: str) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
    if head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or head[:3] == b"BZh":
        return f"the shard {path} is compressed: unpack it to a plain .tar (members are compressed already)"
    return f"the shard {path} is not a tar file (it starts with {head!r})"
