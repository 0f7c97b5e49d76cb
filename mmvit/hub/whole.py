"""Folders that are written whole or not at all: filled beside their place, then put into it in one step."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mmvit.errors import refusal


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write into; it takes the place of `path` when the block ends well.

    Raises:
        OSError: the disk refused; what was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.half-*"):  # of a save that was killed
        shutil.rmtree(stale, ignore_errors=True)
    half = Path(tempfile.mkdtemp(prefix=f".{path.name}.half-", dir=path.parent))
    try:
        yield half
        for private in (half, half / "model.safetensors"):  # both were made for our eyes only
            if private.exists():
                private.chmod(0o755 if private.is_dir() else 0o644)
        _swap(half, path)
    except SafetensorError as error:
        raise OSError(refusal(error)) from None
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _swap(half: Path, path: Path) -> None:
    """Puts `half` in the place of `path`; the old one is moved aside first: a crash loses neither."""
    if not path.exists():
        os.replace(half, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    os.replace(path, old / "model")
    os.replace(half, path)
    shutil.rmtree(old, ignore_errors=True)
