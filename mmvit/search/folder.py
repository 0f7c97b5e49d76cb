"""An index as a folder: index.faiss (FAISS's own format), keys.json, index.json; written whole or not at all.

No pickle. index.json names the metric, the factory string, the search parameters and how they were tuned, the
FAISS version, the fingerprint of the model whose embeddings lie inside, and the SHA-256 of the other files.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mmvit.errors import need

FORMAT, SCHEMA = "mmvit-index", 1


def write(path: str | Path, index: Any, keys: list[Any], facts: dict[str, Any]) -> None:
    """Publishes the folder `path`: a temporary sibling is filled, flushed to disk, then renamed into place.

    Raises:
        FileExistsError: `path` exists and is not an index folder (nothing else is ever overwritten).
    """
    path = Path(path)
    if path.exists() and not (path / "index.json").is_file() and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an index folder: choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        need("faiss").write_index(index, str(staged / "index.faiss"))
        (staged / "keys.json").write_text(json.dumps(keys, ensure_ascii=False), encoding="utf-8")
        record = {
            "format": FORMAT,
            "schema_version": SCHEMA,
            "metric": "cosine",
            **facts,
            "faiss_version": need("faiss").__version__,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "sha256": {name: digest(staged / name) for name in ("index.faiss", "keys.json")},
        }
        (staged / "index.json").write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        for file in staged.iterdir():
            _flush(file)
        _swap(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def read(path: str | Path) -> tuple[Any, list[Any], dict[str, Any]]:
    """(FAISS index, keys, index.json) of a folder that `write` made.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: not an index folder, a newer format, a damaged file, or counts that disagree.
    """
    path = Path(path)
    for name in ("index.json", "index.faiss", "keys.json"):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"no search index in {path}: {name} is missing (SearchIndex.save writes such a folder)"
            )
    try:
        facts = json.loads((path / "index.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / 'index.json'} is not valid JSON: {error}") from error
    if facts.get("format") != FORMAT or facts.get("schema_version", 0) > SCHEMA:
        raise ValueError(
            f"{path / 'index.json'}: expected format {FORMAT!r} up to version {SCHEMA}, "
            f"got {facts.get('format')!r} version {facts.get('schema_version')}"
        )
    for name, expected in facts["sha256"].items():
        if digest(path / name) != expected:
            raise ValueError(
                f"{path / name} is damaged: its checksum differs from index.json; build the index again"
            )
    index = need("faiss").read_index(str(path / "index.faiss"))
    keys = json.loads((path / "keys.json").read_text(encoding="utf-8"))
    if not len(keys) == index.ntotal == facts["n"]:
        raise ValueError(f"{path}: {len(keys)} keys, {index.ntotal} rows and n = {facts['n']} disagree")
    return index, keys, facts


def digest(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _swap(staged: Path, path: Path) -> None:
    """Renames `staged` to `path`; a folder that was there is moved aside first and removed last."""
    staged.chmod(0o755)
    if not path.exists():
        os.replace(staged, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    os.replace(path, old)
    os.replace(staged, path)
    shutil.rmtree(old)


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
