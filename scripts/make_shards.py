"""Builds tar shards from your own pictures, videos, sounds and captions, checks shards, rebuilds their index.

    python scripts/make_shards.py --source photos/ --out shards/train      # pictures + same-stem .txt, .json
    python scripts/make_shards.py --source clips/ --out shards/train       # videos, sounds: the same
    python scripts/make_shards.py --source pairs.csv --out shards/train --image-column file
    python scripts/make_shards.py --source pairs.jsonl --out shards/train
    python scripts/make_shards.py --source instances_val2017.json --images val2017/ --out shards/val   # boxes
    python scripts/make_shards.py --validate "shards/train-{000000..000009}.tar"
    python scripts/make_shards.py --index shards/

Files of one stem are one sample: a picture, else a video, else a sound gives it its name.
In a folder, sub-folders are classes: their name becomes the label, and the caption where there is no .txt.
Rows of a table that name the same picture become one sample with several captions. COCO and LVIS files become
samples with boxes. Equal input, equal bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from shards.coco import read_coco

from mmvit.data.decode import PICTURES
from mmvit.data.media import VIDEOS, Container
from mmvit.data.pixels import BadSample, open_image
from mmvit.data.validate import validate
from mmvit.data.waveform import SOUNDS, open_sound
from mmvit.data.write import ShardWriter, rebuild_index
from mmvit.errors import UserError, nearest, one_line
from mmvit.options import parse

_MAIN = (*PICTURES, *VIDEOS, *SOUNDS)  # what a sample can be of, the first that is there
_BESIDE = ("txt", "json", "npy", *SOUNDS, *VIDEOS, "mask.png")
_SPOKEN = re.compile(
    r"(.+)\.([a-z]{2,3}(?:-[a-z]{2,4})?\.(?:wav|flac|ogg|mp3))"
)  # KEY.fr.wav: a spoken caption


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        source: a folder, a .csv / .tsv, a .jsonl, or a .json of COCO or LVIS.
        images: for COCO and LVIS: the folder that the file names start from.
        exhaustive: for COCO: a picture lacks what it has no box of.
        out: FOLDER/NAME of the shards: FOLDER/NAME-000000.tar and so on.
        samples_per_shard: samples a shard holds; 1,000 to 10,000 suits local disks.
        image_column: column or field with the picture's (video's, sound's) path, relative to the table.
        text_column: column or field with the caption; in JSONL it may be a list.
        label_column: column or field with the class; may be absent.
        shuffle: write samples in a random order (seeded), which readers of streams need.
        seed: of that order.
        overwrite: replace shards of the same name.
        validate: shards to check instead: opens every member, prints what is wrong and the launch limits.
        index: a folder whose index.json and offset tables are made anew instead.
    """

    source: str = ""
    images: str = ""
    exhaustive: bool = True
    out: str = ""
    samples_per_shard: int = 1000
    image_column: str = "image"
    text_column: str = "text"
    label_column: str = "label"
    shuffle: bool = True
    seed: int = 0
    overwrite: bool = False
    validate: str = ""
    index: str = ""


@dataclass(slots=True)
class Item:
    """One sample to be: its name, its picture, video or sound, files beside it, its captions and facts."""

    name: str
    picture: Path
    beside: dict[str, Path]
    captions: list[str]
    meta: dict[str, Any]


@one_line
def main() -> None:
    """Runs the command line."""
    config = parse(Config, description=__doc__ or "")
    if config.validate:
        report = validate(config.validate)
        print("\n".join(report.lines()))
        raise SystemExit(0 if report.ok else 1)
    if config.index:
        shards = rebuild_index(config.index)
        print(f"{config.index}/index.json: {len(shards)} shards, {sum(s.samples for s in shards)} samples")
        return
    if not config.source or not config.out:
        raise UserError("give --source and --out, or --validate SHARDS, or --index FOLDER")
    build(config)


