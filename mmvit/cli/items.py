"""What can be embedded in a folder or in shards: pictures, clips and sounds, by number.

Place in the path: before `Embedder`, for programs that embed what lies somewhere: mmvit-embed and the pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmvit.data.decode import PICTURES
from mmvit.data.media import VIDEOS
from mmvit.data.pixels import BadSample
from mmvit.data.shards import ShardIndex
from mmvit.data.waveform import SOUNDS
from mmvit.errors import UserError

MEDIA = {"image": PICTURES, "video": VIDEOS, "audio": SOUNDS}
NAMES = {"image": "pictures", "video": "clips", "audio": "sounds"}


@dataclass(frozen=True)
class Item:
    """One thing to embed.

    Attributes:
        key: what it is called: a path below the folder, or a sample's key, with the member's extension where
            several modalities are looked for and occur.
        modality: image, video or audio.
        number: of its sample or file, 0..count-1.
        extension: of its member or file, without the dot.
        content: bytes or a path; None where there is nothing to read.
    """

    key: str
    modality: str
    number: int
    extension: str = ""
    content: Any = None


class Items(Protocol):
    """Samples or files in a fixed order, each with its items.

    Attributes:
        count: how many samples or files.
        found: the modalities that occur.
    """

    count: int
    found: set[str]

    def read(self, i: int) -> list[Item]:
        """The items of sample i, at least one; without content where it has none that can be read."""
        ...

    def caption(self, i: int) -> str:
        """What sample i shows, in words; "" where nobody says."""
        ...


def items_of(data: str, modalities: Sequence[str]) -> Items:
    """The things behind --data; several places are separated by "::".

    Args:
        data: folders of files, searched in depth, folders of shards, or shard patterns.
        modalities: those that are looked for: image, video, audio. Where audio is the only one, a clip counts
            as its sound if the sample brings no other.

    Raises:
        UserError: neither shards nor a folder with anything of that kind.
    """
    parts = [_one(place.strip(), tuple(modalities)) for place in data.split("::")]
    if len({name for part in parts for name in part.found}) > 1:
        for part in parts:
            part.several = True
    return parts[0] if len(parts) == 1 else _Joined(parts)


def modality_of(extension: str) -> str | None:
    """image, video or audio, None for members that are none of them."""
    return next((name for name, valid in MEDIA.items() if extension.lower() in valid), None)


def _wanted(modalities: tuple[str, ...]) -> dict[str, str]:
    """Extension -> modality, the one that is to be taken first standing first."""
    wanted = {extension: name for name in modalities for extension in MEDIA[name]}
    return wanted | dict.fromkeys(VIDEOS, "audio") if modalities == ("audio",) else wanted


def _one(place: str, modalities: tuple[str, ...]) -> _Files | _Shards:
    folder = Path(place)
    if folder.is_dir() and not any(folder.glob("*.tar")):
        return _Files(folder, modalities)
    return _Shards(place, modalities)


class _Files:
    """The files of a folder; `found` are the modalities that occur."""

    several = False

    def __init__(self, folder: Path, modalities: tuple[str, ...]) -> None:
        self.folder, self.wanted = folder, _wanted(modalities)
        self.files = sorted(p for p in folder.rglob("*") if _extension(p) in self.wanted and p.is_file())
        self.count = len(self.files)
        if not self.files:
            what = " or ".join(NAMES[name] for name in modalities)
            raise UserError(f"{folder} holds neither .tar shards nor {what} ({', '.join(self.wanted)})")
        self.found = {self.wanted[_extension(path)] for path in self.files}

    def read(self, i: int) -> list[Item]:
        path = self.files[i]
        key, extension = path.relative_to(self.folder).as_posix(), _extension(path)
        return [Item(key, self.wanted[extension], i, extension, path)]

    def caption(self, i: int) -> str:
        return self.files[i].stem.replace("_", " ").replace("-", " ")


class _Shards:
    """Members of shards; `found` are the modalities that occur, `several` whether keys tell them apart."""

    several = False

    def __init__(self, pattern: str, modalities: tuple[str, ...]) -> None:
        self.index, self.wanted = ShardIndex.open(pattern), _wanted(modalities)
        self.count = self.index.samples
        self.found = {self.wanted[e] for e in self.index.fields if e in self.wanted}
        if not self.found:
            holds = ", ".join(sorted(self.index.fields)[:12]) or "nothing"
            what = " or ".join(NAMES[name] for name in modalities)
            raise UserError(
                f"{pattern} holds no {what}: members are {holds}, expected {', '.join(self.wanted)}"
            )
        self.default = next(name for name in modalities if name in self.found)

    def read(self, i: int) -> list[Item]:
        key = self.index.key(i)
        try:
            raw = self.index.read(i, lambda extension: extension in self.wanted)
        except BadSample:
            raw = {}
        found: dict[str, Item] = {}
        for extension, modality in self.wanted.items():
            if extension in raw and modality not in found:
                name = f"{key}.{extension}" if self.several else key
                found[modality] = Item(name, modality, i, extension, raw[extension])
        return list(found.values()) or [Item(key, self.default, i)]

    def caption(self, i: int) -> str:
        try:
            raw = self.index.read(i, lambda extension: extension in ("txt", "json"))
            if "txt" in raw:
                return raw["txt"].decode("utf-8", "replace").strip()
            return str(json.loads(raw.get("json", b"{}")).get("label", ""))
        except (BadSample, ValueError, AttributeError):
            return ""


class _Joined:
    """Several places, one after the other."""

    def __init__(self, parts: Sequence[Items]) -> None:
        self.parts, self.count = parts, sum(part.count for part in parts)
        self.found = {name for part in parts for name in part.found}

    def _at(self, i: int) -> tuple[Items, int, int]:
        first = 0
        for part in self.parts:
            if i < first + part.count:
                return part, i - first, first
            first += part.count
        raise IndexError(f"item {i} of {self.count}")

    def read(self, i: int) -> list[Item]:
        part, inside, first = self._at(i)
        return [
            Item(item.key, item.modality, first + item.number, item.extension, item.content)
            for item in part.read(inside)
        ]

    def caption(self, i: int) -> str:
        part, inside, _ = self._at(i)
        return part.caption(inside)


def _extension(path: Path) -> str:
    return path.suffix.lower().lstrip(".")
