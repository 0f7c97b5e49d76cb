"""Scenes: one to six cut-outs on a background, with exact boxes and masks of what can be seen.

Place in the path: corpus builder, part `scenes`. 256 px; later objects cover earlier ones. Edges are
feathered, colours jittered and the picture saved as JPEG, so that the seam of pasting is a poor clue. Source:
Dwibedi et al. 2017, Cut, Paste and Learn, section 4 (blending). Differs: no Poisson blending.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from corpus.cutouts import CutOut, box_of, cut_outs
from corpus.fetch import Fetched
from corpus.parts import Job
from corpus.raster import png
from corpus.scratch import backgrounds, label_of
from corpus.words import HeldOut

SIZE = 256
COUNTS = {"train": 2000, "val": 250, "test_style": 250, "test_concept": 250}
MOST_OBJECTS = 6
LEAST_VISIBLE = 0.35  # of the object's own pixels
LEAST_PIXELS = 40


@dataclass(frozen=True)
class Placed:
    """A cut-out ready to paste: RGBA array (h,w,4) uint8 and its top left corner, which may lie outside."""

    rgba: np.ndarray
    x: int
    y: int


def jobs(out: Path, fetched: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """The scenes of every split, from the split's own objects and backgrounds."""
    listed = []
    for split, places in backgrounds(folder, held).items():
        objects = cut_outs(out, split)
        for index in range(COUNTS[split] if objects and places else 0):
            draw = random.Random(f"scene {split} {index}")
            chosen = _chosen(objects, draw)
            licences = {fetched.package.licence, *(cut.licence for cut in chosen)}
            place = draw.choice(places)
            facts = {
                "background": label_of(place.stem),
                "width": SIZE,
                "height": SIZE,
                "package": " + ".join(sorted({fetched.title, *(cut.package for cut in chosen)})),
                "licence": " + ".join(sorted(licences)),
                "split": {"name": split, "by": "objects and background"},
            }
            key = f"{split}-{index:05d}"
            listed.append(Job(key, split, "", facts, (key, str(place), chosen)))
    return listed


def _chosen(objects: Sequence[CutOut], draw: random.Random) -> list[CutOut]:
    """One to six objects; a part is drawn first, so that photographs are not drowned by the many emoji."""
    by_part: dict[str, list[CutOut]] = {}
    for cut in objects:
        by_part.setdefault(cut.part, []).append(cut)
    weights = [{"emoji": 0.5, "stamps": 0.4, "scratch": 0.1}[part] for part in by_part]
    count = draw.randint(1, MOST_OBJECTS)
    return [draw.choice(by_part[part]) for part in draw.choices(list(by_part), weights, k=count)]


def compose(
    background: np.ndarray, placed: Sequence[Placed]
) -> tuple[np.ndarray, np.ndarray, list[int], list[float]]:
    """The picture, its index mask, which of `placed` are in it, and how much of each can be seen.

    An object that would be hidden by more than 65 %, or show fewer than 40 pixels, is not drawn at all.

    Args:
        background: (H,W,3) uint8.
        placed: objects, the later over the earlier.

    Returns:
        picture (H,W,3) uint8, mask (H,W) uint8 (0 background, k+1 the k-th kept object), indices into
        `placed` in drawing order, visible share of each kept object's own pixels (those outside the frame
        count as hidden).
    """
    kept = list(range(len(placed)))
    while True:
        mask = np.zeros(background.shape[:2], np.uint8)
        whole = []
        for number, index in enumerate(kept):
            area, alpha = _window(placed[index], background.shape[:2])
            mask[area][alpha >= 128] = number + 1
            whole.append(int((placed[index].rgba[..., 3] >= 128).sum()))
        seen = np.bincount(mask.ravel(), minlength=len(kept) + 1)[1:]
        share = [float(s) / max(1, w) for s, w in zip(seen, whole, strict=True)]
        hidden = [k for k in range(len(kept)) if share[k] < LEAST_VISIBLE or seen[k] < LEAST_PIXELS]
        if not hidden:
            break
        del kept[min(hidden, key=lambda k: share[k])]
    picture = background.astype(np.float32)
    for index in kept:
        area, _ = _window(placed[index], background.shape[:2])
        top, left = area[0].start - placed[index].y, area[1].start - placed[index].x
        rgba = placed[index].rgba[
            top : top + area[0].stop - area[0].start, left : left + area[1].stop - area[1].start
        ]
        weight = _feathered(placed[index].rgba[..., 3])[
            top : top + rgba.shape[0], left : left + rgba.shape[1], None
        ]
        picture[area] = picture[area] * (1 - weight) + rgba[..., :3] * weight
    return np.round(picture).astype(np.uint8), mask, kept, share