def build(config: Config) -> None:
    """Nothing; writes the shards and says how far it is and what was left out."""
    items, notes = find_items(config)
    if config.shuffle:
        random.Random(config.seed).shuffle(items)
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    keys: set[str] = set()
    started = last = time.monotonic()
    with ShardWriter(config.out, config.samples_per_shard, meta=notes, overwrite=config.overwrite) as writer:
        for done, item in enumerate(items, 1):
            try:
                writer.write(make_key(item.name, keys), members(item))
            except BadSample as bad:
                skipped[bad.reason] += 1
                examples.setdefault(bad.reason, f"{item.picture}: {bad.detail}")
            if time.monotonic() - last > 5:
                last = time.monotonic()
                rate = done / (last - started)
                print(f"{done}/{len(items)} samples, {rate:.0f}/s, {(len(items) - done) / rate:.0f} s left")
        if not writer.samples:
            raise UserError(f"none of the {len(items)} samples can be used: {'; '.join(examples.values())}")
    for reason, count in skipped.most_common():
        print(f"left out {count}: {reason}, e.g. {examples[reason]}", file=sys.stderr)
    size = sum(s.bytes for s in writer.shards) / 1e6
    print(f"{writer.samples} samples in {len(writer.shards)} shards, {size:.1f} MB: {writer.folder or '.'}")


def find_items(config: Config) -> tuple[list[Item], dict[str, Any]]:
    """The samples of a folder or a table, in a fixed order, and notes for index.json.

    Raises:
        UserError: no such source, nothing in it, or a table without the columns.
    """
    source = Path(config.source)
    if source.is_dir():
        items = list(walk(source))
        if not items:
            raise UserError(f"{source} holds no pictures, videos or sounds ({', '.join(_MAIN)})")
        return items, {}
    if not source.is_file():
        raise UserError(f"no such folder or table: {source}")
    if source.suffix.lower() == ".json":
        return annotated(source, config)
    if source.suffix.lower() in (".csv", ".tsv"):
        rows = read_csv(source)
    elif source.suffix.lower() in (".jsonl", ".ndjson"):
        rows = read_jsonl(source)
    else:
        raise UserError(f"{source}: expected a folder, a .csv, a .tsv, a .jsonl or a .json of COCO or LVIS")
    return from_rows(rows, source, config), {}


def annotated(source: Path, config: Config) -> tuple[list[Item], dict[str, Any]]:
    """The pictures of a COCO or LVIS file, and its categories; says what of it cannot be used."""
    if not config.images:
        raise UserError(f"{source}: give --images, the folder that its file names start from")
    found = read_coco(source, Path(config.images), config.exhaustive)
    if not found.pictures:
        raise UserError(f"{source} lists no picture that has a file name")
    for reason, count in found.left_out.most_common():
        print(f"left out {count}: {reason}, e.g. {found.examples[reason]}", file=sys.stderr)
    boxes = sum(len(meta["objects"]) for _, _, meta in found.pictures)
    print(f"{len(found.pictures)} pictures, {boxes} boxes, {len(found.categories)} categories")
    items = [Item(name, path, {}, [], meta) for name, path, meta in found.pictures]
    return items, {"categories": found.categories}


def walk(root: Path) -> Iterator[Item]:
    """Every picture, video or sound under a folder with the files of its stem; sub-folders are labels."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        there = {name.lower(): name for name in files}
        spoken = {name: match for name in files if (match := _SPOKEN.fullmatch(name.lower()))}
        for name in sorted(files):
            stem, _, extension = name.rpartition(".")
            main = extension.lower()
            if main not in PICTURES:
                main = next((e for e in _MAIN if f"{stem}.{e}".lower() in there), "")
            if extension.lower() != main or name in spoken or name.lower().endswith(".mask.png"):
                continue
            beside = {ext: Path(folder, there[f"{stem}.{ext}".lower()]) for ext in _BESIDE
                      if ext != main and f"{stem}.{ext}".lower() in there}  # fmt: skip
            beside |= {m[2]: Path(folder, f) for f, m in sorted(spoken.items()) if m[1] == stem.lower()}
            inside = Path(folder).relative_to(root).as_posix()
            meta = {"label": inside.replace("_", " ")} if inside != "." else {}
            captions = [meta["label"].rpartition("/")[2]] if meta and "txt" not in beside else []
            yield Item(f"{inside}/{stem}" if meta else stem, Path(folder, name), beside, captions, meta)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a table with a header line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a UTF-8 table: {error}") from None
    return [{k: v for k, v in row.items() if isinstance(k, str)} for row in rows]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line."""
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise UserError(f"{path} line {number} is not a JSON object")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number} is not JSON: {error.msg}") from None
    return rows


