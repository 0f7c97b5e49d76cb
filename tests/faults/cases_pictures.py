"""Odd pictures."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.faults.case import CAPTION, Case

LEFT, RIGHT = (200, 30, 40), (20, 60, 190)


def halves(width=24, height=16):
    """A picture that is red on the left and blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = LEFT, RIGHT
    return Image.fromarray(pixels)


def encoded(picture, kind="PNG", **options):
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def noise(side=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *extra, depth=8, color=2, pixels=None):
    """A PNG put together by hand; without `pixels` its data are nearly empty."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"\0" * 64 if pixels is None else pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(extra)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def deep_rgb():
    row = (
        b"\0"
        + struct.pack(">3H", *(257 * c for c in LEFT)) * 12
        + struct.pack(">3H", *(257 * c for c in RIGHT)) * 12
    )
    return png(24, 16, depth=16, pixels=row * 16)


@functools.cache
def bomb():
    """100 MB of zeros in 100 kB."""
    return zlib.compress(bytes(100_000_000), 6)


def exif(orientation, damaged=False):
    """An EXIF block; `damaged` adds a tag whose value lies far behind its end."""
    tags = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)]
    if damaged:
        tags.append(struct.pack("<HHII", 0x9003, 2, 4000, 0x7FFFFFF0))
        tags.append(struct.pack("<HHII", 0xA005, 77, 0xFFFFFFFF, 9))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + b"\0\0\0\0"


def cut(data, share):
    return data[: int(len(data) * share)]


def flipped(data):
    """Bytes in the middle of a JPEG's scan turned over."""
    middle = len(data) * 2 // 3
    return (
        data[:middle]
        + bytes(b ^ 0x55 if b not in (0, 255) else b for b in data[middle : middle + 9])
        + data[middle + 9 :]
    )


def is_halves(image, caption, tolerance=6):
    for color, part in ((LEFT, image[:, :, :3]), (RIGHT, image[:, :, -3:])):
        mean = part.float().mean((1, 2))
        assert all(abs(m - c) <= tolerance for m, c in zip(mean.tolist(), color, strict=True)), (color, mean)


def is_close(image, caption):
    is_halves(image, caption, tolerance=14)


def is_upright(image, caption):
    """Turned by 90 degrees: red on top."""
    is_close(image.transpose(1, 2), caption)


def is_plain(color, tolerance=2):
    def check(image, caption):
        low, high = image.amin((1, 2)).tolist(), image.amax((1, 2)).tolist()
        assert all(
            abs(v - c) <= tolerance for ends in (low, high) for v, c in zip(ends, color, strict=True)
        ), (low, high)

    return check


def is_a_picture(image, caption):
    assert image.shape == (3, 8, 8)


def case(fault, extension, make, *rest):
    return Case(fault, lambda: {extension: make(), "txt": CAPTION}, *rest)


def frames(kind):
    others = [Image.new("RGB", (24, 16), c) for c in ("white", "black")]
    more = {"lossless": True} if kind == "WEBP" else {}
    return encoded(halves(), kind, save_all=True, append_images=others, **more)


def see_through():
    picture = halves().convert("RGBA")
    picture.paste((255, 255, 255, 0), (0, 0, 12, 16))
    return encoded(picture.quantize(16), "PNG")


