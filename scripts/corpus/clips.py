"""Clips: a sounding object moves in one of twelve known ways over a background, with its own recording.

Place in the path: corpus builder, part `clips`. 16 frames of 112 px at 8 frames a second, H.264 and AAC. The
order of frames is the only cue between a motion and its reverse. The camera stands still and nothing bends:
it is no action recognition.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpus.cutouts import CutOut, box_of, cut_outs
from corpus.fetch import Fetched
from corpus.parts import Job
from corpus.scenes import backdrop
from corpus.scratch import backgrounds, label_of
from corpus.splits import SPLITS
from corpus.words import HeldOut
from mmvit.errors import need

SIZE, FRAMES, FPS, RATE = 112, 16, 8, 16_000
# With its look-ahead, x264 now and then gives other bytes for equal frames (it reads unwritten memory).
STEADY = "mbtree=0:rc-lookahead=0:scenecut=0:weightp=0"


@dataclass(frozen=True)
class Pose:
    """Where the object is: centre (x, y) and long side in frame widths, turn in degrees clockwise."""

    x: float = 0.5
    y: float = 0.5
    size: float = 0.5
    turn: float = 0.0


def _wave(t: float, cycles: float) -> float:
    return math.sin(2 * math.pi * cycles * t)


# Pose at time t in [0, 1]; the clip's own jitter is added to all poses alike.
MOTIONS: dict[str, Callable[[float], Pose]] = {
    "moving left to right": lambda t: Pose(x=0.22 + 0.56 * t),
    "moving right to left": lambda t: Pose(x=0.78 - 0.56 * t),
    "rising": lambda t: Pose(y=0.78 - 0.56 * t),
    "falling": lambda t: Pose(y=0.22 + 0.56 * t),
    "growing": lambda t: Pose(size=0.26 + 0.54 * t),
    "shrinking": lambda t: Pose(size=0.80 - 0.54 * t),
    "spinning clockwise": lambda t: Pose(turn=330 * t),
    "spinning counterclockwise": lambda t: Pose(turn=-330 * t),
    "bouncing": lambda t: Pose(y=0.70 - 0.38 * abs(_wave(t, 1.5))),
    "shaking": lambda t: Pose(x=0.5 + 0.07 * _wave(t, 4.5)),
    "swinging": lambda t: Pose(x=0.5 - 0.22 * math.sin(0.6 * _wave(t, 1.5)), turn=34 * _wave(t, 1.5)),
    "standing still": lambda t: Pose(),
}


def jobs(out: Path, fetched: Mapping[str, Fetched], folders: Mapping[str, Path], held: HeldOut) -> list[Job]:
    """Twelve clips for every stamp that has its own sound, over backgrounds of its split."""
    places = backgrounds(folders["scratch"], held)
    listed = []
    for split in SPLITS:
        for cut in cut_outs(out, split, ("stamps",)):
            for motion in MOTIONS if cut.wav is not None and places[split] else ():
                key = f"{cut.key}-{motion.replace(' ', '-')}"
                draw = random.Random(f"clip {key}")
                place = draw.choice(places[split])
                caption = f"{cut.label} {motion}"
                facts = {
                    "label": cut.label,
                    "motion": motion,
                    "texts": {"en": [caption]},
                    "background": label_of(place.stem),
                    "fps": FPS,
                    "frames": FRAMES,
                    "width": SIZE,
                    "height": SIZE,
                    "source": f"stamps/{cut.key}",
                    "package": " + ".join(sorted({cut.package, fetched["scratch"].title})),
                    "licence": " + ".join(sorted({cut.licence, fetched["scratch"].package.licence})),
                    "split": {"name": split, "by": "stamp family"},
                }
                listed.append(Job(key, split, caption, facts, (key, motion, str(place), cut)))
    return listed


def frames(
    cut: Image.Image, motion: str, ground: np.ndarray, draw: random.Random
) -> tuple[np.ndarray, list[list[int]]]:
    """The frames (16,112,112,3) uint8 of a motion, and the visible object's box xyxy in each."""
    shift_x, shift_y, scale = draw.uniform(-0.08, 0.08), draw.uniform(-0.08, 0.08), draw.uniform(0.85, 1.15)
    pictures, boxes = [], []
    for index in range(FRAMES):
        pose = MOTIONS[motion](index / (FRAMES - 1))
        side = pose.size * scale * SIZE / max(cut.size)
        size = (max(2, round(cut.width * side)), max(2, round(cut.height * side)))
        item = cut.convert("RGBa").resize(size, Image.Resampling.BICUBIC)
        if pose.turn:
            item = item.rotate(-pose.turn, Image.Resampling.BICUBIC, expand=True)
        layer = Image.new("RGBA", (SIZE, SIZE))
        left = round((pose.x + shift_x) * SIZE - item.width / 2)
        top = round((pose.y + shift_y) * SIZE - item.height / 2)
        layer.paste(item.convert("RGBA"), (left, top))
        pixels = np.asarray(layer)
        weight = pixels[..., 3:].astype(np.float32) / 255
        pictures.append(np.round(ground * (1 - weight) + pixels[..., :3] * weight).astype(np.uint8))
        boxes.append(box_of(pixels[..., 3] >= 128) or [0, 0, 0, 0])
    return np.stack(pictures), boxes


def soundtrack(wav: bytes) -> np.ndarray:
    """Two seconds of the object's own sound (16 kHz mono float32), repeated with pauses when it is short."""
    own = np.frombuffer(wav[44:], "<i2").astype(np.float32) / 32768
    track = np.zeros(FRAMES * RATE // FPS, np.float32)
    at = 0
    while at < len(track):
        piece = own[: len(track) - at]
        track[at : at + len(piece)] = piece
        at += len(own) + RATE // 4
    return track


def encode(pictures: np.ndarray, track: np.ndarray, *, coder: str = "twoloop") -> bytes:
    """An MP4 file: H.264 (yuv420p) at 8 fps and AAC at 16 kHz mono; the same input gives the same bytes.

    `coder` is the search of the AAC encoder: `fast` takes a fraction of the time of `twoloop`.
    """
    av = need("av")
    data = io.BytesIO()
    with av.open(data, "w", format="mp4", container_options={"fflags": "+bitexact"}) as file:
        video = file.add_stream(
            "libx264",
            rate=FPS,
            options={"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": STEADY},
        )
        video.width, video.height, video.pix_fmt = SIZE, SIZE, "yuv420p"
        audio = file.add_stream("aac", rate=RATE, layout="mono", options={"b": "48000", "aac_coder": coder})
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(track[None], format="fltp", layout="mono")
        sound.rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        file.mux(audio.encode(sound))
        file.mux(audio.encode(None))
    return data.getvalue()


def make(work: tuple[str, str, str, CutOut]) -> dict[str, Any] | str:
    """`mp4` and the JSON's per-frame boxes of one clip."""
    key, motion, path, cut = work
    draw = random.Random(f"move {key}")
    assert cut.wav is not None
    image = Image.open(io.BytesIO(cut.png)).convert("RGBA")
    ground = backdrop(path, SIZE, draw)
    pictures, boxes = frames(image, motion, ground, draw)
    return {"mp4": encode(pictures, soundtrack(cut.wav)), "json": {"boxes": boxes}}
