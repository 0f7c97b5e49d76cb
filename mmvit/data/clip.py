"""The media members of a sample -> its clip and its sound, cut to the same seconds.

Place in the path: inside `Decoder`; `ClipPreprocess` is also what a saved model of video and sound carries.
Shape letters: T frames, H/W pixels, S samples, V views.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mmvit.data.audio import AudioAugment, AudioPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.media import VIDEOS, Container
from mmvit.data.pixels import BadSample
from mmvit.data.video import ClipAugment, Frames, VideoPreprocess, crop_places, spread
from mmvit.data.waveform import SOUNDS, Sound, open_sound
from mmvit.errors import UserError, nearest, need


@dataclass(frozen=True, kw_only=True)
class ClipPreprocess:
    """How a model of video and sound takes its inputs; both begin at the same second.

    Attributes:
        video: None where pictures do not move.
        audio: None where nothing is heard.
    """

    video: VideoPreprocess | None = None
    audio: AudioPreprocess | None = None

    def __post_init__(self) -> None:
        if self.video is None and self.audio is None:
            raise UserError("a clip needs a preprocessing of video, of audio, or of both")

    @property
    def image(self) -> ImagePreprocess:
        """How still pictures are treated beside clips."""
        if self.video is None:
            raise UserError("this preprocessing is of sound only: it says nothing of pictures")
        return self.video.image

    @property
    def seconds(self) -> float:
        """Length of the longer window."""
        return max(part.seconds for part in (self.video, self.audio) if part is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to preprocess.json."""
        return {
            "video": self.video.to_dict() if self.video else None,
            "audio": self.audio.to_dict() if self.audio else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClipPreprocess:
        """The preprocessing that `to_dict` described.

        Raises:
            UserError: an unknown or ill-typed field; the message names the nearest valid one.
        """
        kinds: dict[str, Any] = {"video": VideoPreprocess, "audio": AudioPreprocess}
        parts: dict[str, Any] = {}
        for name, content in data.items():
            if name not in kinds:
                raise UserError(f"preprocess.json: unknown field {name!r}: {nearest(name, kinds)}")
            if content is None:
                continue
            if not isinstance(content, Mapping):
                raise UserError(f"preprocess.json: {name} must be an object, got {content!r}")
            known = [f.name for f in fields(kinds[name])]
            for key in content:
                if key not in known:
                    raise UserError(f"preprocess.json: unknown field {name}.{key}: {nearest(key, known)}")
            try:
                parts[name] = kinds[name](**content)
            except TypeError as error:
                raise UserError(f"preprocess.json: {name}: {error}") from None
        return cls(**parts)

    def fingerprint(self) -> str:
        """64 hex digits of the fields that differ from their defaults: later ones change nothing."""
        parts = {"video": self.video, "audio": self.audio}
        said = {name: _changed(part) for name, part in parts.items() if part is not None}
        return hashlib.sha256(json.dumps({"clip": said}, sort_keys=True).encode()).hexdigest()


def _changed(part: VideoPreprocess | AudioPreprocess) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    values = {field: getattr(part, field.name) for field in fields(part)}
    return {field.name: value for field, value in values.items() if value != field.default}


@dataclass(frozen=True, slots=True)
class Clip:
    """What was cut out of a sample's media.

    Attributes:
        video: (3,T,H,W) uint8, or (V,3,T,H,W) of several views; None where the sample has none.
        audio: (S,) or (T,M) float32, with V in front of several views; None where the sample has none.
        start: second at which the (first) window begins.
        seconds: length of a window.
        total: seconds that the media last, 0 where the sample has none; what a window holds behind that is
            filled by the rules of the preprocessing.
    """

    video: Tensor | None
    audio: Tensor | None
    start: float
    seconds: float
    total: float


@dataclass(frozen=True, kw_only=True)
class ClipReader:
    """Reads one window, or several views, of a sample's media.

    Attributes:
        preprocess: what is wanted of video and sound.
        video, audio: whether each is wanted at all.
        optional: of these two, what may be missing.
        random_start: training: the window begins anywhere, drawn evenly; else windows are spread evenly.
        augment, audio_augment: random views and noise, for training.
        views: windows.
        crops: places along the long side, for every window of the video.
    """

    preprocess: ClipPreprocess
    video: bool = True
    audio: bool = True
    optional: tuple[str, ...] = ()
    random_start: bool = False
    augment: ClipAugment | None = None
    audio_augment: AudioAugment | None = None
    views: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        for name in ("video", "audio"):
            if getattr(self, name) and getattr(self.preprocess, name) is None:
                raise UserError(
                    f"the field {name!r} needs a preprocessing of {name}: clip=ClipPreprocess({name}=…)"
                )
        # Forked workers inherit them, and what is not installed is said once, before they start.
        for module in ("av", "soundfile", "torchaudio") if self.audio else ("av",):
            need(module)
        if self.views < 1 or self.crops < 1:
            raise UserError(f"views={self.views} and crops={self.crops} must be at least 1")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Field -> shape of one sample."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.video and self.preprocess.video is not None:
            shapes["video"] = (*self._front(self.views * self.crops), *self.preprocess.video.shape)
        if self.audio and self.preprocess.audio is not None:
            shapes["audio"] = (*self._front(self.views), *self.preprocess.audio.shape)
        return shapes

    def __call__(self, raw: Mapping[str, bytes], meta: Mapping[str, Any], rng: random.Random) -> Clip:
        """The clip and the sound of a sample.

        Args:
            raw: members by extension.
            meta: the JSON; "fps" is the rate of sequences of pictures.
            rng: all chance comes from here.

        Raises:
            BadSample: what is required is missing, or cannot be decoded.
        """
        start, view, noise = (
            rng.random(),
            random.Random(rng.getrandbits(64)),
            random.Random(rng.getrandbits(64)),
        )
        with ExitStack() as stack:
            frames = self._frames(raw, meta, stack) if self.video else None
            sound = self._sound(raw, frames, stack) if self.audio else None
            lengths = [part.seconds for part in (frames, sound) if part is not None]
            if not lengths:
                return Clip(None, None, 0.0, self.preprocess.seconds, 0.0)
            total, window = lengths[0], self.preprocess.seconds
            starts = spread(total, window, self.views)
            if self.random_start:
                starts = [start * max(0.0, total - window)]
            video = self._cut_video(frames, starts, view) if frames is not None else None
            audio = self._cut_audio(sound, starts, noise) if sound is not None else None
            return Clip(video, audio, starts[0], window, total)

    def _front(self, views: int) -> tuple[int, ...]:
        return (views,) if self.views * self.crops > 1 else ()

    def _frames(self, raw: Mapping[str, bytes], meta: Mapping[str, Any], stack: ExitStack) -> Frames | None:
        assert self.preprocess.video is not None
        try:
            opened = stack.enter_context(self.preprocess.video.open_members(raw, meta))
            if isinstance(opened, Container) and not opened.has_video:
                raise BadSample("video-missing", "the file has no video stream")
            return opened
        except BadSample as bad:
            if bad.reason == "video-missing" and "video" in self.optional:
                return None
            raise

    def _sound(self, raw: Mapping[str, bytes], frames: Frames | None, stack: ExitStack) -> Sound | None:
        """The sample's sound: its own member, else the video's."""
        try:
            for extension in (*SOUNDS, *VIDEOS):
                if extension in raw and extension in SOUNDS:
                    return stack.enter_context(open_sound(raw[extension]))
                if extension in raw:
                    opened = frames if isinstance(frames, Container) else None
                    opened = opened or stack.enter_context(Container(raw[extension]))
                    if opened.has_sound:
                        return opened
                    raise BadSample("audio-missing", "the video has no sound")
            raise BadSample(
                "audio-missing", f"members: {', '.join(sorted(set(raw) - {'__key__'})) or 'none'}"
            )
        except BadSample as bad:
            if bad.reason == "audio-missing" and "audio" in self.optional:
                return None
            raise

    def _cut_video(self, frames: Frames, starts: list[float], rng: random.Random) -> Tensor:
        preprocess = self.preprocess.video
        assert preprocess is not None
        view = self.augment.draw(rng) if self.augment is not None else None
        clips = torch.cat(
            [preprocess.crops(frames, start, crop_places(self.crops), view) for start in starts]
        )
        return clips if self._front(len(clips)) else clips[0]

    def _cut_audio(self, sound: Sound, starts: list[float], rng: random.Random) -> Tensor:
        preprocess = self.preprocess.audio
        assert preprocess is not None
        cuts = [preprocess.window(sound, start, augment=self.audio_augment, rng=rng) for start in starts]
        return torch.stack(cuts) if self._front(len(cuts)) else cuts[0]
