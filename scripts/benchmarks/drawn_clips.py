"""Drawn clips that cost what filmed ones cost a decoder: a view wanders over a texture, noise is heard."""

from __future__ import annotations

import io
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.photos import texture
from mmvit.data.write import ShardWriter

FPS = 25
RATE = 44_100  # of the sound, in Hz
DRIFT = 2  # pixels that the window moves between two frames, at most


def clip(seed: int, seconds: float, size: tuple[int, int]) -> bytes:
    """An MP4: H.264 as x264 makes it unless told otherwise (a key frame in 250), and AAC, mono.

    Args:
        seed: of what is seen and heard.
        seconds: length.
        size: (height, width) of a frame, in pixels.
    """
    rng, place = np.random.default_rng(seed), random.Random(seed)
    height, width = size
    frames = round(seconds * FPS)
    ground = texture(rng, max(height, width) + DRIFT * frames)
    steps = [place.uniform(0, DRIFT) for _ in range(2)]
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=FPS, options={"threads": "1"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = file.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
        for i in range(frames):
            y, x = (int(i * step) for step in steps)
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(ground[y : y + height, x : x + width]), format="rgb24"
            )
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        heard = 0.1 * rng.standard_normal((1, round(seconds * RATE))).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(heard, format="fltp", layout="mono")
        sound.rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        file.mux(audio.encode(sound))
        file.mux(audio.encode(None))
    return data.getvalue()


def write_shards(folder: Path, movies: list[bytes], samples: int, words: tuple[str, ...]) -> None:
    """Nothing; writes FOLDER/shards with `samples` clips, the movies in turn, each captioned."""
    place = random.Random(0)
    with ShardWriter(folder / "shards" / "drawn", 64) as writer:
        for i in range(samples):
            caption = " ".join(place.choices(words, k=6))
            writer.write(f"drawn{i:06d}", {"mp4": movies[i % len(movies)], "txt": caption})
