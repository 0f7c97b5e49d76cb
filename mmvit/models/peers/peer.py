"""What we learn about a peer's image model: how to rebuild it offline and how it wants its pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mmvit.models.config import ForeignImageTowerConfig


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer's module with the facts around it.

    Attributes:
        module: the peer's image model; pixels in, the peer's own outputs out.
        config: what rebuilds it; `width` is 0 until it has been measured.
        preprocess: how the peer resizes pictures: "resize" (squash | shortest_crop | pad), "interpolation"
            and "crop_fraction", plain data for an image preprocessing of that size.
    """

    module: nn.Module
    config: ForeignImageTowerConfig
    preprocess: dict[str, Any] = field(default_factory=dict)


def folder_of(source: str) -> Path | None:
    """The local folder that `source` names, or None when it is a model name.

    Raises:
        FileNotFoundError: it looks like a path and there is no such folder.
    """
    if Path(source).is_dir():
        return Path(source)
    if source.startswith((".", "/", "~")) or "\\" in source:
        raise FileNotFoundError(f"no folder '{source}' to read an image model from")
    return None


def read_json(folder: Path, name: str, library: str) -> dict[str, Any]:
    """The content of `folder/name`.

    Raises:
        FileNotFoundError: the file is not there, so the folder is not one that `library` saved.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"'{folder}' has no {name}: expected a folder saved by {library}")
    return json.loads(path.read_text(encoding="utf-8"))
