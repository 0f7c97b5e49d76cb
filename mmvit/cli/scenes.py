"""A sheet of test pictures with what was found in them and what is there, to look at.

Which pictures are shown is decided by a hash of their keys, not by hand.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from mmvit.boxes import iou
from mmvit.cli.demo.draw import draw
from mmvit.cli.report.gallery import RawPictures, chosen
from mmvit.data.pixels import load_rgb
from mmvit.evaluators.detection_split import Searched
from mmvit.evaluators.detection_truth import Truth
from mmvit.types import Detections

_TILE, _GAP, _LINE, _FONT = 448, 12, 18, 14
_MOST, _SAME = 10, 0.7  # boxes drawn in a scene; overlap above which a box only repeats a better one
_WHITE, _INK = (255, 255, 255), (40, 44, 52)


def draw_sheet(
    urls: str, searched: Searched, count: int = 10, threshold: float = 0.1, columns: int = 5
) -> Image.Image:
    """An RGB picture of `count` scenes: found boxes with names and scores, true ones dashed, names below.

    For the eye only the best name of each place is drawn (IoU 0.7), and the ten best boxes of a scene.

    Args:
        urls: the shards that were searched.
        searched: what was found in them.
        count: scenes at most.
        threshold: lowest score of a box that is drawn.
        columns: scenes side by side.
    """
    rows, pictures = chosen([truth.key for truth in searched.truths], count), RawPictures(urls)
    tiles = [
        _tile(
            upright(pictures(searched.index[row])),
            searched.predictions[row],
            searched.truths[row],
            searched.categories,
            threshold,
        )
        for row in rows
    ]
    columns = min(columns, len(tiles))
    lines = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in line) for line in lines]
    sheet = Image.new(
        "RGB",
        (columns * (_TILE + _GAP) + _GAP, sum(heights) + _GAP * (len(lines) + 1)),
        _WHITE,
    )
    top = _GAP
    for line, height in zip(lines, heights, strict=True):
        for column, tile in enumerate(line):
            sheet.paste(tile, (_GAP + column * (_TILE + _GAP), top))
        top += height + _GAP
    return sheet


def upright(data: bytes | None) -> Image.Image:
    """The RGB picture of a sample that was searched, upright, in its own size."""
    assert data is not None
    return load_rgb(Image.open(io.BytesIO(data)), _WHITE)


def _tile(
    picture: Image.Image, found: Detections, truth: Truth, categories: Sequence[str], threshold: float
) -> Image.Image:
    """One scene, _TILE pixels wide, with up to three lines of text below."""
    scale = _TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    best = _best(found, threshold)
    shown = Detections(found.boxes[best] * scale, found.scores[best], found.labels[best], list(categories))
    canvas = picture.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas)
    for box in truth.boxes[~truth.crowd].tolist():
        _dashed(pen, [value * scale for value in box])
    canvas = draw(canvas, shown, at_least=1)
    tile = Image.new("RGB", (_TILE, canvas.height + 3 * _LINE), _WHITE)
    tile.paste(canvas)
    names = [categories[label] for label in truth.labels[~truth.crowd]]
    font = ImageFont.load_default(_FONT)
    pen = ImageDraw.Draw(tile)
    text = _wrapped(pen, f"{truth.key}: {', '.join(names) or 'nothing'}", font)
    pen.text((0, canvas.height + 2), text, fill=_INK, font=font)
    return tile


def _best(found: Detections, threshold: float) -> list[int]:
    """Which detections are drawn, best first."""
    overlap = iou(found.boxes, found.boxes)
    kept: list[int] = []
    for i in torch.argsort(found.scores, descending=True, stable=True).tolist():
        if found.scores[i] <= threshold or len(kept) == _MOST:
            break
        if not kept or overlap[i, kept].max() < _SAME:
            kept.append(i)
    return kept


def _wrapped(pen: ImageDraw.ImageDraw, text: str, font: Any) -> str:
    """The text in lines that are no wider than a tile; three at most."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > _TILE and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:3])


def _dashed(pen: ImageDraw.ImageDraw, box: Sequence[float], dash: int = 6) -> None:
    """Draws a box in dashes, white on black, so that it shows on any ground."""
    x0, y0, x1, y1 = box
    for (ax, ay), (bx, by) in (
        ((x0, y0), (x1, y0)),
        ((x0, y1), (x1, y1)),
        ((x0, y0), (x0, y1)),
        ((x1, y0), (x1, y1)),
    ):
        steps = max(1, round(max(abs(bx - ax), abs(by - ay)) / dash))
        for i in range(steps):
            ends = [(ax + (bx - ax) * t / steps, ay + (by - ay) * t / steps) for t in (i, i + 1)]
            pen.line(ends, fill=(255, 255, 255) if i % 2 else (0, 0, 0), width=2)
