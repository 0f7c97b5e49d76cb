"""Odd files of video and sound, written by real encoders and then bent."""

import io
import struct
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.data.conftest import encode, make_movie, make_sound, noise

RATE = 8000
GREY, LOUD = 100, 0.1
SECONDS = 2


def loud(seconds=SECONDS, rate=RATE):
    """(S,) float32, the same everywhere: what a good sound holds."""
    return np.full(round(seconds * rate), LOUD, np.float32)


def clip(form="matroska", **options):
    """Two seconds of grey 100 with sound 0.1; `options` as `make_movie` takes them."""
    lossy = {"sound_codec": "aac"} if form in ("mp4", "mov") else {"sound_codec": "pcm_s16le"}
    chosen = {"form": form, "sound": loud(), "rate": RATE, **lossy, **options}
    return make_movie([GREY] * (10 * SECONDS), **chosen)


@cache
def mp4(front=False):
    """The same as H.264 and AAC; its index `moov` at the end, or in front."""
    if not front:
        return clip("mp4")
    with tempfile.TemporaryDirectory() as folder:  # it is moved there in a second pass over the file
        return clip("mp4", options={"movflags": "faststart"}, path=Path(folder) / "a.mp4")


def wav(waveform=None, **options):
    """A wav file, of a good sound."""
    return make_sound(loud() if waveform is None else waveform, options.pop("rate", RATE), **options)


@cache
def sound(form, seconds=SECONDS):
    """A good sound as mp3, flac, ogg …"""
    return make_sound(loud(seconds), RATE, form)


def cut_off(data, share):
    """The first part of a file."""
    return data[: int(len(data) * share)]


def jpeg():
    return encode(noise(16, 16), "JPEG")


def patched(data, at, form, *values):
    """A file with numbers written over what was there."""
    out = bytearray(data)
    struct.pack_into(form, out, at, *values)
    return bytes(out)


def vast(width=60_000, height=60_000):
    """A motion-JPEG of 16 x 16 pixels whose pictures claim more."""
    data, at = large(16), 0
    while (at := data.find(b"\xff\xc0", at + 1)) >= 0:  # length, bits a sample, height, width
        data = patched(data, at + 5, ">HH", height, width)
    return data


def claims(width=60_000, height=60_000):
    """An mp4 whose header gives a frame's size as 60,000 x 60,000 pixels, its stream as 32 x 32."""
    data = clip("mp4", codec="mpeg4")
    return patched(data, data.index(b"mp4v") + 4 + 24, ">HH", width, height)


def large(side, before=0):
    """A motion-JPEG whose pictures have 16 x 16 pixels, but for the one after `before`: `side` x `side`."""
    sink = io.BytesIO()
    small, big = (encode(Image.new("L", (n, n), GREY), "JPEG") for n in (16, side))
    with av.open(sink, "w", format="matroska") as container:
        video = container.add_stream("mjpeg", rate=10)
        video.width = video.height = 16
        video.pix_fmt, video.codec_context.time_base = "yuvj420p", Fraction(1, 10)
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for i in range(10 * SECONDS):
            _mux(container, video, big if i == before else small, i, Fraction(1, 10))
            part = (loud(0.1) * 2**15).astype("<i2").tobytes()
            _mux(container, sound, part, i * RATE // 10, Fraction(1, RATE))
    return sink.getvalue()


def _mux(container, stream, data, time, base):
    packet = av.Packet(data)
    packet.stream, packet.pts, packet.dts, packet.time_base = stream, time, time, base
    packet.is_keyframe = True
    container.mux(packet)


def _emptied(track):
    """An mp4 of whose streams one has no samples, by its tables."""
    data = mp4()
    starts = [i for i in range(len(data)) if data.startswith(b"trak", i)]
    begin = starts[track]
    end = begin - 4 + struct.unpack_from(">I", data, begin - 4)[0]
    for name, at in ((b"stts", 8), (b"stsc", 8), (b"stco", 8), (b"stsz", 12), (b"stss", 8), (b"ctts", 8)):
        place = data.find(name, begin, end)
        if place >= 0:
            data = patched(data, place + at, ">I", 0)
    return data


def without_frames():
    """An mp4 whose stream of video holds not one frame, beside its sound."""
    return _emptied(0)


def without_samples():
    """An mp4 whose stream of sound holds not one sample, beside its video."""
    return _emptied(1)


def claims_4_gib():
    """A wav of two seconds whose header says that 4 GiB of samples follow."""
    data = wav()
    return patched(patched(data, 4, "<I", 0xFFFFFFFF), data.index(b"data") + 4, "<I", 0xFFFFFFF0)


def other_rate(rate):
    """A wav of two seconds whose header gives another rate."""
    return patched(wav(), 24, "<I", rate)


def countless(count=50_000_000):
    """An mp4 of 8 KB whose tables claim 50 million samples of one byte."""
    data = mp4()
    data = patched(data, data.index(b"stsz") + 8, ">II", 1, count)
    return patched(data, data.index(b"stsc") + 8, ">IIII", 1, 1, count, 1)


def countless_fragments(count=50_000_000):
    """A fragmented mp4 of 2 KB whose only run claims 50 million samples."""
    data = make_movie([GREY] * 20, options={"movflags": "frag_keyframe+empty_moov"})
    at = data.index(b"trun") + 4
    (flags,) = struct.unpack_from(">I", data, at)
    return patched(data, at, ">II", flags & ~0xF00, count)  # none has a size or a time of its own


def hours(form, codec, step=60, options=None):
    """Three hours in a frame a minute, grey by the hour."""
    count = 3 * 3600 // step
    times = [i * step for i in range(count)]
    return make_movie(
        [60 * (i * step // 3600) + 40 for i in range(count)], form=form, codec=codec, times=times,
        size=(16, 16), gop=1, options=options,
    )  # fmt: skip


@cache
def hours_of_silence(rate=1000):
    """Three hours of silence as flac, two seconds of 0.1 in their middle."""
    waveform = np.zeros(3 * 3600 * rate, np.float32)
    middle = len(waveform) // 2
    waveform[middle - rate : middle + rate] = LOUD
    return make_sound(waveform, rate, "FLAC", "PCM_16")


PLAYLIST = """#EXTM3U
#EXT-X-TARGETDURATION:2
#EXTINF:2,
{}
#EXT-X-ENDLIST
"""


def playlist(target):
    """A playlist of HLS that names another file."""
    return PLAYLIST.format(target).encode()


def concatenation(target):
    """FFmpeg's own list of files to play one after another."""
    return f"ffconcat version 1.0\nfile '{target}'\n".encode()


def session(target):
    """A description of a stream (SDP)."""
    return f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {target} RTP/AVP 96\n".encode()


def elsewhere(target):
    """A QuickTime film whose frames are said to lie in another file (an alias in its data reference)."""
    data = clip("mov")
    name = str(target).encode()
    path = struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">Hh", 0xFFFF, 0)
    alias = bytes(10) + bytes([0]) + bytes(27 + 12) + bytes([0]) + bytes(63 + 16)
    alias += struct.pack(">HH", 0, 0) + bytes(16) + path
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    at = data.index(b"dref") + 12  # behind version and count
    (old,) = struct.unpack_from(">I", data, at)
    grown = len(entry) - old
    for name in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = data.rindex(name, 0, at) - 4
        data = patched(data, place, ">I", struct.unpack_from(">I", data, place)[0] + grown)
    return data[:at] + entry + data[at + old :]
