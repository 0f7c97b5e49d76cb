"""Container bytes -> frames by timestamp and sound by the sample; decodes no more than was asked for.

Place in the path: between the members of a sample and `video.py`, `audio.py`. Seconds count from the first
frame of the video (of the sound where there is no video), so that both streams share one clock, whatever
their start times. One thread; every failure is a `BadSample`, never an exception from a decoder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from mmvit.data.mp4 import claims_too_much
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError, need

VIDEOS = ("mp4", "webm", "ogv", "mkv", "mov", "avi", "m4v", "mpg", "mpeg")
TOLERANCE = 1e-3  # seconds: Matroska rounds timestamps to milliseconds
# Seconds of sound that are decoded before what is wanted: frames need their past, those of MP3 much of it.
_PREROLL, _PREROLL_MP3 = 0.2, 1.0
_GAP = 5e-3  # seconds: where timestamps differ by less, blocks of sound follow each other without a gap
_CUT = 0.5  # seconds that may be missing at the end of a file before it counts as truncated
# Playlists would open other files, images of one frame are pictures: neither belongs here.
_FORMATS = (
    "mov,matroska,webm,ogg,avi,mpeg,mpegts,flv,asf,gif,wav,flac,mp3,aac,aiff,caf,amr,w64,au,3gp,ivf,apng"
)


class Container:
    """An opened file of video, sound or both; use it in a `with`.

    Args:
        source: the file's bytes, or a path.
        max_pixels: frames of more pixels are refused before they are decoded.

    Attributes:
        seconds: length of the video, of the sound where there is no video.
        frames_decoded: how many frames were decoded so far.
        rate: of the sound in Hz, 0 without.

    Raises:
        BadSample: media-empty, media-unreadable, or video-too-large.
        UserError: a path that cannot be read.
    """

    def __init__(self, source: bytes | str | os.PathLike[str], max_pixels: int = 64_000_000):
        self._av = need("av")
        self._source = source
        self._max_pixels = max_pixels
        self.frames_decoded = 0
        # One for all frames: a frame's own would build its tables anew, which costs more than the decoding.
        self._to_rgb = self._av.video.reformatter.VideoReformatter()
        self._open()
        try:
            self._measure()
        except BaseException:
            self.close()
            raise

    @property
    def has_video(self) -> bool:
        """Whether there are moving pictures in it (cover art does not count)."""
        return self._video is not None

    @property
    def has_sound(self) -> bool:
        """Whether there is a stream of sound in it."""
        return self._audio is not None

    def close(self) -> None:
        """Nothing; lets go of the file and its decoders."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pictures(self, times: Sequence[float]) -> Iterator[Image.Image]:
        """For each time the upright RGB picture that is on the screen then: the last that began by then.

        A frame counts from 1 ms before its timestamp on; before the first frame the first is shown, behind
        the last the last. One picture object is repeated where a frame serves several times.

        Args:
            times: ascending, seconds.

        Raises:
            BadSample: video-missing, video-empty, video-damaged, or video-truncated: the file ends before a
                time that it claims to hold.
        """
        if self._video is None:
            raise BadSample("video-missing", "the file has no video stream")
        current, picture, k = None, None, 0
        for frame in self._from(self._video, times[0]):
            time = frame.time - self._zero
            while k < len(times) and current is not None and times[k] + TOLERANCE < time:
                picture = picture or self._picture(current)
                yield picture
                k += 1
            if k == len(times):
                return
            current, picture = frame, None
        self._check_end(self._video, times[-1], "video-truncated")
        if current is None:
            raise BadSample("video-empty", "no frame can be decoded")
        picture = picture or self._picture(current)
        for _ in range(k, len(times)):
            yield picture

    def read(self, first: int, count: int) -> np.ndarray:
        """(n,) float32 mono samples first..first+n-1, n <= count; less only where the sound ends.

        Sample 0 is that of second 0; the mean over channels; gaps are zeros.

        Raises:
            BadSample: audio-missing, audio-truncated, or audio-unreadable.
        """
        if self._audio is None:
            raise BadSample("audio-missing", "the file has no sound stream")
        out = np.zeros(count, dtype=np.float32)
        end, expected = 0, None
        mp3 = self._audio.codec_context.name.startswith("mp3")
        for frame in self._from(self._audio, first / self.rate, _PREROLL_MP3 if mp3 else _PREROLL):
            if frame.sample_rate != self.rate:
                raise BadSample("audio-unreadable", f"{self.rate} Hz turn into {frame.sample_rate} Hz")
            if frame.time is None and expected is None:
                continue
            at = expected
            if frame.time is not None:
                stamped = round((frame.time - self._zero) * self.rate) - first
                if at is None or abs(stamped - at) > _GAP * self.rate:
                    at = stamped
            assert at is not None
            expected = at + frame.samples
            if at >= count:
                end = count  # silence up to what comes later
                break
            if expected > 0:
                block = mono(frame.to_ndarray(), frame.format.name, len(frame.layout.channels))
                low, high = max(at, 0), min(expected, count)
                out[low:high] = block[low - at : high - at]
                end = max(end, high)
        else:
            if end < count:
                self._check_end(self._audio, (first + count) / self.rate, "audio-truncated")
        return out[:end]

    def _check_end(self, stream: Any, time: float, reason: str) -> None:
        """Nothing; raises BadSample where the file, read to its end, lacks a time that it claims to hold."""
        claimed, there = self._claimed, self._covered
        if "mp4" in self._container.format.name and stream.duration:  # says it of each stream
            own = float((stream.start_time or 0) + stream.duration) * float(stream.time_base) - self._zero
            claimed, there = min(claimed, own), self._reached.get(stream.index, 0.0)
            time = min(time, claimed)
        if time > there and there < claimed - _CUT:
            raise BadSample(reason, f"{claimed:.2f} s claimed, {there:.2f} s there")

    def _open(self) -> None:
        source: Any = self._source
        if isinstance(source, bytes | bytearray | memoryview):
            if not len(source):
                raise BadSample("media-empty", "0 bytes")
            source = io.BytesIO(source)
        elif not Path(source).is_file():
            raise UserError(f"cannot read the file {os.fspath(source)}: no such file")
        else:
            source = os.path.abspath(source)  # a relative name with a colon would be a protocol
        try:
            with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
                problem = claims_too_much(file)
                file.seek(0)
        except OSError as error:
            raise UserError(f"cannot read the file {source}: {error.strerror}") from None
        if problem:
            raise BadSample("media-unreadable", problem)
        try:
            self._container = self._av.open(source, options={"format_whitelist": _FORMATS})
        except Exception as error:  # demuxers raise anything on hostile bytes
            raise BadSample("media-unreadable", _said(error)) from None
        streams = self._container.streams
        self._video = next((s for s in streams.video if not _is_cover(s)), None)
        self._audio = streams.audio[0] if streams.audio else None
        self._fresh = True
        self._covered = 0.0
        self._reached = dict[int, float]()  # the same of each stream
        for stream in (self._video, self._audio):
            if stream is not None and stream.codec_context is None:
                kind = stream.type  # a closed file's streams must not be touched
                self.close()
                raise BadSample("media-unreadable", f"no decoder for its {kind}")
            if stream is not None:
                stream.thread_type = "NONE"
                stream.codec_context.thread_count = 1
        if self._video is not None:  # pictures may grow behind the header
            self._video.codec_context.options = {"max_pixels": str(self._max_pixels)}

    def _measure(self) -> None:
        """Nothing; sets the clock's zero, the length and the rate."""
        if self._video is not None:
            width, height = self._video.codec_context.width, self._video.codec_context.height
            if width * height > self._max_pixels:
                raise BadSample("video-too-large", f"{width} x {height}, at most {self._max_pixels} pixels")
        self.rate = int(self._audio.codec_context.sample_rate or 0) if self._audio is not None else 0
        if self._audio is not None and not 1000 <= self.rate <= 768_000:
            raise BadSample("audio-unreadable", f"{self.rate} Hz")
        main = self._video or self._audio
        if main is None:
            raise BadSample("media-unreadable", "no stream of video or sound")
        base, name = float(main.time_base or 0), self._container.format.name
        self._zero = (main.start_time or 0) * base
        lasts = main.duration * base if main.duration and name != "mpeg" else None  # there it is a guess
        begin = (self._container.start_time or 0) / self._av.time_base
        whole = (self._container.duration or 0) / self._av.time_base
        self._claimed = begin + whole - self._zero
        exact = "mp4" in name or name == "mp3"
        if self._claimed <= 0 or (begin > 0.1 and not exact):  # some count it from the clock's zero
            self._claimed = self._reach()
        self.seconds = max(0.0, self._claimed if lasts is None else lasts)

    def _reach(self) -> float:
        """Where the last packet ends, of a file that does not say how long it is; nothing is decoded."""
        self._seek(self._video or self._audio, self._claimed)
        for _ in self._packets():
            pass
        if not self._covered:  # no way to its end but through the whole file
            self._reopen()
            for _ in self._packets():
                pass
        return self._covered

    def _from(self, stream: Any, time: float, early: float = 0.0) -> Iterator[Any]:
        """Frames of a stream from the last that began `early` seconds before `time` on, or from sooner."""
        video, starts = stream is self._video, (stream.start_time or 0) * float(stream.time_base or 0)
        self._seek(stream, time - early)  # may open the file again: another object then is the stream
        sought = time > 0
        for frame in self._decode(self._video if video else self._audio):
            begins = None if frame.time is None else frame.time - self._zero
            if sought and begins is not None and begins > max(time, starts - self._zero) + TOLERANCE:
                self._reopen()  # the file's index lies
                yield from self._decode(self._video if video else self._audio)
                return
            sought = False
            yield frame

    def _decode(self, stream: Any) -> Iterator[Any]:
        """The frames of a stream from here on; damaged packets are passed over."""
        video, last, index = stream is self._video, None, stream.index
        for packet in self._packets():
            if packet.stream.index != index:
                continue
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                continue
            except MemoryError:
                raise BadSample("video-too-large", "no memory for a frame") from None
            for frame in frames:
                if video:
                    self.frames_decoded += 1
                    if frame.pts is None:
                        frame.pts = frame.dts if frame.dts is not None else (last or 0) + self._step()
                    last = frame.pts
                yield frame

    def _packets(self) -> Iterator[Any]:
        """The packets of all streams from here on, and notes how far the file reaches."""
        self._fresh = False
        ticks = dict[int, float]()  # seconds of a tick of each stream: asking every packet is slow
        try:
            for packet in self._container.demux():
                index, time = packet.stream.index, packet.pts
                if index not in ticks:
                    ticks[index] = float(packet.time_base or 0)
                if time is not None and ticks[index]:
                    end = (time + (packet.duration or 0)) * ticks[index] - self._zero
                    self._covered = max(self._covered, end)
                    self._reached[index] = max(self._reached.get(index, 0.0), end)
                yield packet
        except (self._av.FFmpegError, IndexError):
            return  # the file breaks off here; or, at its end, it had more streams than its header named

    def _step(self) -> int:
        """Ticks between two frames, for files without timestamps."""
        video: Any = self._video
        rate = video.average_rate or video.guessed_rate or 25
        return max(1, round(1 / float(rate) / float(video.time_base)))

    def _seek(self, stream: Any, time: float) -> None:
        """Nothing; the next packets begin at or before `time`."""
        if self._fresh and time <= 0:
            return
        try:
            ticks = int((max(time, 0.0) + self._zero) / float(stream.time_base))
            self._container.seek(ticks, stream=stream)
            self._fresh = False
        except self._av.FFmpegError:
            self._reopen()

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _picture(self, frame: Any) -> Image.Image:
        """The frame as an upright RGB picture."""
        if frame.is_corrupt:
            raise BadSample("video-damaged", f"the frame at {frame.time - self._zero:.3f} s")
        if frame.width * frame.height > self._max_pixels:
            raise BadSample("video-too-large", f"{frame.width} x {frame.height}")
        try:
            rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1)
            picture = Image.fromarray(rgb.to_ndarray())
        except (self._av.FFmpegError, ValueError, MemoryError) as error:
            raise BadSample("video-damaged", _said(error)) from None
        turns = round(frame.rotation / 90) % 4
        return picture.transpose(_TURNS[turns]) if turns else picture


_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def mono(block: np.ndarray, form: str, channels: int) -> np.ndarray:
    """(n,) float32 in -1..1: the mean over channels of one block of decoded sound.

    Args:
        block: (channels, n) of a planar format, (1, n * channels) of a packed one.
        form: FFmpeg's name of the sample format: u8, s16, s32, flt, dbl, and with "p" for planar.
        channels: how many there are.
    """
    if not form.endswith("p"):
        block = block.reshape(-1, channels).T
    kind = form.rstrip("p")
    values = block.astype(np.float64) if kind in ("s32", "s64", "dbl") else block.astype(np.float32)
    if kind == "u8":
        values = (values - 128) / 128
    elif kind.startswith("s"):
        values = values / 2.0 ** (int(kind[1:]) - 1)
    with np.errstate(invalid="ignore", over="ignore"):  # who asked for it looks for NaN
        return values.mean(axis=0).astype(np.float32)


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is the picture on a record's cover."""
    return "attached_pic" in str(stream.disposition).lower()


def _said(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {(words.splitlines() or [''])[0][:80]}"
