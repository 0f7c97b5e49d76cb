"""Odd files of video and sound; the good ones are two seconds of grey 100 with sound 0.1."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.faults import media_files as files
from tests.faults.case import CAPTION

OTHER = "/etc/passwd"
PAGE = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
CLIP, SOUND = ("video", "audio", "text"), ("audio", "text")


@dataclass(frozen=True)
class MediaCase:
    """One odd sample among good ones.

    fault: its row in docs/faults.md.
    members: makes its members by extension; captions are added.
    reason: the one it is skipped for where every field is required; "" = it is used.
    became: what it is used as, for the table; `check` holds that to be true.
    check: raises where the decoded clip (3,T,H,W), or None, and sound (S,), or None, of a window are others.
    lacks: it is used without this where that field is optional.
    fields: what is read of it.
    """

    fault: str
    members: Callable[[], dict[str, Any]]
    reason: str = ""
    became: str = ""
    check: Callable[[Any, Any], None] | None = None
    lacks: str = ""
    fields: tuple[str, ...] = CLIP

    @property
    def row(self) -> tuple[str, str]:
        """What happens, and as what it is seen."""
        if not self.reason:
            return "used", self.became
        happens = "skipped and counted"
        return (f"{happens}, or used without" if self.lacks else happens), f"`{self.reason}`"


def is_grey(video, audio=None):
    assert (video.float() - files.GREY).abs().max() <= 4


def is_loud(video, audio):
    assert (audio - files.LOUD).abs().max() <= 0.02, (audio.min(), audio.max())


def is_good(video, audio):
    is_grey(video)
    is_loud(video, audio)


def is_one_frame(video, audio):
    assert torch.equal(video, video[:, :1].expand_as(video))
    is_grey(video)


def is_silent(video, audio):
    assert not audio.any()


def is_finite(video, audio):
    assert audio.isfinite().all()
    assert audio.abs().max() <= 1


def is_steady(video, audio):
    """The sound, but for its beginning and end, where an MP3 has to begin and end."""
    assert ((audio - files.LOUD).abs() <= 0.02).float().mean() > 0.2
    assert audio.abs().max() <= 0.2


def is_turned(video, audio):
    """Bright above, which lies to the left in the file."""
    assert video[:, :, :8].float().mean() > 150 > 60 > video[:, :, -8:].float().mean()


def is_later(video, audio):
    """Silence, sound, or one after the other; never noise."""
    is_grey(video)
    late = (audio - files.LOUD).abs() <= 0.02
    begun = int(late.float().argmax()) if late.any() else len(audio)
    assert late[begun + 400 :].all()
    assert audio[: max(0, begun - 400)].abs().max() <= 0.02 if begun > 400 else True


def is_short(samples):
    def check(video, audio):
        assert audio[samples + 40 :].abs().max() <= 1e-3
        assert audio[:samples].abs().max() > 0.02

    return check


def clip(fault, make, *rest, ext="mp4", **options):
    return MediaCase(fault, lambda: {ext: make(), "txt": CAPTION}, *rest, **options)


def sound(fault, make, *rest, ext="wav", **options):
    return MediaCase(fault, lambda: {ext: make(), "txt": CAPTION}, *rest, fields=SOUND, **options)


def leaning():
    """Bright on the left, turned by a quarter."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16] = 220
    return files.make_movie([picture] * 20, sound=files.loud(), rate=files.RATE, rotation=-90)


def silent_film():
    return files.clip(sound=None)


def garbage(count):
    return np.random.default_rng(0).bytes(count)


def one(frames, **options):
    return files.make_movie([files.GREY] * frames, sound=files.loud(), rate=files.RATE, **options)


def nothing_but_sound():
    return files.make_movie(None, form="mp4", sound=files.loud(), rate=files.RATE)


def uneven():
    times = [0.0, 0.04, 0.08, 0.5, 0.52, 1.4, 1.9]
    return files.make_movie([files.GREY] * 7, times=times, fps=25, sound=files.loud(), rate=files.RATE)


def floats(value, kind="FLOAT"):
    return lambda: files.wav(files.loud().astype(np.float64) * value, subtype=kind)


