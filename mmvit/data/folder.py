"""`index.json`: what a folder of shards holds, written by the shard writer or by the first reader.

It holds version, samples, bytes, fields (member extensions that occur), meta (the writer's notes) and, for
each shard, its name, samples and bytes: nobody needs to open a shard to know how much there is.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvit.data.offsets import Offsets, load_offsets, write_atomic
from mmvit.errors import UserError

log = logging.getLogger(__name__)
INDEX = "index.json"
VERSION = 1


@dataclass(slots=True, frozen=True)
class Shard:
    """One tar: where it is, how many samples and bytes it holds."""

    path: str
    samples: int
    bytes: int


def open_folder(
    folder: str, paths: list[str], tables: dict[str, Offsets], pattern: str = ""
) -> tuple[dict[str, Shard], set[str], dict[str, Any]]:
    """Of one folder: path -> shard, the extensions that occur, and the writer's notes.

    A shard that index.json does not list is scanned; the index and its table are written where they can be.

    Args:
        folder: where the shards lie.
        paths: the shards that are asked for.
        tables: gets the offsets of shards whose table cannot be kept beside them.
        pattern: what `paths` came from: a folder or a glob means all shards that index.json lists.

    Raises:
        UserError: a shard is no tar, its size is not the one that index.json gives, or one that index.json
            lists and `pattern` names is not there.
    """
    content = read_index(folder) or {"shards": [], "fields": [], "meta": {}}
    listed = {}
    for entry in content["shards"]:
        path = os.path.join(folder, entry["name"])
        listed[path] = Shard(path, entry["samples"], entry["bytes"])
    gone = sorted(path for path in listed if path not in paths and _meant(path, pattern))
    if gone := [path for path in gone if not os.path.exists(path)]:
        raise UserError(
            f"index.json lists {gone[0]}, which is not there ({len(gone)} of {len(listed)} shards are "
            f"missing): copy it again, or {rebuild(gone[0])}"
        )
    fields: set[str] = set(content["fields"])
    scanned = [path for path in paths if path not in listed]
    for path in scanned:
        offsets = load_offsets(path)
        if not os.path.exists(path + ".idx"):
            tables[path] = offsets  # a folder that cannot be written: keep what was read
        fields |= set(offsets.extensions)
        listed[path] = Shard(path, len(offsets), offsets.total_bytes)
    for path in set(paths) - set(scanned):
        if (size := _size(path)) != listed[path].bytes:
            raise UserError(
                f"index.json says {path} has {listed[path].bytes} bytes, it has {size}: copy it again, or "
                + rebuild(path)
            )
    if scanned:
        try:
            there = [s for s in listed.values() if os.path.exists(s.path)]
            write_index(folder, there, fields, content.get("meta", {}))
        except OSError as error:
            log.info("cannot write %s (%s)", os.path.join(folder, INDEX), error.strerror)
    return {path: listed[path] for path in paths}, fields, content.get("meta", {})


def _meant(path: str, pattern: str) -> bool:
    """Whether a shard that is not there would belong to `pattern` (braces name their shards themselves)."""
    if os.path.isdir(pattern):
        return os.path.normpath(os.path.dirname(path)) == os.path.normpath(pattern) and path.endswith(".tar")
    return fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/")


def read_index(folder: str) -> dict[str, Any] | None:
    """Content of a folder's index.json, None where there is none.

    Raises:
        UserError: it is damaged, or of a version this mmvit does not know.
    """
    path = os.path.join(folder, INDEX)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise UserError(f"{path} has version {content['version']}, not {VERSION}: update mmvit")
        for shard in content["shards"]:
            if not (isinstance(shard["name"], str) and _count(shard["samples"]) and _count(shard["bytes"])):
                raise ValueError(f"odd entry {shard}")
        if not all(isinstance(name, str) for name in content["fields"]):
            raise ValueError("fields must be names")
        if not isinstance(content.get("meta", {}), dict):
            raise ValueError("meta must be an object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = str(error)[:120] if isinstance(error, ValueError) else "it is not what mmvit writes"
        what = getattr(error, "strerror", None) or what
        raise UserError(f"{path} is damaged ({what}); {rebuild(path)}") from None
    return content


def write_index(folder: str, shards: list[Shard], fields: set[str], meta: dict[str, Any]) -> None:
    """Nothing; writes index.json for the shards of one folder, at once or not at all."""
    content = {
        "version": VERSION,
        "samples": sum(s.samples for s in shards),
        "bytes": sum(s.bytes for s in shards),
        "fields": sorted(fields),
        "meta": meta,
        "shards": [
            {"name": os.path.basename(s.path), "samples": s.samples, "bytes": s.bytes}
            for s in sorted(shards, key=lambda s: s.path)
        ],
    }
    write_atomic(os.path.join(folder, INDEX), (json.dumps(content, indent=1) + "\n").encode())


def rebuild(path: str) -> str:
    """The remedy that errors about an index name."""
    return f"rebuild the index with scripts/make_shards.py --index {os.path.dirname(path) or '.'}"


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror}") from None
