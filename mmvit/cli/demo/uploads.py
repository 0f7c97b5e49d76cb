"""What people hand in -> pictures, names and boxes, or a `UserError` of one line that says what to change.

Nothing here trusts a file: its size is looked at before it is read, its pixels are counted before they are
decoded.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmvit.data.pixels import BadSample, load_rgb, open_image
from mmvit.errors import UserError

Box = tuple[float, float, float, float]
_WHITE = (255, 255, 255)
_REASONS = {
    "image-empty": "the file is empty",
    "image-unreadable": "this file is not a picture that can be read",
    "image-truncated": "the picture's file is damaged: its end is missing",
}


@dataclass(frozen=True)
class Limits:
    """How much an upload may ask for.

    Attributes:
        max_bytes: of a file.
        max_pixels: of a picture, read from its header.
        max_names: queries at once.
        max_letters: of one query.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    max_names: int = 2_000
    max_letters: int = 400


@dataclass(frozen=True)
class Picture:
    """A picture as it is searched.

    Attributes:
        pixels: RGB, upright, without metadata.
        digest: hash of the file, the same for the same bytes.
    """

    pixels: Image.Image
    digest: str


def read_bytes(path: str | os.PathLike[str], limits: Limits) -> bytes:
    """The content of an uploaded file.

    Raises:
        UserError: it is not there, or too large.
    """
    name = os.path.basename(os.fspath(path))
    try:
        size = os.stat(path).st_size
        if size > limits.max_bytes:
            raise UserError(
                f"{name} has {_megabytes(size)}, at most {_megabytes(limits.max_bytes)} are taken"
            )
        with open(path, "rb") as file:
            return file.read(limits.max_bytes + 1)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None


def read_picture(data: bytes, limits: Limits) -> Picture:
    """The picture in `data`, as every other part of the project would see it.

    Raises:
        UserError: no picture, a damaged one, or one of too many pixels.
    """
    try:
        pixels = load_rgb(open_image(data, limits.max_pixels), _WHITE)
    except BadSample as error:
        if error.reason == "image-too-large":
            raise UserError(f"the picture is too large: {error.detail}") from None
        raise UserError(_REASONS.get(error.reason, str(error))) from None
    pixels.info.clear()  # upright by now: nobody is to turn it again
    return Picture(pixels, digest(data))


def digest(data: bytes) -> str:
    """64 hex digits that name these bytes."""
    return hashlib.sha256(data).hexdigest()


def names_in(text: str, limits: Limits) -> list[str]:
    """The names in a text, separated by commas or line ends; each once, in the order they were written.

    Raises:
        UserError: none, or too many, or one that is too long.
    """
    words = (re.sub(r"\s+", " ", word).strip() for word in re.split(r"[,\n\r]", text or ""))
    names = list(dict.fromkeys(word for word in words if word))
    if not names:
        raise UserError("what is to be found? Write at least one name; separate several by commas or lines")
    if len(names) > limits.max_names:
        raise UserError(f"{len(names):,} names were written, at most {limits.max_names:,} are taken at once")
    if (longest := max(map(len, names))) > limits.max_letters:
        raise UserError(f"one name has {longest:,} letters, at most {limits.max_letters} are taken")
    return names


def box_in(corners: Sequence[Any], size: tuple[int, int]) -> Box | None:
    """The box of four numbers in pixels, corners in any order, cut at the picture; None = the whole picture.

    Args:
        corners: x0, y0, x1, y1; all four None = no box.
        size: (width, height) of the picture.

    Raises:
        UserError: some but not all are given, not finite, or the box is empty inside the picture.
    """
    if all(value is None for value in corners):
        return None
    if len(corners) != 4 or any(value is None for value in corners):
        raise UserError(
            "a box needs four numbers, x0, y0, x1 and y1 in pixels; leave all empty for the whole picture"
        )
    values = [float(value) for value in corners]
    if not all(map(math.isfinite, values)):
        raise UserError(f"the box {values} is not finite: give x0, y0, x1 and y1 in pixels")
    width, height = size
    x0, x1 = (min(max(x, 0.0), width) for x in sorted(values[0::2]))
    y0, y1 = (min(max(y, 0.0), height) for y in sorted(values[1::2]))
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise UserError(
            f"the box {', '.join(f'{v:g}' for v in values)} covers less than a pixel of the picture of "
            f"{width} x {height}: choose two corners farther apart"
        )
    return x0, y0, x1, y1


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size:,} bytes"
