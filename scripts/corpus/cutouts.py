"""Cut-out objects for scenes and clips, read back from the parts that were built before them.

Place in the path: corpus builder, between the picture parts and the composed ones. Objects stay in their
split.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpus.check import samples_in
from corpus.splits import OBJECT_GROUPS

PARTS = ("emoji", "stamps", "scratch")
# Not things that lie in a scene: signs, flags, body parts, whole landscapes, weather, clocks' times, maps.
LEFT_OUT = {
    "place-map", "place-geographic", "place-other", "sky-weather", "time", "roadsigns", "flags", "body_parts",
    "naturalforces", "event", "hotel",
}  # fmt: skip
FULLEST = 0.93  # of the bounding box: fuller pictures are rectangles, not cut-outs
SMALLEST = 40  # px, long side


@dataclass(frozen=True)
class CutOut:
    """An RGBA picture of one thing: its sample's key, label, package and licence, its own sound if any."""

    key: str
    label: str
    png: bytes
    package: str
    licence: str
    part: str
    wav: bytes | None = None


def cut_outs(out: Path, split: str, parts: tuple[str, ...] = PARTS) -> list[CutOut]:
    """The usable objects of a split, by part and key."""
    return [cut for part in parts for cut in sorted(_part(out, split, part), key=lambda cut: cut.key)]


def _part(out: Path, split: str, part: str) -> Iterator[CutOut]:
    for key, members in samples_in(out / split / part):
        facts: dict[str, Any] = json.loads(members["json"])
        classes = {facts["group"], *facts["subgroup"].split("/")}
        emoji_thing = facts["group"] in OBJECT_GROUPS and "face" not in facts["label"]
        if classes & LEFT_OUT or (part == "emoji" and not emoji_thing):
            continue
        if is_cut_out(members["png"]):
            label, package, licence = facts["label"], facts["package"], facts["licence"]
            yield CutOut(key, label, members["png"], package, licence, part, members.get("wav"))


def is_cut_out(png: bytes) -> bool:
    """True for a picture that is large enough and whose shape is not simply its frame."""
    alpha = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3] >= 128
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if rows.size == 0:
        return False
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    return max(height, width) >= SMALLEST and bool(alpha.sum() < FULLEST * height * width)


def box_of(mask: np.ndarray) -> list[int] | None:
    """[x0, y0, x1, y1] of the true pixels of a (H,W) mask, far ends exclusive; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
