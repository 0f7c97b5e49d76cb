"""Both sides of reading a window of a clip: ours, and loops over PyAV as one writes them by hand.

Shape letters: T frames, H/W pixels, S samples of sound. All of them use one thread and convert in the same
way: frames to RGB by FFmpeg, resized and cropped by Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmvit.data.clip import ClipPreprocess
from mmvit.data.media import TOLERANCE, Container

# (file, second at which the window begins) -> (3,T,H,W) uint8, (S,) float32 or None, frames that were decoded
Reader = Callable[[bytes, float], tuple[Tensor, Tensor | None, int]]
Timed = list[tuple[float, NDArray[np.uint8]]]


def ours(preprocess: ClipPreprocess, sound: bool) -> Reader:
    """What loaders read with."""
    seen, heard = preprocess.video, preprocess.audio
    assert seen is not None
    assert heard is not None

    def read(data: bytes, start: float) -> tuple[Tensor, Tensor | None, int]:
        with Container(data) as file:
            video = seen.window(file, start)
            audio = heard.window(file, start) if sound else None
            return video, audio, file.frames_decoded

    return read


def every_frame(preprocess: ClipPreprocess, sound: bool) -> Reader:
    """Decodes all frames of the file to RGB and then takes those of the window."""

    def frames(file: Any, first: float, last: float) -> tuple[Timed, int]:
        found = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
        return found, len(found)

    return _by_hand(preprocess, sound, frames)


def up_to_the_end(preprocess: ClipPreprocess, sound: bool) -> Reader:
    """Seeks, decodes up to the window's end, and turns what is in the window to RGB."""

    def frames(file: Any, first: float, last: float) -> tuple[Timed, int]:
        stream, found, count = file.streams.video[0], [], 0
        file.seek(int(first / stream.time_base), stream=stream)
        for frame in file.decode(stream):
            count += 1
            if frame.time > last + TOLERANCE:
                break
            if frame.time >= first - 1 / stream.average_rate:
                found.append((frame.time, frame.to_ndarray(format="rgb24")))
        return found, count

    return _by_hand(preprocess, sound, frames)


def _by_hand(
    preprocess: ClipPreprocess, sound: bool, frames: Callable[[Any, float, float], tuple[Timed, int]]
) -> Reader:
    """A reader around the part that decodes frames between two seconds."""
    seen = preprocess.video
    assert seen is not None

    def read(data: bytes, start: float) -> tuple[Tensor, Tensor | None, int]:
        times = start + np.arange(seen.frames) / seen.fps
        with av.open(io.BytesIO(data)) as file:
            file.streams.video[0].thread_type = "NONE"
            found, count = frames(file, times[0], times[-1])
            stamps = np.array([time for time, _ in found])
            taken = np.searchsorted(stamps, times + TOLERANCE, side="right") - 1
            pictures = [_resized(found[max(0, i)][1], seen.size) for i in taken]
            video = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).contiguous()
            return video, _sound(file, preprocess, start) if sound else None, count

    return read


def _resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H,W,3): the short side to that of `size`, then the middle."""
    height, width = size
    image = Image.fromarray(picture)
    factor = max(height / image.height, width / image.width)
    goal = max(width, int(image.width * factor)), max(height, int(image.height * factor))
    image = image.resize(goal, Image.Resampling.BICUBIC)
    left, top = round((goal[0] - width) / 2), round((goal[1] - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _sound(file: Any, preprocess: ClipPreprocess, start: float) -> Tensor:
    """(S,) float32: all of the file's sound is decoded, the window cut out and resampled."""
    from torchaudio.functional import resample

    heard = preprocess.audio
    assert heard is not None
    file.seek(0)
    blocks = [(frame.time, frame.to_ndarray()) for frame in file.decode(audio=0)]
    rate = file.streams.audio[0].rate
    whole = np.concatenate([block for _, block in blocks], axis=1).mean(0)
    first = round((start - blocks[0][0]) * rate)
    cut = whole[max(0, first) : first + round(heard.seconds * rate)]
    return resample(torch.from_numpy(cut), rate, heard.sample_rate)[: heard.samples]