def _window(item: Placed, frame: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The rows and columns of the frame that the object covers, and its alpha there."""
    height, width = item.rgba.shape[:2]
    y0, y1 = (min(max(v, 0), frame[0]) for v in (item.y, item.y + height))
    x0, x1 = (min(max(v, 0), frame[1]) for v in (item.x, item.x + width))
    return (slice(y0, y1), slice(x0, x1)), item.rgba[y0 - item.y : y1 - item.y, x0 - item.x : x1 - item.x, 3]


def _feathered(alpha: np.ndarray) -> np.ndarray:
    """Alpha (h,w) in 0..1 with an edge softened over about two pixels, never reaching outside the object."""
    edged = Image.fromarray(np.pad(alpha, 3))  # so that straight sides of the cut-out are edges, too
    soft = edged.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.8))
    return np.minimum(np.asarray(soft, np.float32)[3:-3, 3:-3], alpha) / 255


def backdrop(path: str, size: int, draw: random.Random) -> np.ndarray:
    """A random square window of a background, (size,size,3) uint8, at random mirrored."""
    image = Image.open(path).convert("RGB")
    side = int(min(image.size) * draw.uniform(0.6, 1.0))
    x, y = draw.randint(0, image.width - side), draw.randint(0, image.height - side)
    image = image.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    pixels = np.asarray(image)
    return pixels[:, ::-1] if draw.random() < 0.5 else pixels


def place(cut: CutOut, draw: random.Random) -> Placed:
    """The cut-out at a random size (36 to 140 px), flip, brightness and position, its centre in the frame."""
    image = Image.open(io.BytesIO(cut.png)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a >= 128 else 0).getbbox()
    image = image.crop(box).convert("RGBa")
    scale = 36 * (140 / 36) ** draw.random() / max(image.size)
    size = (max(4, round(image.width * scale)), max(4, round(image.height * scale)))
    rgba = np.array(image.resize(size, Image.Resampling.LANCZOS).convert("RGBA"))
    light = draw.uniform(0.85, 1.12)
    rgba[..., :3] = np.clip(rgba[..., :3] * light, 0, 255).astype(np.uint8)
    if draw.random() < 0.5:
        rgba = rgba[:, ::-1]
    x, y = draw.randint(4, SIZE - 4) - size[0] // 2, draw.randint(4, SIZE - 4) - size[1] // 2
    room = [max(0, SIZE - side) for side in size]
    if draw.random() < 0.8:  # mostly whole objects; the rest are cut by the frame
        x, y = min(max(x, 0), room[0]), min(max(y, 0), room[1])
    return Placed(rgba, x, y)


def make(work: tuple[str, str, list[CutOut]]) -> dict[str, Any] | str:
    """`jpg`, `mask.png` and the objects' JSON (id in the mask, label, box xyxy in pixels, visible share)."""
    key, path, chosen = work
    draw = random.Random(f"compose {key}")
    placed = [place(cut, draw) for cut in chosen]
    picture, mask, kept, share = compose(backdrop(path, SIZE, draw), placed)
    if not kept:
        return "no object can be seen"
    objects = [
        {
            "id": number + 1,
            "label": chosen[index].label,
            "box": box_of(mask == number + 1),
            "visible": round(share[number], 4),
            "area": int((mask == number + 1).sum()),
            "source": f"{chosen[index].part}/{chosen[index].key}",
            "licence": chosen[index].licence,
        }
        for number, index in enumerate(kept)
    ]
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=draw.randint(82, 95))
    labels = list(dict.fromkeys(str(item["label"]) for item in objects))
    caption = labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
    facts = {"label": caption, "texts": {"en": [caption]}, "objects": objects}
    return {"jpg": data.getvalue(), "mask.png": png(Image.fromarray(mask)), "txt": caption, "json": facts}
