"""mmvit-embed: pictures of shards or of a folder -> embeddings on disk, resumable part by part.

    mmvit-embed --model runs/lit/model --data 'photos-{000000..000009}.tar' --out photos.emb
    mmvit-embed --model runs/lit/model --data ~/Pictures --out pictures.emb

DIR/embeddings/part-00000.npy holds (n,E) float16 rows of length one, DIR/keys/part-00000.json their n keys,
DIR/index.json lists the parts and says whose they are. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmvit.api import Embedder, load
from mmvit.cli.pair import find_device, progress
from mmvit.data.decode import PICTURES
from mmvit.data.pixels import BadSample
from mmvit.data.shards import ShardIndex
from mmvit.errors import UserError, one_line
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved model that embeds pictures.
        data: shards (a folder of .tar files or a quoted pattern), or a folder of pictures, searched in depth.
        out: folder for the embeddings.
        batch_size: pictures at once.
        part_size: rows in one file; what an interruption can lose.
        device: auto, cpu, cuda, cuda:1, ….
    """

    model: str
    data: str
    out: str
    batch_size: int = 64
    part_size: int = 50_000
    device: str = "auto"


@dataclass
class Pictures:
    """What is to be embedded: `count` pictures, `read(i)` -> (key, content or path)."""

    count: int
    read: Callable[[int], tuple[str, Any]]


def pictures_of(data: str) -> Pictures:
    """The pictures behind --data.

    Raises:
        UserError: neither shards nor a folder with pictures.
    """
    folder = Path(data)
    if folder.is_dir() and not any(folder.glob("*.tar")):
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower().lstrip(".") in PICTURES)
        if not files:
            raise UserError(f"{data} holds neither .tar shards nor pictures ({', '.join(PICTURES)})")
        return Pictures(len(files), lambda i: (str(files[i].relative_to(folder)), files[i]))
    index = ShardIndex.open(data)

    def of_shard(i: int) -> tuple[str, Any]:
        try:
            raw = index.read(i, lambda extension: extension in PICTURES)
        except BadSample:
            return index.key(i), None
        return raw["__key__"].decode(), next((raw[e] for e in PICTURES if e in raw), None)

    return Pictures(index.samples, of_shard)


def embed(model: Embedder, pictures: Pictures, config: Config, step: Callable[[int], None]) -> dict[str, Any]:
    """The content of index.json after every part is on disk; parts that are there already are kept.

    Raises:
        UserError: `out` holds embeddings of another model or of other data.
    """
    out = Path(config.out)
    for folder in (out / "embeddings", out / "keys"):
        folder.mkdir(parents=True, exist_ok=True)
    record = _start(out, model, pictures, config)
    step(record["read"])
    while record["read"] < pictures.count:
        stop = min(pictures.count, record["read"] + config.part_size)
        keys: list[str] = []
        rows: list[np.ndarray] = []
        for first in range(record["read"], stop, config.batch_size):
            batch = [pictures.read(i) for i in range(first, min(stop, first + config.batch_size))]
            for key, row in _rows(model, batch):
                if row is None:
                    record["skipped"] += 1
                else:
                    keys.append(key)
                    rows.append(row)
            step(len(batch))
        name = f"part-{len(record['parts']):05d}"
        if keys:
            np.save(out / "embeddings" / f"{name}.npy", np.stack(rows).astype(np.float16))
            _write(out / "keys" / f"{name}.json", keys)
            record["parts"].append({"name": name, "rows": len(keys)})
        record |= {"read": stop, "n": record["n"] + len(keys)}
        _write(out / "index.json", record)
    return record


def read_embeddings(folder: str | Path) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """(embeddings (N,E) float32, N keys, index.json) of a folder that `mmvit-embed` wrote.

    Raises:
        UserError: no such folder, or its files do not fit each other.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if record.get("format") != "mmvit-embeddings":
            raise UserError(f"{folder}/index.json is no list of embeddings: make one with mmvit-embed")
        rows, keys = [np.zeros((0, record["dim"]), np.float16)], []
        for part in record["parts"]:
            rows.append(np.load(folder / "embeddings" / f"{part['name']}.npy", allow_pickle=False))
            keys += json.loads((folder / "keys" / f"{part['name']}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no whole embeddings ({error}): make them with mmvit-embed") from None
    embeddings = np.concatenate(rows).astype(np.float32)
    if not len(embeddings) == len(keys) == record["n"]:
        raise UserError(f"{folder}: {len(embeddings)} rows, {len(keys)} keys and n = {record['n']} disagree")
    return embeddings, keys, record


def open_model(folder: str, device: str) -> Embedder:
    """The model, as `mmvit.load`, on the device that --device names.

    Raises:
        UserError: no such model or device.
    """
    try:
        return load(folder, device=find_device(device))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Embeds --data with --model into --out."""
    config = parse(Config, argv=argv, description=__doc__ or "")
    pictures = pictures_of(config.data)
    model = open_model(config.model, config.device)
    with progress("embedding", pictures.count) as step:
        record = embed(model, pictures, config, step)
    bad = f", {record['skipped']:,} unreadable pictures left out" if record["skipped"] else ""
    print(f"{record['n']:,} embeddings of {record['dim']} dimensions in {config.out}{bad}")
    print(f'search them: mmvit-search --model {config.model} --index {config.out} --build "a red fox"')


def _start(out: Path, model: Embedder, pictures: Pictures, config: Config) -> dict[str, Any]:
    """A fresh index.json, or the one of an interrupted run over the same pictures with the same model."""
    fresh = {
        "format": "mmvit-embeddings",
        "schema_version": 1,
        "model": config.model,
        "fingerprint": model.fingerprint,
        "data": config.data,
        "pictures": pictures.count,
        "modality": "image",
        "dim": model.embed_dim,
        "n": 0,
        "read": 0,
        "skipped": 0,
        "parts": [],
    }
    if not (out / "index.json").exists():
        return fresh
    old = json.loads((out / "index.json").read_text(encoding="utf-8"))
    for name, what in (("fingerprint", "another model"), ("data", "other data"), ("pictures", "other data")):
        if old.get(name) != fresh[name]:
            raise UserError(f"{out} holds embeddings of {what} ({name} differs): choose another --out")
    return old


def _rows(model: Embedder, batch: list[tuple[str, Any]]) -> list[tuple[str, np.ndarray | None]]:
    """(key, (E,) float32) of every picture, None in place of one that cannot be read."""
    good = [(key, content) for key, content in batch if content is not None]
    rows: list[tuple[str, np.ndarray | None]] = [(key, None) for key, content in batch if content is None]
    try:
        if good:
            embedded = model.encode(image=[content for _, content in good]).numpy()
            rows += [(key, row) for (key, _), row in zip(good, embedded, strict=True)]
        return rows
    except (ValueError, OSError):
        if len(batch) == 1:
            return [(batch[0][0], None)]
        return [pair for one in batch for pair in _rows(model, [one])]


def _write(path: Path, content: Any) -> None:
    half = path.with_suffix(".tmp")
    half.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(half, path)
