"""Pictures to pick on the page: a few of a folder or of shards, spread evenly, with names that fit them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmvit.cli.demo.handlers import Sample
from mmvit.cli.demo.uploads import Limits, read_bytes, read_picture
from mmvit.cli.items import items_of
from mmvit.data.decode import PICTURES
from mmvit.data.pixels import BadSample
from mmvit.data.shards import ShardIndex
from mmvit.errors import UserError

# Scenes that `scripts/build_corpus.py` writes: known things drawn otherwise, and things never trained on.
CORPUS = ("data/corpus/test_style/scenes", "data/corpus/test_concept/scenes")


def read_samples(source: str, folder: Path, limits: Limits, count: int = 8) -> list[Sample]:
    """Up to `count` pictures, written to `folder`.

    Args:
        source: a folder of pictures or shards; "none" = nothing, "" = the default corpus's scenes.
        folder: where to write them.
        limits: what exceeds them is left out.
        count: at most so many.

    Raises:
        UserError: `source` was named and holds no picture that can be read.
    """
    if source == "none":
        return []
    sources = [source] if source else [path for path in CORPUS if Path(path).is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    made = [s for name in sources for s in _some(name, folder, limits, count // len(sources))]
    if source and not made:
        raise UserError(f"--samples {source} holds no picture that can be read; --samples none shows none")
    return made


def _some(source: str, folder: Path, limits: Limits, count: int) -> list[Sample]:
    """Pictures of one source; what cannot be read is passed over."""
    home = Path(source)
    shards = not home.is_dir() or any(home.glob("*.tar"))
    if shards:
        index = ShardIndex.open(source)
        total, read = index.samples, lambda i: _of_shard(index, i)
    else:
        pictures = items_of(source, ("image",))
        total, read = pictures.count, lambda i: (read_bytes(pictures.read(i)[0].content, limits), "")
    made = []
    for i in range(0, total, max(1, total // count)):
        try:
            data, names = read(i)
            picture = read_picture(data, limits).pixels
        except (UserError, BadSample):
            continue
        path = folder / f"{home.parent.name}-{home.name}-{i}.png"
        picture.save(path)
        made.append(Sample(path, names))
        if len(made) == count:
            break
    return made


def _of_shard(index: ShardIndex, i: int) -> tuple[bytes, str]:
    """(the picture's bytes, the names of its objects) of sample i."""
    raw: dict[str, Any] = index.read(i, lambda extension: extension in (*PICTURES, "json"))
    data = next((raw[e] for e in PICTURES if e in raw), b"")
    try:
        objects = json.loads(raw.get("json", b"{}")).get("objects", [])
        labels = dict.fromkeys(str(thing["label"]) for thing in objects)
    except (ValueError, KeyError, TypeError, AttributeError):
        labels = {}
    return data, ", ".join(label.replace(",", " ") for label in labels)
