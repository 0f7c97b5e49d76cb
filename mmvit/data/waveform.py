"""Sound files -> mono samples of a stated window at a stated rate; only that window is decoded.

Place in the path: between the members of a sample and `AudioPreprocess`.
Resampling a part gives what resampling the whole and cutting it would give.
Source: torchaudio's band-limited interpolation.
"""

from __future__ import annotations

import io
import math
import os
from contextlib import AbstractContextManager, closing
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mmvit.data.media import Container
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError, need

SOUNDS = ("wav", "flac", "ogg", "mp3", "opus", "oga", "m4a", "aac")
_FINEST = 1000  # rates are rounded to fractions of such denominators: 0.0001 % at most, and small kernels
_CHANNELS = 64
_LOUDEST = 1000.0  # full scale is 1: such floats are whole numbers that nobody scaled, or damage
_PREROLL = 0.2  # seconds decoded before what is wanted, where blocks of sound need their past


class Sound(Protocol):
    """What samples can be read from: a `SoundFile`, an `ArraySound` or a `Container`."""

    @property
    def rate(self) -> int:
        """In Hz."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""

    def read(self, first: int, count: int) -> np.ndarray:
        """(n,) float32 mono samples from number `first` on, n <= count; fewer only where the sound ends."""


class SoundFile:
    """A wav, flac, ogg or opus file; use it in a `with`.

    Attributes:
        format: libsndfile's name of it.
        rate: in Hz.
        seconds: how long it lasts.

    Raises:
        BadSample: audio-empty, audio-unreadable.
    """

    def __init__(self, source: bytes | str | os.PathLike[str]):
        sf = need("soundfile")
        try:
            self._file = sf.SoundFile(_Bytes(source) if isinstance(source, bytes) else os.fspath(source))
        except Exception as error:  # libsndfile and its binding raise anything on hostile bytes
            words = getattr(error, "error_string", None) or str(error)  # str tells where the bytes lie
            raise BadSample("audio-unreadable", (words.splitlines() or ["?"])[0][:80]) from None
        self.format = str(self._file.format)
        self.rate = int(self._file.samplerate)
        self._length = int(self._file.frames)
        self.seconds = self._length / max(1, self.rate)
        if not 1000 <= self.rate <= 768_000 or not 1 <= self._file.channels <= _CHANNELS:
            self.close()
            raise BadSample("audio-unreadable", f"{self.rate} Hz, {self._file.channels} channels")

    def read(self, first: int, count: int) -> np.ndarray:
        """(n,) float32 mono samples from number `first` on: the mean over channels."""
        first = min(first, self._length)
        before = min(first, round(_PREROLL * self.rate)) if self.format == "OGG" else 0
        try:
            self._file.seek(first - before)
            wanted = before + min(count, self._length - first)
            block = self._file.read(wanted, dtype="float32", always_2d=True)[before:]
        except Exception as error:  # as above
            raise BadSample("audio-truncated", str(error)[:80]) from None
        with np.errstate(invalid="ignore", over="ignore"):  # who asked for it looks for NaN
            return np.asarray(block.mean(axis=1), dtype=np.float32)

    def close(self) -> None:
        """Nothing; lets go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Bytes(io.BytesIO):
    """Stays where it is when damage sends it before its beginning: soundfile would print a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


class ArraySound:
    """A waveform in memory, (S,) or (S, channels); integers count as fractions of their type's range.

    Raises:
        UserError: another shape, or a rate that is no positive number.
    """

    def __init__(self, waveform: Any, rate: int):
        values = np.asarray(waveform)
        if values.ndim not in (1, 2) or values.dtype.kind not in "iuf":
            raise UserError(
                f"a waveform must be (S,) or (S, channels) numbers, got {values.dtype} {values.shape}"
            )
        if values.ndim == 2 and values.shape[1] > _CHANNELS:
            raise UserError(
                f"a waveform must be (S, channels), at most {_CHANNELS} channels: got {values.shape}"
            )
        if not isinstance(rate, int | np.integer) or not 1000 <= rate <= 768_000:
            raise UserError(f"a waveform comes with its rate in Hz, 1000..768000, got {rate!r}")
        if values.dtype.kind == "u":
            values = values.astype(np.float64) / 2 ** (8 * values.itemsize - 1) - 1
        elif values.dtype.kind == "i":
            values = values / 2 ** (8 * values.itemsize - 1)
        self._values = (values if values.ndim == 1 else values.mean(axis=1)).astype(np.float32)
        self.rate = int(rate)
        self.seconds = len(self._values) / self.rate

    def read(self, first: int, count: int) -> np.ndarray:
        """(n,) float32 samples from number `first` on."""
        return self._values[first : first + count]

    def close(self) -> None:
        """Nothing."""


def open_sound(source: Any) -> AbstractContextManager[Sound]:
    """The sound of bytes, a path, or (waveform, rate), to be closed after use; a video gives its own sound.

    Raises:
        BadSample: audio-empty, audio-missing or audio-unreadable.
        UserError: a path that cannot be read, or another type.
    """
    if isinstance(source, tuple) and len(source) == 2:
        return closing(ArraySound(*source))
    if not isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
        raise UserError(f"a sound must be bytes, a path, or (waveform, rate); got {type(source).__name__}")
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if isinstance(source, bytes) and not source:
        raise BadSample("audio-empty", "0 bytes")
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise UserError(f"cannot read the sound {os.fspath(source)}: no such file")
    refused = BadSample("audio-unreadable", "no MP3 after all")
    if not _is_mp3(source):
        try:
            return SoundFile(source)
        except BadSample as error:
            refused = error
    try:
        container = Container(source)
    except BadSample:
        raise refused from None
    if not container.has_sound:
        container.close()
        raise BadSample("audio-missing", "the file has no sound stream")
    return container


def _is_mp3(source: bytes | str | os.PathLike[str]) -> bool:
    """Whether a file begins as MP3s do: libsndfile's decoder of them prints lines about what it meets."""
    if isinstance(source, bytes):
        head = source[:3]
    else:
        try:
            with open(source, "rb") as file:
                head = file.read(3)
        except OSError:  # who decodes it says so
            return False
    return head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")


