"""Described pictures: a cut-out before a coloured ground, while a synthesised voice says what is there.

Place in the path: corpus builder, optional part `described`; one picture of 112 px and at most two seconds
of sound. Objects of the tests are new, the eight colours are not, so that a new picture and its description
share a word that can be seen and heard. Voices differ between the splits. Source of the idea: Harwath et al.
2016, Unsupervised learning of spoken language with visual context. Differs: the caption is synthesised.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpus.clips import RATE, SIZE, frames
from corpus.cutouts import CutOut, cut_outs
from corpus.fetch import Fetched
from corpus.narrated import NARRATORS, chosen, facts_of, manner_of, narration, noun_of, usable
from corpus.parts import Job
from corpus.scenes import backdrop
from corpus.scratch import backgrounds
from corpus.sounds import wav_bytes
from corpus.speech import Program
from corpus.words import HeldOut, words_of

COUNTS = {"train": 2000, "val": 160, "test_style": 304, "test_concept": 304}  # multiples of eight
# Colours of the ground: what the darkest and the lightest place of a background become, RGB.
COLORS = {
    "red": ((110, 0, 5), (255, 70, 60)),
    "yellow": ((150, 120, 0), (255, 235, 80)),
    "green": ((0, 70, 10), (90, 220, 90)),
    "blue": ((0, 10, 110), (80, 140, 255)),
    "purple": ((60, 0, 100), (180, 90, 240)),
    "pink": ((180, 70, 130), (255, 190, 220)),
    "white": ((205, 205, 205), (255, 255, 255)),
    "black": ((0, 0, 0), (55, 55, 55)),
}


def jobs(out: Path, espeak: Program, title: str, scratch: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """The pictures of every split: colours in equal numbers, objects and backgrounds of the split."""
    listed = []
    for split, places in backgrounds(folder, held).items():
        objects = [cut for cut in cut_outs(out, split) if colorless(cut.label, held, split)]
        order = chosen(objects, random.Random(f"described {split}"))
        for index in range(COUNTS[split] if objects and places else 0):
            cut, color = next(order), list(COLORS)[index % len(COLORS)]
            key = f"{split}-{index:05d}"
            draw = random.Random(f"describe {key}")
            place, voice = draw.choice(places), draw.choice(NARRATORS[split])
            texts = wordings(cut.label, color, draw)
            facts = facts_of(cut, split, (scratch, title), place, voice, texts, {"color": color}, {})
            work = (key, color, str(place), cut, espeak, texts[0], voice, manner_of(split, draw))
            listed.append(Job(key, split, texts[0], facts, work))
    return listed


def colorless(label: str, held: HeldOut, split: str) -> bool:
    """True for a label that `narrated` could use, too, and that speaks of no colour."""
    return usable(label, held, split) and not COLORS.keys() & set(words_of(label))


def wordings(label: str, color: str, draw: random.Random) -> list[str]:
    """Three ways to say it, the spoken one first."""
    noun, be = noun_of(label)
    ways = [f"{label} on {color}", f"{noun} on {color}", f"here {be} {noun} on {color}"]
    draw.shuffle(ways)
    return ways


def tinted(ground: np.ndarray, color: str) -> np.ndarray:
    """A background (H,W,3) uint8 in shades of one colour: its lightest place light, its darkest dark."""
    light = ground.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    light = (light - light.min()) / max(float(np.ptp(light)), 1.0)
    dark, bright = np.float32(COLORS[color])
    return np.round(dark + (bright - dark) * light[..., None]).astype(np.uint8)


def make(work: tuple[str, str, str, CutOut, Program, str, str, tuple[int, int]]) -> dict[str, Any] | str:
    """`png`, `wav` and the JSON's box; or why not."""
    key, color, path, cut, espeak, text, voice, manner = work
    spoken = narration(espeak, text, voice, manner)
    if isinstance(spoken, str):
        return spoken
    draw = random.Random(f"picture described {key}")
    image = Image.open(io.BytesIO(cut.png)).convert("RGBA")
    pictures, boxes = frames(image, "standing still", tinted(backdrop(path, SIZE, draw), color), draw)
    png = io.BytesIO()
    Image.fromarray(pictures[0]).save(png, "PNG")
    return {"png": png.getvalue(), "wav": wav_bytes(spoken, RATE), "json": {"box": boxes[0]}}
