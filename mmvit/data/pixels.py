"""Bytes -> an 8-bit RGB picture, the part of image reading that must survive whatever is in a file.

Size is read from the header before anything is decoded; odd modes (palette, CMYK, 16-bit, alpha) become RGB
by stated rules; every failure is a `BadSample` with a short reason, never an exception from a decoder.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import Any

import numpy as np
from PIL import Image

from mmvit.errors import UserError

Color = tuple[int, int, int]
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROGRAMS = ("EPS",)  # formats that Pillow hands to another program (Ghostscript)
# Sizes are judged by `check_size`, damage is counted: nobody needs Pillow's lines about them as well.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadSample(Exception):  # noqa: N818 - it is counted, not an error of the program
    """One sample that cannot be used; the loader counts it by `reason` and takes another.

    Attributes:
        reason: short slug, e.g. "image-truncated".
        detail: what was found, for the log.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The picture with its header read and its pixels not yet decoded (first frame of an animation).

    Raises:
        BadSample: image-empty, image-unreadable, or image-too-large (more than `max_pixels`).
    """
    if not data:
        raise BadSample("image-empty", "0 bytes")
    try:
        image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample("image-too-large", str(error)[:80]) from None
    except Exception as error:  # decoders raise anything on hostile bytes
        raise BadSample("image-unreadable", f"{type(error).__name__}, starts with {data[:8]!r}") from None
    if image.format in _PROGRAMS:
        raise BadSample("image-unreadable", f"{image.format} files are programs, not pictures")
    check_size(image, max_pixels)
    return image


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Nothing; a picture of more than `max_pixels` pixels raises BadSample("image-too-large")."""
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample("image-too-large", f"{width} x {height} pixels, at most {max_pixels} allowed")
    if width < 1 or height < 1:
        raise BadSample("image-empty", f"{width} x {height} pixels")


def load_rgb(image: Image.Image, background: Color) -> Image.Image:
    """An RGB picture, upright by its EXIF orientation, transparency laid over `background`.

    16-bit grey is scaled by 1/257 (Pillow's own conversion would clip it); CMYK and other colour spaces
    convert by Pillow's rules.

    Raises:
        BadSample: image-truncated, image-unreadable or image-too-large.
    """
    try:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        image = _flatten(_eight_bit(image), background)
        return image if turn is None else image.transpose(turn)
    except BadSample:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise BadSample("image-too-large", str(error)[:80]) from None
    except Exception as error:  # decoders raise anything on hostile bytes
        reason = "image-truncated" if "truncated" in str(error).lower() else "image-unreadable"
        raise BadSample(reason, f"{type(error).__name__}: {str(error)[:80]}") from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels that the picture will have once its EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def as_image(source: Any, max_pixels: int) -> Image.Image:
    """A PIL picture from what people hold: a PIL picture, bytes, a path, or an array (H,W), (H,W,3|4) uint8.

    Raises:
        UserError: another type or shape, or a path that cannot be read.
        BadSample: the bytes are no picture.
    """
    if isinstance(source, Image.Image):
        check_size(source, max_pixels)
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return open_image(bytes(source), max_pixels)
    if isinstance(source, str | os.PathLike):
        try:
            with open(source, "rb") as file:
                return open_image(file.read(), max_pixels)
        except OSError as error:
            raise UserError(f"cannot read the picture {os.fspath(source)}: {error.strerror}") from None
    array = np.asarray(source)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise UserError(
            f"a picture must be a PIL image, bytes, a path, or a uint8 array (H,W), (H,W,3) or (H,W,4); "
            f"got {type(source).__name__} {array.dtype} {tuple(array.shape)}"
        )
    picture = Image.fromarray(array.reshape(array.shape[:2]) if channels == 1 else array)
    check_size(picture, max_pixels)
    return picture


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """The same picture with 8 bits a channel."""
    if image.mode.startswith("I"):  # 16-bit grey, whatever the byte order
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).round().astype(np.uint8))
    return image


def _flatten(image: Image.Image, background: Color) -> Image.Image:
    """RGB; transparent pixels show `background`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return image.convert("RGB")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(image, mask=alpha)
        return canvas
    return image.convert("RGB")
