"""What a checkpoint's folder holds: manifest.json with sizes, checksums and a seal, by which damage shows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

FORMAT = 1


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Nothing; writes `facts`, every file's size and sha256, and a seal; then all of it is on the disk."""
    files = {path.name: _describe(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, **facts, "files": files}
    manifest["seal"] = _seal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote, of a folder in which `damage` found none."""
    return json.loads((folder / "manifest.json").read_text())


def damage(path: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted; None when it is whole."""
    if not path.is_dir():
        return "no such folder"
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files: dict[str, dict[str, Any]] = dict(manifest["files"])
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "manifest.json is missing or unreadable"
    if manifest.get("seal", _seal(manifest)) != _seal(manifest):  # older ones have none
        return "the contents of manifest.json do not match their checksum"
    try:
        return next((found for name, entry in files.items() if (found := _differs(path / name, entry))), None)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _differs(file: Path, entry: dict[str, Any]) -> str | None:
    """Why a file is not the one that the manifest describes; None when it is."""
    if not file.is_file():
        return f"{file.name} is missing"
    if file.stat().st_size != entry["size"]:
        return f"{file.name} has {file.stat().st_size} bytes instead of {entry['size']}"
    if _describe(file)["sha256"] != entry["sha256"]:
        return f"the contents of {file.name} do not match their checksum"
    return None


def _seal(manifest: dict[str, Any]) -> str:
    """sha256 of all that a manifest says, but for the seal itself."""
    said = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def newest_step(out: Path) -> int:
    """Step of the newest checkpoint folder of a run, whole or not; -1 without any."""
    found = steps(Path(out) / "checkpoints")
    return int(found[-1].name.split("-")[1]) if found else -1


def steps(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, oldest first, whole or not."""
    return sorted(p for p in folder.glob("step-*") if p.name[5:].isdigit())


def remove(path: Path) -> None:
    """Nothing; what lies there is gone where that can be, be it a folder or a file."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def sync(path: Path) -> None:
    """Nothing; the file or folder is on the disk afterwards, not only in the system's memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