CASES = [
    case("JPEG cut off in its pixels", "jpg", lambda: cut(encoded(noise(), "JPEG"), 0.6), "image-truncated"),
    case("JPEG cut off in its header", "jpg", lambda: encoded(noise(), "JPEG")[:60], "image-unreadable"),
    case("PNG cut off", "png", lambda: cut(encoded(noise()), 0.5), "image-truncated"),
    case("GIF cut off", "gif", lambda: cut(encoded(noise(), "GIF"), 0.5), "image-truncated"),
    case("WebP cut off", "webp", lambda: cut(encoded(noise(), "WEBP"), 0.5), "image-unreadable"),
    case("TIFF cut off", "tif", lambda: cut(encoded(noise(), "TIFF"), 0.5), "image-truncated"),
    case("picture of zero bytes", "jpg", lambda: b"", "image-empty"),
    Case("no picture at all", lambda: {"txt": CAPTION}, "image-missing"),
    case("text called .png", "png", lambda: b"a caption, not a picture", "image-unreadable"),
    case("an error page in HTML called .jpg", "jpg", lambda: b"<!doctype html><title>404",
         "image-unreadable"),
    case("SVG called .png", "png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image-unreadable"),
    case("PostScript called .jpg", "jpg", lambda: encoded(halves(), "EPS"), "image-unreadable"),
    case("a PNG called .jpg", "jpg", lambda: encoded(halves()), "", "the picture", is_halves),
    case("a JPEG called .png", "png", lambda: encoded(halves(), "JPEG", quality=95), "", "the picture",
         is_close),
    Case("two pictures in a sample, .png and .jpg",
         lambda: {"png": encoded(Image.new("RGB", (9, 9))), "jpg": encoded(halves()), "txt": CAPTION},
         "", "the .jpg", is_halves),
    case("CMYK JPEG", "jpg", lambda: encoded(halves().convert("CMYK"), "JPEG", quality=95), "", "RGB",
         is_close),
    case("16-bit grey PNG", "png", lambda: encoded(Image.fromarray(np.full((16, 24), 25_700, np.uint16))), "",
         "8 bits by 1/257, not clipped", is_plain((100, 100, 100))),
    case("16-bit RGB PNG", "png", deep_rgb, "", "8-bit RGB", is_halves),
    case("floating-point TIFF with NaN", "tif",
         lambda: encoded(Image.fromarray(np.full((16, 24), np.nan, np.float32)), "TIFF"), "",
         "values clipped to 0..255, NaN black", is_plain((0, 0, 0))),
    case("1-bit PNG", "png", lambda: encoded(Image.new("1", (24, 16), 1)), "", "black and white RGB",
         is_plain((255,) * 3)),
    case("palette with transparency", "png", see_through, "", "laid over the background",
         lambda image, _: is_plain((255, 255, 255), 8)(image[:, :, :3], "")),
    case("animated GIF", "gif", lambda: frames("GIF"), "", "its first frame", is_close),
    case("animated PNG", "png", lambda: frames("PNG"), "", "its first frame", is_halves),
    case("animated WebP", "webp", lambda: frames("WEBP"), "", "its first frame", is_close),
    case("TIFF of several pages", "tif", lambda: frames("TIFF"), "", "its first page", is_halves),
    case("1 x 1 picture", "png", lambda: encoded(Image.new("RGB", (1, 1), LEFT)), "", "one colour",
         is_plain(LEFT)),
    case("picture 1 pixel high, 20,000 wide", "png", lambda: encoded(halves(20_000, 1)), "",
         "resized like any other",
         is_halves),
    case("PNG of 0 x 0 pixels", "png", lambda: png(0, 0), "image-unreadable"),
    case("PNG of 50,000 x 50,000 pixels in 100 bytes", "png", lambda: png(50_000, 50_000), "image-too-large"),
    case("PNG of 9,000 x 9,000 pixels in 100 bytes", "png", lambda: png(9_000, 9_000), "image-too-large"),
    case("GIF that claims 65,535 x 65,535 pixels", "gif",
         lambda: b"GIF89a" + b"\xff" * 4 + b"\0\0\0," + bytes(4) + b"\xff" * 4 + b"\0\2\2D\1\0;",
         "image-too-large"),
    case("PNG whose colour profile unpacks to 100 MB", "png",
         lambda: png(24, 16, chunk(b"iCCP", b"x\0\0" + bomb())), "image-unreadable"),
    case("PNG whose text chunk unpacks to 100 MB", "png",
         lambda: png(24, 16, chunk(b"zTXt", b"x\0\0" + bomb())), "image-unreadable"),
    case("PNG whose pixel data unpack to 100 MB more than its size needs", "png",
         lambda: png(24, 16)[:33] + chunk(b"IDAT", bomb()) + chunk(b"IEND", b""), "",
         "the pixels of its size",
         is_plain((0, 0, 0))),
    case("PNG with a wrong checksum", "png", lambda: encoded(noise()).replace(b"IEND", b"IEMD"), "",
         "the picture: its pixels are whole", is_a_picture),
    case("PNG with flipped pixel data", "png", lambda: flipped(encoded(noise())), "image-unreadable"),
    case("JPEG with flipped bytes in its scan", "jpg", lambda: flipped(encoded(noise(), "JPEG")), "",
         "what the decoder makes of it: JPEG has no checksum", is_a_picture),
    case("EXIF orientation", "jpg", lambda: encoded(halves(), "JPEG", quality=95, exif=exif(6)), "",
         "turned upright",
         is_upright),
    case("EXIF orientation in a damaged EXIF block", "jpg",
         lambda: encoded(halves(), "JPEG", quality=95, exif=exif(6, damaged=True)), "", "turned upright",
         is_upright),
    case("EXIF of nonsense", "jpg", lambda: encoded(halves(), "JPEG", quality=95,
         exif=b"Exif\0\0MM\xff\xff" + b"\xff" * 40),
         "", "the picture as it lies", is_close),
    case("EXIF orientation 99", "jpg", lambda: encoded(halves(), "JPEG", quality=95, exif=exif(99)), "",
         "the picture as it lies", is_close),
]  # fmt: skip
