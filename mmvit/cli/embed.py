"""mmvit-embed: pictures, clips and sounds of shards or of a folder -> embeddings on disk, resumable.

    mmvit-embed --model runs/lit/model --data 'photos-{000000..000009}.tar' --out photos.emb
    mmvit-embed --model runs/lit/model --data ~/Pictures --out pictures.emb
    mmvit-embed --model runs/vatt/shared/model --data 'corpus/clips::corpus/sounds::~/Videos' --out media.emb

DIR/embeddings/part-00000.npy holds (n,E) float16 rows of length one, DIR/keys/part-00000.json their n keys,
DIR/places/part-00000.json what each is and where it came from, DIR/index.json lists the parts and says whose
they are. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmvit.api import Embedder, load
from mmvit.cli.items import MEDIA, NAMES, Item, Items, items_of
from mmvit.cli.pair import find_device, progress
from mmvit.errors import UserError, one_line
from mmvit.options import parse

# What an index.json without them means: it was written when there were only pictures.
_OLDER = {"modality": "image", "space": "", "views": 1}


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved model that embeds pictures, clips or sounds.
        data: shards (a folder of .tar files or a quoted pattern), or a folder of files, searched in depth;
            several are separated by "::".
        out: folder for the embeddings.
        modality: image, video or audio; auto = all that the model embeds, told apart by their extensions.
        space: vt or va, of a model with both; "" = its default.
        views: windows of a clip or a sound whose embeddings are averaged.
        batch_size: samples at once.
        part_size: samples in one file; what an interruption can lose.
        device: auto, cpu, cuda, cuda:1, ….
    """

    model: str
    data: str
    out: str
    modality: Literal["auto", "image", "video", "audio"] = "auto"
    space: str = ""
    views: int = 1
    batch_size: int = 64
    part_size: int = 50_000
    device: str = "auto"


def modalities_of(model: Embedder, modality: str) -> tuple[str, ...]:
    """What is looked for with --modality, of the things that have files.

    Raises:
        UserError: the model embeds no such thing.
    """
    able = tuple(name for name in model.modalities if name in MEDIA)
    wanted = able if modality == "auto" else (modality,)
    if not wanted or wanted[0] not in able:
        raise UserError(
            f"--modality {modality}: this model embeds {', '.join(model.modalities)}, "
            f"expected {' or '.join(able) or 'a model that embeds pictures, clips or sounds'}"
        )
    return wanted