def cut(sound: Sound, start: float, samples: int, rate: int) -> Tensor:
    """(n,) float32 mono at `rate` from second `start` on, n <= samples; less only where the sound ends.

    Raises:
        BadSample: audio-not-finite, audio-too-loud, or as the sound's `read`.
    """
    if sound.rate == rate:
        return _finite(sound.read(round(start * rate), samples))
    ratio = Fraction(sound.rate, rate).limit_denominator(_FINEST)
    old, new = ratio.numerator, ratio.denominator
    if old * new > 4_000_000:
        raise BadSample("audio-unreadable", f"{sound.rate} Hz cannot become {rate} Hz")
    first = round(start * rate)
    reach = math.ceil(6 * old / (min(old, new) * 0.99)) + old  # samples of the file that one result sees
    begin = max(0, (first * old // new - reach) // old)  # whole periods of the filter bank
    end = -(-(first + samples) * old // new) + reach
    part = _finite(sound.read(begin * old, end - begin * old))
    if not len(part):
        return part
    resampled: Tensor = _resampler(old, new)(part)
    return resampled[first - begin * new :][:samples].contiguous()


@lru_cache(maxsize=8)
def _resampler(old: int, new: int) -> Any:
    """The resampling of torchaudio with its kernel kept."""
    return need("torchaudio.transforms").Resample(old, new)


def _finite(values: np.ndarray) -> Tensor:
    if not np.isfinite(values).all():
        raise BadSample(
            "audio-not-finite", f"{int((~np.isfinite(values)).sum())} samples are NaN or infinite"
        )
    if len(values) and (peak := float(np.abs(values).max())) > _LOUDEST:
        raise BadSample("audio-too-loud", f"samples up to {peak:.3g}, expected -1..1")
    return torch.from_numpy(np.ascontiguousarray(values))
