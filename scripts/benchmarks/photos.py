"""Drawn pictures that cost what photographs cost a decoder, and shards of them that both sides read.

Source: natural pictures' amplitudes fall about as 1/f (Field 1987); here a little faster, as lenses soften.
"""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmvit.data.write import ShardWriter

SLOPE = 1.2
PER_BASE = 20  # pictures cut out of one texture
# Rows: luminance, warm-cold, green-magenta, each with its share of the contrast.
MIX = np.array([[1.0, 1.0, 1.0], [0.35, 0.0, -0.35], [0.15, -0.3, 0.15]])


def write_photos(folder: Path, captions: list[str], side: int = 512) -> int:
    """Mean bytes of a JPEG; writes one picture per caption into two shards FOLDER/photos-00000N.tar."""
    rng, place = np.random.default_rng(0), random.Random(0)
    total, base = 0, texture(rng, side)
    with ShardWriter(folder / "photos", -(-len(captions) // 2)) as writer:
        for i, caption in enumerate(captions):
            if i % PER_BASE == 0:
                base = texture(rng, 3 * side // 2)
            x, y = (place.randrange(side // 2) for _ in range(2))
            data = jpeg(base[y : y + side, x : x + side])
            writer.write(f"photo{i:06d}", {"jpg": data, "txt": caption})
            total += len(data)
    return total // len(captions)


def texture(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """(side,side,3) RGB noise whose amplitudes fall with frequency as those of photographs do."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    falls = np.where(f > 0, 1.0 / np.where(f > 0, f, 1.0) ** SLOPE, 0.0)
    planes = [
        np.fft.irfft2(np.exp(2j * np.pi * rng.random(f.shape)) * falls, s=(side, side)) for _ in range(3)
    ]
    values = np.stack([plane / plane.std() for plane in planes], -1)
    return np.clip(127 + 48 * (values @ MIX), 0, 255).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """The picture as JPEG of quality 90."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "jpeg", quality=90)
    return out.getvalue()