def part(form, share):
    """A file of ten seconds of noise, cut off."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(10 * 16_000)
    return lambda: files.cut_off(files.make_sound(noise, 16_000, form), share)


CLIPS = [
    clip("mp4 cut off, its index at the end", lambda: files.cut_off(files.mp4(), 0.6), "media-unreadable"),
    clip("mp4 cut off in its first half, its index in front",
         lambda: files.cut_off(files.mp4(front=True), 0.35), "video-truncated"),
    clip("Matroska cut off", lambda: files.cut_off(files.clip(), 0.2), "video-truncated", ext="mkv"),
    clip("video of zero bytes", lambda: b"", "media-empty"),
    clip("no video at all", files.wav, "video-missing", lacks="video", check=is_loud, ext="wav"),
    clip("video without sound", silent_film, "audio-missing", lacks="audio", check=is_grey),
    clip("mp4 with sound and no video", nothing_but_sound, "video-missing", lacks="video", check=is_loud),
    clip("mp4 without a frame", files.without_frames, "video-truncated"),
    clip("video of one frame", lambda: one(1), "", "that frame, standing still", is_one_frame),
    clip("video without a sample in its sound", files.without_samples, "audio-truncated"),
    clip("sound that begins a second after the video", lambda: files.clip(sound_start=1.0), "",
         "silence before it begins", is_later, ext="mkv"),
    clip("sound that begins after the video's end", lambda: files.clip(sound_start=3.0), "",
         "silence before it begins, the last frame beside it", is_later, ext="mkv"),
    clip("variable frame rate", uneven, "", "frames by their timestamps", is_good),
    clip("video with a rotation", leaning, "", "turned upright", is_turned),
    clip("mp4 whose header claims 60,000 x 60,000 pixels", files.claims, "", "frames at their size",
         is_good),
    clip("video of 60,000 x 60,000 pixels in 2 KB", files.vast, "video-empty", ext="mkv"),
    clip("video of 9,000 x 9,000 pixels", lambda: files.large(9000, before=0), "video-too-large", ext="mkv"),
    clip("video that grows to 9,000 x 9,000 pixels", lambda: files.large(9000, before=12), "",
         "the frame before stays", is_good, ext="mkv"),
    clip("mp4 of 8 KB that claims 50 million frames", files.countless, "media-unreadable"),
    clip("fragmented mp4 of 2 KB that claims 50 million frames", files.countless_fragments,
         "media-unreadable"),
    clip("text called .mp4", lambda: b"no film at all\n" * 40, "media-unreadable"),
    clip("a JPEG called .mp4", files.jpeg, "media-unreadable"),
    clip("random bytes called .webm", lambda: garbage(4000), "media-unreadable", ext="webm"),
    clip("a wav called .mp4", files.wav, "video-missing", lacks="video", check=is_loud),
    clip("Matroska called .mp4", files.clip, "", "the video", is_good),
    clip("video whose sound is NaN", lambda: files.clip(sound=files.loud() * np.nan, sound_codec="pcm_f32le"),
         "audio-not-finite", ext="mkv"),
    clip("a playlist (HLS) called .mp4", lambda: files.playlist(OTHER), "media-unreadable"),
    clip("a list of files (ffconcat) called .mp4", lambda: files.concatenation(OTHER), "media-unreadable"),
    clip("a description of a stream (SDP) called .mp4", lambda: files.session(5004), "media-unreadable"),
    clip("QuickTime whose frames are in another file", lambda: files.elsewhere(OTHER), "video-truncated",
         ext="mov"),
]  # fmt: skip
SOUNDS = [
    sound("wav of zero bytes", lambda: b"", "audio-empty"),
    MediaCase("no sound at all", lambda: {"txt": CAPTION}, "audio-missing", fields=SOUND),
    sound("wav of 8 bits", lambda: files.wav(subtype="PCM_U8"), "", "the sound", is_loud),
    sound("wav of 24 bits", lambda: files.wav(subtype="PCM_24"), "", "the sound", is_loud),
    sound("wav of 64-bit floats", lambda: files.wav(subtype="DOUBLE"), "", "the sound", is_loud),
    sound("wav of 96 kHz", lambda: files.wav(files.loud(rate=96_000), rate=96_000), "", "resampled", is_loud),
    sound("wav of 6 channels", lambda: files.wav(np.stack([files.loud()] * 6, 1)), "", "their mean", is_loud),
    sound("silence", floats(0.0), "", "silence", is_silent),
    sound("wav with NaN", floats(np.nan), "audio-not-finite"),
    sound("wav with infinity", floats(np.inf), "audio-not-finite"),
    sound("wav beyond float32", floats(1e300, "DOUBLE"), "audio-not-finite"),
    sound("wav of floats up to 10^29", floats(1e30), "audio-too-loud"),
    sound("wav of 0 samples", lambda: files.wav(files.loud()[:0]), "audio-empty"),
    sound("wav of 10 samples", lambda: files.wav(files.loud()[:10]), "", "them, then silence", is_short(10)),
    sound("wav cut off", lambda: files.cut_off(files.wav(), 0.1), "", "what is there, then silence",
          is_short(1600)),
    sound("wav cut off in its header", lambda: files.wav()[:30], "audio-unreadable"),
    sound("wav whose header claims 4 GiB", files.claims_4_gib, "", "what is there", is_loud),
    sound("wav of 0 Hz", lambda: files.other_rate(0), "audio-unreadable"),
    sound("wav of 1 Hz", lambda: files.other_rate(1), "audio-unreadable"),
    sound("wav of 4 GHz", lambda: files.other_rate(2**32 - 1), "audio-unreadable"),
    sound("a JPEG called .wav", files.jpeg, "audio-unreadable"),
    sound("an error page in HTML called .mp3", lambda: PAGE, "audio-unreadable", ext="mp3"),
    sound("a flac called .wav", lambda: files.sound("FLAC"), "", "the sound", is_loud),
    sound("flac cut off", part("FLAC", 0.02), "audio-truncated", ext="flac"),
    sound("mp3 cut off", part("MP3", 0.02), "audio-truncated", ext="mp3"),
    sound("mp3 with garbage behind it", lambda: files.sound("MP3", 10) + garbage(400), "", "the sound",
          is_steady, ext="mp3"),
    sound("mp3 with garbage before it", lambda: garbage(1600) + files.sound("MP3", 10), "", "the sound",
          is_steady, ext="mp3"),
    sound("three hours of flac", files.hours_of_silence, "", "its window; no more is decoded", is_finite,
          ext="flac"),
]  # fmt: skip
CASES = [*CLIPS, *SOUNDS]
RUNS = (
    "video worker killed while it decodes",
    "more bad videos than --data.max-bad-rate",
    "three hours of video",
)
