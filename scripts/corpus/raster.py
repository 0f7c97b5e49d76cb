"""Pictures of packages as small RGBA PNGs: SVG through resvg, everything else through Pillow.

Place in the path: corpus builder, drawing. Same input, same bytes: no system fonts, no metadata, fixed
compression.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageSequence

from mmvit.errors import need

LARGEST = 4096  # pixels; refuses absurd canvases of old drawings


def svg_to_png(svg: str, width: int, height: int) -> bytes:
    """The SVG drawn as RGBA PNG bytes, at most `width` x `height` px (its aspect is kept).

    Raises:
        ValueError: the drawing cannot be parsed.
    """
    return bytes(
        need("resvg_py", "corpus").svg_to_bytes(
            svg_string=svg, width=width, height=height, skip_system_fonts=True
        )
    )


def sized_svg(svg: str) -> tuple[str, float, float]:
    """`svg` with a viewBox (old files have only width and height), and its width and height in its own units.

    Raises:
        ValueError: neither a viewBox nor a size can be read.
    """
    head = re.search(r"<svg\b[^>]*>", svg, re.S)
    if head is None:
        raise ValueError("no <svg> element")
    tag = head.group(0)
    box = re.search(r"""\bviewBox\s*=\s*["']([^"']+)["']""", tag)
    if box:
        numbers = [float(v) for v in re.split(r"[\s,]+", box.group(1).strip())]
        if len(numbers) == 4 and numbers[2] > 0 and numbers[3] > 0:
            return svg, numbers[2], numbers[3]
    width, height = _length(tag, "width"), _length(tag, "height")
    if not width or not height:
        raise ValueError("no size")
    bare = re.sub(r"""\s(viewBox|width|height)\s*=\s*["'][^"']*["']""", "", tag)
    sized = bare.replace("<svg", f'<svg viewBox="0 0 {width:g} {height:g}"', 1)
    return svg.replace(tag, sized, 1), width, height


def _length(tag: str, name: str) -> float | None:
    found = re.search(rf"""\s{name}\s*=\s*["']\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-z%]*)""", tag)
    if not found or found.group(2) == "%":
        return None
    unit = {"mm": 3.7795, "cm": 37.795, "in": 96.0, "pt": 1.3333, "pc": 16.0}.get(found.group(2), 1.0)
    return float(found.group(1)) * unit


def svg_fitted(svg: str, long_side: int) -> bytes:
    """The SVG as RGBA PNG bytes whose longer side is `long_side` px, empty margins cut away.

    Raises:
        ValueError: it cannot be parsed, or it draws nothing.
    """
    svg, width, height = sized_svg(svg)
    scale = long_side / max(width, height)
    drawn = svg_to_png(svg, max(1, round(width * scale)), max(1, round(height * scale)))
    box = content_box(Image.open(io.BytesIO(drawn)))
    if box is None:
        raise ValueError("draws nothing")
    share = max(box[2] - box[0], box[3] - box[1]) / long_side
    if share < 0.75:
        # Much of the page is empty: draw again, larger, so that the content has the pixels.
        zoom = min(1 / share, LARGEST / long_side)
        drawn = svg_to_png(svg, max(1, round(width * scale * zoom)), max(1, round(height * scale * zoom)))
    return fitted(Image.open(io.BytesIO(drawn)), long_side)


def content_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the pixels that are not transparent, or None for a blank picture."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode not in ("RGBA", "LA"):
        return (0, 0, *image.size)
    return image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()


def is_plain(image: Image.Image) -> bool:
    """True when the picture shows one colour only, on any background: nothing can be seen in it."""
    rgba = np.asarray(image.convert("RGBA"), dtype=np.int16)
    solid = rgba[rgba[..., 3] > 128]
    return solid.size == 0 or (
        len(solid) > 0.98 * rgba[..., 3].size and bool(np.ptp(solid, axis=0).max() < 12)
    )


def fitted(image: Image.Image, long_side: int, *, crop: bool = True) -> bytes:
    """RGBA PNG bytes of the picture, margins cut away, shrunk (never enlarged) to `long_side` px.

    Raises:
        ValueError: the picture is blank.
    """
    rgba = image.convert("RGBA")
    box = content_box(rgba)
    if box is None:
        raise ValueError("draws nothing")
    if crop:
        rgba = rgba.crop(box)
    if max(rgba.size) > long_side:
        scale = long_side / max(rgba.size)
        size = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
        # Premultiplied alpha: else the colour of invisible pixels bleeds into the border.
        rgba = rgba.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    return png(rgba)


def first_frame(data: bytes) -> Image.Image:
    """The first frame of a picture file as RGBA, for GIF, PNG, JPEG and WebP."""
    image = Image.open(io.BytesIO(data))
    return next(iter(ImageSequence.Iterator(image))).convert("RGBA")


def png(image: Image.Image) -> bytes:
    """PNG bytes of the picture, without metadata."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=6)
    return out.getvalue()
