"""Small clips, sounds and pictures in shards: a square of a colour moves to a tone of a pitch."""

import io
import random
from fractions import Fraction

import av
import numpy as np
import soundfile
from PIL import Image, ImageDraw

from mmvit.data.text_words import WordTokenizer
from mmvit.data.write import ShardWriter

RATE, FPS, SIDE, SECONDS = 8000, 8, 32, 1.25
# colour -> (RGB, pitch in Hz)
THINGS = {
    "red": ((220, 30, 30), 300),
    "green": ((30, 180, 40), 700),
    "blue": ((40, 60, 220), 1500),
    "black": ((10, 10, 10), 2900),
}
WORDS = ["a", "square", "tone", "moves", "sounds", "still", *THINGS]


def tone(rng, color):
    """(S,) float32: the colour's pitch at a random phase."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    return (0.4 * np.sin(2 * np.pi * (THINGS[color][1] * time + rng.random()))).astype(np.float32)


def frames(rng, color, count):
    """A square that moves to the right by a pixel a frame."""
    x, y = rng.randrange(0, 12), rng.randrange(0, 16)
    for i in range(count):
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        box = [x + i, y, x + i + 9, y + 12]
        ImageDraw.Draw(picture).rectangle(box, fill=THINGS[color][0])
        yield picture


def movie(rng, color, sound):
    """Bytes of an mp4 with or without a sound stream."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=FPS)
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for picture in frames(rng, color, int(FPS * SECONDS)):
            container.mux(video.encode(av.VideoFrame.from_image(picture)))
        container.mux(video.encode())
        if audio is not None:
            wave = av.AudioFrame.from_ndarray(tone(rng, color)[None], format="fltp", layout="mono")
            wave.sample_rate, wave.pts, wave.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(audio.encode(wave))
            container.mux(audio.encode())
    return out.getvalue()


def sound(rng, color):
    """Bytes of a wav."""
    out = io.BytesIO()
    soundfile.write(out, tone(rng, color), RATE, format="WAV")
    return out.getvalue()


def picture(rng, color):
    """Bytes of a png."""
    out = io.BytesIO()
    next(frames(rng, color, 1)).save(out, "png")
    return out.getvalue()


def build(out):
    """Fills a folder: clips/ (one broken), silent/, unnamed/ without text, sounds/, stills/, tokenizer/."""
    rng = random.Random(0)
    makers = {
        "clips": (lambda c: {"mp4": movie(rng, c, True), "txt": f"a {c} square moves"}, 24),
        "silent": (lambda c: {"mp4": movie(rng, c, False), "txt": f"a {c} square moves"}, 9),
        "unnamed": (lambda c: {"mp4": movie(rng, c, True)}, 9),
        "sounds": (lambda c: {"wav": sound(rng, c), "txt": f"a {c} tone sounds"}, 13),
        "stills": (lambda c: {"png": picture(rng, c), "txt": f"a still {c} square"}, 13),
    }
    for name, (make, count) in makers.items():
        with ShardWriter(out / name / name, 7) as writer:
            for i in range(count):
                color = list(THINGS)[i % 4]
                members = make(color) | {"json": {"label": color}}
                if (name, i) == ("clips", 5):
                    members["mp4"] = members["mp4"][:200]
                writer.write(f"{name}{i:04d}", members)
    WordTokenizer(WORDS, context_length=6).save(out / "tokenizer")
    return out