def embed(model: Embedder, items: Items, config: Config, step: Callable[[int], None]) -> dict[str, Any]:
    """The content of index.json after every part is on disk; parts that are there already are kept.

    Raises:
        UserError: `out` holds embeddings of another model or of other data.
    """
    out = Path(config.out)
    for folder in ("embeddings", "keys", "places"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    record = _start(out, model, items, config)
    options = {"space": config.space or None, "views": config.views}
    step(record["read"])
    while record["read"] < items.count:
        stop = min(items.count, record["read"] + config.part_size)
        done: list[Item] = []
        rows: list[np.ndarray] = []
        for first in range(record["read"], stop, config.batch_size):
            last = min(stop, first + config.batch_size)
            batch = [item for i in range(first, last) for item in items.read(i)]
            for item, row in _rows(model, batch, options):
                if row is None:
                    record["skipped"] += 1
                else:
                    done.append(item)
                    rows.append(row)
            step(last - first)
        name = f"part-{len(record['parts']):05d}"
        if done:
            np.save(out / "embeddings" / f"{name}.npy", np.stack(rows).astype(np.float16))
            _write(out / "keys" / f"{name}.json", [item.key for item in done])
            places = [[item.modality, item.number, item.extension] for item in done]
            _write(out / "places" / f"{name}.json", places)
            record["parts"].append({"name": name, "rows": len(done)})
        record |= {"read": stop, "n": record["n"] + len(done)}
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


def read_places(folder: str | Path) -> list[tuple[str, int, str]]:
    """(modality, number of its sample, extension) of every row that `read_embeddings` gives.

    Raises:
        UserError: an older version wrote the folder, or its files do not fit each other.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        places = [
            (str(modality), int(number), str(extension))
            for part in record["parts"]
            for modality, number, extension in json.loads(
                (folder / "places" / f"{part['name']}.json").read_text(encoding="utf-8")
            )
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} does not say where its rows come from ({error}): embed again") from None
    if len(places) != record["n"]:
        raise UserError(f"{folder}: {len(places)} places and n = {record['n']} disagree")
    return places


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
    model = open_model(config.model, config.device)
    modalities = modalities_of(model, config.modality)
    check_space(model, modalities, config.space)
    if config.views < 1 or (config.views > 1 and not {"video", "audio"} & set(modalities)):
        raise UserError(f"--views {config.views} must be at least 1, and 1 where only pictures are embedded")
    items = items_of(config.data, modalities)
    with progress("embedding", items.count) as step:
        record = embed(model, items, config, step)
    things = NAMES.get(record["modality"], "things")
    bad = f", {record['skipped']:,} unreadable {things} left out" if record["skipped"] else ""
    print(f"{record['n']:,} embeddings of {record['dim']} dimensions in {config.out}{bad}")
    print(f'search them: mmvit-search --model {config.model} --index {config.out} --build "a red fox"')


def check_space(model: Embedder, modalities: Sequence[str], space: str) -> None:
    """Nothing; raises UserError where one of the modalities is not in the space."""
    for name in modalities:
        if space and space not in model.ways[name].spaces:
            valid = ", ".join(s for s in model.ways[name].spaces if s) or "leave it out"
            raise UserError(f"--space {space}: '{name}' of this model is not there; valid: {valid}")


def _start(out: Path, model: Embedder, items: Items, config: Config) -> dict[str, Any]:
    """A fresh index.json, or the one of an interrupted run over the same things with the same model."""
    fresh = {
        "format": "mmvit-embeddings",
        "schema_version": 1,
        "model": config.model,
        "fingerprint": model.fingerprint,
        "data": config.data,
        "pictures": items.count,
        # Keys tell modalities apart only where there are several.
        "modality": next(iter(items.found)) if len(items.found) == 1 else "auto",
        "space": config.space,
        "views": config.views,
        "dim": model.width(config.space or None),
        "n": 0,
        "read": 0,
        "skipped": 0,
        "parts": [],
    }
    if not (out / "index.json").exists():
        return fresh
    old = _OLDER | json.loads((out / "index.json").read_text(encoding="utf-8"))
    reasons = {"fingerprint": "another model", "data": "other data", "pictures": "other data"}
    for name, what in (reasons | dict.fromkeys(_OLDER, "other options")).items():
        if old.get(name) != fresh[name]:
            raise UserError(f"{out} holds embeddings of {what} ({name} differs): choose another --out")
    return old


def _rows(
    model: Embedder, batch: list[Item], options: dict[str, Any]
) -> list[tuple[Item, np.ndarray | None]]:
    """(item, (E,) float32) of every item in order, None in place of one that cannot be read."""
    rows: dict[int, np.ndarray] = {}
    for modality in dict.fromkeys(item.modality for item in batch):
        good = [i for i, item in enumerate(batch) if item.modality == modality and item.content is not None]
        asked: dict[str, Any] = {modality: [batch[i].content for i in good], **options}
        asked["views"] = options["views"] if modality in ("video", "audio") else 1
        try:
            if good:
                rows |= zip(good, model.encode(**asked).numpy(), strict=True)
        except (ValueError, OSError):
            if len(good) > 1:
                alone = [(i, _rows(model, [batch[i]], options)[0][1]) for i in good]
                rows |= {i: row for i, row in alone if row is not None}
    return [(item, rows.get(i)) for i, item in enumerate(batch)]


def _write(path: Path, content: Any) -> None:
    half = path.with_suffix(".tmp")
    half.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(half, path)