def from_rows(rows: list[dict[str, Any]], source: Path, config: Config) -> list[Item]:
    """One item per picture; rows of the same picture add captions."""
    if not rows:
        raise UserError(f"{source} has no rows")
    for column in (config.image_column, config.text_column):
        if not any(column in row for row in rows):
            names = {name for row in rows[:100] for name in row}
            raise UserError(f"{source} has no column {column!r}: {nearest(column, names)}")
    items: dict[str, Item] = {}
    for row in rows:
        picture = str(row.get(config.image_column) or "")
        text = row.get(config.text_column) or []
        captions = [text] if isinstance(text, str) else [t for t in text if isinstance(t, str)]
        if picture in items:
            items[picture].captions += captions
            continue
        used = (config.image_column, config.text_column)
        rest = {k: v for k, v in row.items() if k not in used and v not in (None, "")}
        if config.label_column in rest:
            rest["label"] = rest.pop(config.label_column)
        name = re.sub(r"\.[A-Za-z0-9]+$", "", picture)
        items[picture] = Item(name, source.parent / picture, {}, captions, rest)
    return list(items.values())


def members(item: Item) -> dict[str, Any]:
    """The members of a sample.

    Raises:
        BadSample: the picture (video, sound) is missing or none, or there is no caption file to read.
    """
    try:
        data = item.picture.read_bytes()
        out: dict[str, Any] = {ext: path.read_bytes() for ext, path in item.beside.items()}
    except OSError as error:
        raise BadSample("file-unreadable", str(error.strerror)) from None
    kind = kind_of(item.picture.suffix.lower().lstrip("."), data)
    out[kind] = data
    captions = [text.strip() for text in item.captions if text.strip()]
    meta = dict(item.meta)
    if captions:
        out["txt"] = captions[0]
        if len(captions) > 1:
            meta["texts"] = captions[1:]
    if meta:
        try:
            meta |= json.loads(out["json"]) if "json" in out else {}
        except (ValueError, TypeError):
            raise BadSample("json-unreadable", f"{item.beside['json']}") from None
        out["json"] = meta
    return out


def kind_of(extension: str, data: bytes) -> str:
    """The member's name of a picture, by its content, or of a video or sound that can be opened.

    Raises:
        BadSample: it cannot be opened, or is of a kind that readers do not know.
    """
    if extension in VIDEOS:
        with Container(data, max_pixels=1 << 40) as video:
            if not video.has_video:
                raise BadSample("video-missing", "the file has no video stream")
        return extension
    if extension in SOUNDS:
        with open_sound(data):
            return extension
    kind = (open_image(data, max_pixels=1 << 40).format or "").lower()
    kind = {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(kind, kind)
    if kind not in PICTURES:
        raise BadSample("image-format", f"{kind} is not one of {', '.join(PICTURES)}")
    return kind


def make_key(name: str, taken: set[str]) -> str:
    """A key that every reader keeps whole; names that would be equal get a hash of the full name."""
    key = re.sub(r"[^\w-]+", "_", name).strip("_")[:100] or "sample"
    if key in taken or key.startswith("__"):
        key = f"{key[:90]}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
    count = 1
    while key in taken:
        count += 1
        key = f"{key.partition('+')[0]}+{count}"
    taken.add(key)
    return key


if __name__ == "__main__":
    main()
