"""Video -> (3,T,H,W) uint8: T frames at stated times, each treated as a picture.

Shape letters: T frames, H/W pixels, V views. Pixels stay 8-bit until the tower normalises them on its device.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmvit.data.image import FILTERS, ImagePreprocess
from mmvit.data.media import TOLERANCE, VIDEOS, Container
from mmvit.data.pixels import BadSample, as_image, load_rgb
from mmvit.data.video_augment import ClipAugment, ClipView
from mmvit.errors import UserError, nearest

_FRAME = re.compile(r"(\d+)\.(jpe?g|png|webp)")


class Frames(Protocol):
    """What frames can be taken from: a `Container`, or a `PictureSequence`."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""

    def pictures(self, times: Sequence[float]) -> Iterator[Image.Image]:
        """The RGB picture at each of the ascending times, in seconds."""


class PictureSequence:
    """Pictures at a fixed rate as a video.

    Args:
        pictures: PIL pictures, bytes, paths or uint8 arrays, in order.
        fps: pictures per second.
        preprocess: background and largest size of a picture.

    Raises:
        BadSample: video-empty without pictures, video-fps for a rate that is no positive number.
    """

    def __init__(self, pictures: Sequence[Any], fps: float, preprocess: ImagePreprocess):
        if not len(pictures):
            raise BadSample("video-empty", "no pictures")
        if not isinstance(fps, int | float) or not 0 < fps < math.inf:
            raise BadSample("video-fps", f"fps={fps!r}: a sequence of pictures needs its rate in the JSON")
        self._pictures = pictures
        self._fps = float(fps)
        self._preprocess = preprocess
        self.seconds = len(pictures) / self._fps

    def pictures(self, times: Sequence[float]) -> Iterator[Image.Image]:
        """The picture on the screen at each time; before the first the first, behind the last the last."""
        shown, picture = -1, None
        for time in times:
            i = min(max(math.floor((time + TOLERANCE) * self._fps), 0), len(self._pictures) - 1)
            if i != shown or picture is None:
                source = as_image(self._pictures[i], self._preprocess.max_pixels)
                shown, picture = i, load_rgb(source, self._preprocess.background)
            yield picture

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class VideoPreprocess:
    """What happens to a video before a tower sees it; the same for training, evaluation and the API.

    The k-th of T frames is the one on the screen at start + k / fps seconds, whatever the file's own rate:
    the last whose timestamp is at or before that (or up to 1 ms later).

    Attributes:
        size: (height, width) of the result in pixels.
        frames: T.
        fps: frames per second that are taken; the window lasts T / fps seconds.
        resize, interpolation, crop_fraction: as in `ImagePreprocess`.
        short: what fills the window behind the end: "repeat_last" the last frame, "loop" the video again.
        max_pixels: larger frames are refused before they are decoded.
    """

    size: tuple[int, int] = (224, 224)
    frames: int = 32
    fps: float = 10.0
    resize: Literal["squash", "shortest_crop", "pad", "pad_corner"] = "shortest_crop"
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    crop_fraction: float = 1.0
    short: Literal["repeat_last", "loop"] = "repeat_last"
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.image.size)
        if self.frames < 1 or not 0 < self.fps < math.inf:
            raise UserError(f"frames={self.frames} and fps={self.fps} must be above 0")
        if self.short not in ("repeat_last", "loop"):
            raise UserError(f"short={self.short!r}: {nearest(self.short, ('repeat_last', 'loop'))}")

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.frames / self.fps

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(3,T,H,W) of the result."""
        return (3, self.frames, *self.size)

    @property
    def image(self) -> ImagePreprocess:
        """How a single frame, or a still picture, is treated."""
        return ImagePreprocess(
            size=self.size,
            resize=self.resize,
            interpolation=self.interpolation,
            crop_fraction=self.crop_fraction,
            max_pixels=self.max_pixels,
        )

    def __call__(
        self,
        video: Any,
        start: float | None = None,
        *,
        crop: float = 0.5,
        augment: ClipAugment | None = None,
        rng: random.Random | None = None,
    ) -> Tensor:
        """(3,T,H,W) uint8 RGB of one window.

        Args:
            video: bytes, a path, or (frames, fps) with frames (T',H,W,3) uint8 or a list of pictures.
            start: second at which the window begins; None = the window in the middle.
            crop: which part resize="shortest_crop" keeps of the long side: 0 left or top, 0.5, 1 right or
                bottom.
            augment: a random view instead; all chance comes from `rng`.
            rng: needed by `augment`.

        Raises:
            BadSample: it cannot be decoded.
            UserError: a path that cannot be read, or another type.
        """
        with self.open(video) as frames:
            return self.window(frames, start, crop=crop, augment=augment, rng=rng)

    def views(self, video: Any, windows: int, crops: int = 1) -> Tensor:
        """(V,3,T,H,W) uint8, V = windows * crops: evenly spaced windows, each with its crops (first fastest).

        Raises:
            BadSample, UserError: as calling does; UserError also for several crops without "shortest_crop".
        """
        with self.open(video) as frames:
            starts = spread(frames.seconds, self.seconds, windows)
            return torch.cat([self.crops(frames, start, crop_places(crops)) for start in starts])

    def window(
        self,
        frames: Frames,
        start: float | None = None,
        *,
        crop: float = 0.5,
        augment: ClipAugment | None = None,
        rng: random.Random | None = None,
    ) -> Tensor:
        """As calling, of a video that is open."""
        view = augment.draw(rng or random.Random(0)) if augment is not None else None
        return self.crops(frames, start, (crop,), view)[0]

    def crops(
        self,
        frames: Frames,
        start: float | None,
        places: Sequence[float] = (0.5,),
        view: ClipView | None = None,
    ) -> Tensor:
        """(len(places),3,T,H,W) uint8 of one window; a frame is decoded once for all its crops."""
        if start is None:
            start = spread(frames.seconds, self.seconds, 1)[0]
        times = start + np.arange(self.frames) / self.fps
        if self.short == "loop" and frames.seconds > 0:
            times = np.maximum((times + TOLERANCE) % frames.seconds - TOLERANCE, 0.0)
        times, which = np.unique(times, return_inverse=True)
        image = self.image
        taken = list[np.ndarray]()  # (crops,H,W,3) of each time
        seen: Image.Image | None = None
        for picture in frames.pictures(times.tolist()):
            if picture is seen:
                taken.append(taken[-1])
                continue
            seen = picture
            cuts = [view.cut(picture, image)] if view else _place(picture, image, places)
            taken.append(np.stack([np.asarray(cut) for cut in cuts]))
        clips = torch.from_numpy(np.stack([taken[i] for i in which])).permute(1, 4, 0, 2, 3).contiguous()
        return clips if view is None else view.recolor(clips[0])[None]

    def open(self, video: Any) -> AbstractContextManager[Frames]:
        """The frames of a video in any form that calling takes, to be closed after use."""
        if isinstance(video, bytes | bytearray | memoryview | str | os.PathLike):
            return Container(
                bytes(video) if isinstance(video, bytearray | memoryview) else video, self.max_pixels
            )
        if not isinstance(video, tuple) or len(video) != 2:
            raise UserError(f"a video must be bytes, a path, or (frames, fps); got {type(video).__name__}")
        return PictureSequence(video[0], video[1], self.image)

    def open_members(
        self, raw: Mapping[str, bytes], meta: Mapping[str, Any]
    ) -> AbstractContextManager[Frames]:
        """The frames of a sample's members: KEY.mp4 …, or KEY.0000.jpg, KEY.0001.jpg … at the JSON's "fps".

        Raises:
            BadSample: video-missing, or it cannot be opened.
        """
        for extension in VIDEOS:
            if extension in raw:
                return Container(raw[extension], self.max_pixels)
        found = [(int(match[1]), name) for name in raw if (match := _FRAME.fullmatch(name))]
        if not found:
            raise BadSample(
                "video-missing", f"members: {', '.join(sorted(set(raw) - {'__key__'})) or 'none'}"
            )
        return PictureSequence([raw[name] for _, name in sorted(found)], meta.get("fps", 0), self.image)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to preprocess.json."""
        return asdict(self)


def _place(picture: Image.Image, image: ImagePreprocess, places: Sequence[float]) -> list[Image.Image]:
    """The picture at the result's size, once for every place of the crop."""
    if tuple(places) != (0.5,) and image.resize != "shortest_crop":
        raise UserError(f"crops at {list(places)} need resize='shortest_crop', this is '{image.resize}'")
    height, width = image.size
    goal = image.resized(*picture.size)
    if len(places) == 1 or goal[0] * goal[1] > 4 * width * height:  # slivers: only what is kept is computed
        return [image.apply(picture, place) for place in places]
    picture = picture.resize(goal, FILTERS[image.interpolation])
    corners = [(round((goal[0] - width) * p), round((goal[1] - height) * p)) for p in places]
    return [picture.crop((left, top, left + width, top + height)) for left, top in corners]


def is_frame(extension: str) -> bool:
    """Whether a member is one picture of a sequence: KEY.0007.jpg has the extension "0007.jpg"."""
    return _FRAME.fullmatch(extension) is not None


def spread(total: float, window: float, views: int) -> list[float]:
    """Starts in seconds of evenly spaced windows that cover `total`; one window lies in the middle."""
    room = max(0.0, total - window)
    if views == 1:
        return [room / 2]
    return [room * i / (views - 1) for i in range(views)]


def crop_places(crops: int) -> list[float]:
    """Where crops lie along the long side, 0..1; one lies in the middle."""
    return [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]
