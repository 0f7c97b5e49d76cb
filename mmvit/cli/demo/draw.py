"""Detections -> a picture with boxes, names and scores drawn on it.

A colour for each name; every line has a light and a dark side, so that it shows on any background; labels
keep clear of each other where there is room, and never leave the picture.
"""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmvit.data.pixels import Color, load_rgb
from mmvit.types import Detections

# Hues far from each other first, then the same again lighter or darker; later names walk round the circle.
_PALETTE = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#469990",
            "#9a6324", "#ffe119", "#000075", "#fabed4", "#800000", "#dcbeff", "#808000")  # fmt: skip
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_MARGIN = (236, 238, 241)
Rect = tuple[float, float, float, float]


def draw(
    image: Image.Image,
    detections: Detections,
    *,
    names: Sequence[str] | None = None,
    at_least: int = 512,
    at_most: int | None = None,
    scores: bool = True,
) -> Image.Image:
    """A new RGB picture with the boxes of `detections` on it; the given one stays as it is.

    Args:
        image: the picture that was searched; EXIF orientation and transparency are settled as everywhere.
        detections: boxes in pixels of `image`, upright. Boxes that are not finite are left out, others are
            cut at the border.
        names: what to write for each query, None = the query where it is a text, else its number.
        at_least: smaller pictures are enlarged until the longer side has so many pixels.
        at_most: larger ones are reduced to it, None = any size. A sliver gets a margin that labels fit in.
        scores: whether to write scores behind the names.

    Raises:
        BadSample: the picture cannot be decoded.
    """
    canvas, scale = _canvas(load_rgb(image, _WHITE), at_least, at_most)
    pen = ImageDraw.Draw(canvas)
    width, height = canvas.size
    size = max(11, min(round(math.sqrt(width * height) * 0.022), height // 2))
    line = max(2, round(size / 6))
    words = label_names(detections.query, names)
    colors = [color_of(words.index(word)) for word in words]
    found = [
        (tuple(value * scale for value in box), label, score)
        for box, score, label in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
        if all(map(math.isfinite, box))
    ]
    for box, label, _ in reversed(found):  # the best on top
        _frame(pen, box, colors[label], line, canvas.size)
    placed: list[Rect] = []
    font = _font(size)
    for box, label, score in found:
        tail = f" {score:.2f}" if scores else ""
        text = _fitting(words[label], tail, font, width - 2 * line)
        if text:
            placed.append(_place(font, text, box, placed, canvas.size, line))
            _label(pen, placed[-1], text, font, colors[label])
    return canvas


def label_names(query: Sequence[Any], names: Sequence[str] | None = None) -> list[str]:
    """What is written for each query: its given name, itself where it is a text, or its number.

    Raises:
        ValueError: another number of names than queries.
    """
    if names is not None and len(names) != len(query):
        raise ValueError(f"{len(names)} names for {len(query)} queries: give one name for each query")
    given: Sequence[Any] = query if names is None else names
    return [
        re.sub(r"\s+", " ", value).strip() or f"query {i + 1}" if isinstance(value, str) else f"query {i + 1}"
        for i, value in enumerate(given)
    ]


def color_of(number: int) -> Color:
    """The RGB colour, 0..255, of name `number`; the first sixteen differ most."""
    if number < len(_PALETTE):
        code = _PALETTE[number].lstrip("#")
        return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)
    hue = (number * 0.618034) % 1  # the golden section: no two neighbours alike
    red, green, blue = colorsys.hls_to_rgb(hue, (0.35, 0.5, 0.65)[number % 3], 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def ink_on(color: Color) -> Color:
    """Black or white, whichever reads better on `color` (WCAG 2 contrast)."""
    light = _luminance(color)
    return _WHITE if 1.05 / (light + 0.05) >= (light + 0.05) / 0.05 else _BLACK


def _luminance(color: Color) -> float:
    channels = [c / 255 for c in color]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _canvas(picture: Image.Image, at_least: int, at_most: int | None) -> tuple[Image.Image, float]:
    """The picture at a size that can be drawn on, and how many of its pixels one original pixel became."""
    longer = max(picture.size)
    goal = max(longer, at_least) if at_most is None else min(max(longer, at_least), max(at_most, 1))
    scale = goal / longer
    if scale != 1:
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    room = (min(96, goal), min(32, goal))  # what a label needs
    if picture.width >= room[0] and picture.height >= room[1]:
        return picture.copy() if scale == 1 else picture, scale
    canvas = Image.new("RGB", (max(picture.width, room[0]), max(picture.height, room[1])), _MARGIN)
    canvas.paste(picture)
    return canvas, scale


def _frame(
    pen: ImageDraw.ImageDraw, box: Sequence[float], color: Color, line: int, size: tuple[int, int]
) -> None:
    """Draws one box: a line in its colour between two thin ones in black or white."""
    width, height = size
    x0, x1 = (min(max(round(x), 0), width - 1) for x in (min(box[0], box[2]), max(box[0], box[2]) - 1))
    y0, y1 = (min(max(round(y), 0), height - 1) for y in (min(box[1], box[3]), max(box[1], box[3]) - 1))
    x1, y1 = max(x0, x1), max(y0, y1)  # a box without area is a point or a line
    halo = ink_on(color)
    for grow, ink, wide in ((1, halo, line + 2), (0, color, line)):
        outer = (max(0, x0 - grow), max(0, y0 - grow), min(width - 1, x1 + grow), min(height - 1, y1 + grow))
        pen.rectangle(outer, outline=ink, width=wide)


def _fitting(
    name: str, tail: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float
) -> str | None:
    """The label, its name cut with an ellipsis to `room` pixels; None where not even a letter fits."""
    if font.getlength(name + tail) <= room:
        return name + tail
    low, high = 0, min(len(name), 200)
    while low < high:  # longest beginning that fits
        middle = (low + high + 1) // 2
        if font.getlength(name[:middle].rstrip() + "…" + tail) <= room:
            low = middle
        else:
            high = middle - 1
    return name[:low].rstrip() + "…" + tail if low else None


def _place(
    font: Any, text: str, box: Sequence[float], placed: Sequence[Rect], size: tuple[int, int], line: int
) -> Rect:
    """Where a label goes, inside the picture: at a corner of its box, where it covers other labels least."""
    pad = max(2, line)
    ascent, descent = font.getmetrics()
    w, h = math.ceil(font.getlength(text)) + 2 * pad, ascent + descent + pad
    x0, y0, x1, y1 = box
    spots = [(x0, y0 - h), (x0, y1), (x0 + line, y0 + line), (x1 - w, y0 - h), (x1 - w, y1),
             (x0 + line, y1 - h - line), (x1 - w - line, y0 + line)]  # fmt: skip
    best: tuple[float, Rect] | None = None
    for number, (x, y) in enumerate(spots):
        left, top = min(max(x, 0), max(0, size[0] - w)), min(max(y, 0), max(0, size[1] - h))
        spot = (left, top, min(left + w, size[0]), min(top + h, size[1]))
        moved = abs(left - x) + abs(top - y)  # a spot that had to be pushed back into the picture is worse
        cost = sum(_overlap(spot, other) for other in placed) * 4 + moved * w + number
        if best is None or cost < best[0]:
            best = (cost, spot)
    assert best is not None
    return best[1]


def _label(pen: ImageDraw.ImageDraw, spot: Rect, text: str, font: Any, color: Color) -> None:
    ink = ink_on(color)
    x0, y0, x1, y1 = (round(value) for value in spot)
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=color, outline=ink)
    pen.text(((x0 + x1) / 2, (y0 + y1) / 2), text, font=font, fill=ink, anchor="mm")


def _overlap(a: Rect, b: Rect) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


@cache
def _font(size: int) -> Any:
    """DejaVu Sans Bold, which comes with matplotlib and has Latin, Greek, Cyrillic and Arabic letters."""
    import matplotlib

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf", size
    )
