"""Containers: the frame on the screen at a time, sound in step with it, no more than is needed."""

import io
import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess, ClipReader
from mmvit.data.media import Container, mono
from mmvit.data.mp4 import claims_too_much
from mmvit.data.pixels import BadSample
from mmvit.data.video import VideoPreprocess
from mmvit.errors import UserError

KINDS = [
    ("mp4", "libx264"),
    ("mov", "libx264"),
    ("matroska", "libx264"),
    ("webm", "libvpx-vp9"),
    ("ogg", "libvpx"),
    ("avi", "mpeg4"),
]


def shown(container: Container, times) -> list[int]:
    """The frame's number at each time, where frame i has the grey 10 i."""
    return [round(float(np.asarray(p).mean()) / 10) for p in container.pictures(times)]


@pytest.mark.parametrize(("form", "codec"), KINDS)
def test_the_frame_on_the_screen(movie, form, codec):
    data = movie([10 * i for i in range(20)], fps=10, form=form, codec=codec)
    times = [0.0, 0.05, 0.0995, 0.1, 0.51, 1.2, 1.899, 1.9, 2.5]
    with Container(data) as container:
        assert container.seconds == pytest.approx(2.0, abs=0.03)
        assert shown(container, times) == [
            0,
            0,
            1,
            1,
            5,
            12,
            19,
            19,
            19,
        ]  # 1 ms before its time a frame counts
        assert shown(container, [1.75, 1.8]) == [17, 18]  # again, and from the middle
        assert shown(container, [-0.3, 0.2]) == [0, 2]


def test_variable_frame_rate_and_late_start(movie):
    times = [0.0, 0.04, 0.08, 0.5, 0.52, 1.4, 1.44, 2.0]
    for form in ("mp4", "matroska"):
        for start in (0.0, 3.2):
            data = movie([10 * i for i in range(8)], form=form, times=[start + t for t in times], fps=25)
            with Container(data) as container:
                assert shown(container, [0.0, 0.06, 0.3, 0.51, 1.3, 1.41, 1.9, 2.0]) == [
                    0,
                    1,
                    2,
                    3,
                    4,
                    5,
                    6,
                    7,
                ]
                assert container.seconds == pytest.approx(2.04, abs=0.05)


def test_rotation_is_undone(movie):
    half = np.zeros((32, 64, 3), np.uint8)
    half[:, :32] = 200  # bright on the left
    with Container(movie([half] * 3, size=(32, 64), rotation=90)) as container:
        upright = np.asarray(next(container.pictures([0.0])), dtype=np.float32).mean(axis=2)
    assert upright.shape == (64, 32)
    assert upright[40:].mean() > 150  # a turn to the left by 90 degrees takes left to the bottom
    assert upright[:24].mean() < 50


def test_three_hours_cost_what_the_clip_costs(movie, tmp_path):
    data = movie([(i // 60) % 25 * 10 for i in range(10_800)], fps=1, codec="mpeg4", size=(16, 16), gop=60)
    path = tmp_path / "long.mp4"
    path.write_bytes(data)
    for source in (data, str(path)):
        with Container(source) as container:
            assert container.seconds == pytest.approx(10_800)
            assert shown(container, [9001.0 + k for k in range(8)]) == [9001 // 60 % 25] * 8
            assert container.frames_decoded <= 80  # from the key frame before


def test_long_sound_is_read_where_it_is_needed(movie):
    wave = np.sin(np.arange(1_000_000) / 7).astype(np.float32)
    with Container(movie(None, form="matroska", sound=wave, rate=1000, sound_codec="pcm_s16le")) as container:
        assert not container.has_video
        assert container.seconds == pytest.approx(1000, abs=0.1)
        assert np.abs(container.read(800_000, 500) - wave[800_000:800_500]).max() < 1e-3
        assert len(container.read(999_900, 500)) == 100  # the end


def test_an_index_that_points_too_late_costs_time_and_no_sound(movie):
    shades, wave = [10 * (i // 20) for i in range(400)], np.sin(np.arange(30_000) / 7).astype(np.float32)
    sound = {"form": "matroska", "sound": wave, "rate": 1000, "sound_codec": "pcm_s16le"}
    with Container(too_late(movie(None, **sound))) as container:
        assert np.abs(container.read(12_000, 500) - wave[12_000:12_500]).max() < 1e-3
        assert np.abs(container.read(900, 500) - wave[900:1400]).max() < 1e-3
    with Container(too_late(movie(shades, fps=10, form="matroska", gop=20))) as container:
        assert shown(container, [10.0, 12.1]) == [5, 6]


def too_late(data: bytes) -> bytes:
    """A Matroska file in whose index every position is that of the last cluster."""
    out, at, found = bytearray(data), data.rindex(b"\x1c\x53\xbb\x6b"), []
    while (at := data.find(b"\xf1", at + 1)) >= 0:  # CueClusterPosition, the size of the number, the number
        size = data[at + 1] & 0x7F
        found.append((at + 2, size, int.from_bytes(data[at + 2 : at + 2 + size])))
    last = max(position for _, _, position in found)
    assert len(found) > 4
    for place, size, _ in found:
        out[place : place + size] = last.to_bytes(size)
    return bytes(out)


@pytest.mark.parametrize("start", [0.0, 5.0])
@pytest.mark.parametrize(
    ("form", "codec", "sound"),
    [
        ("mp4", "libx264", "aac"),
        ("matroska", "libx264", "aac"),
        ("matroska", "libx264", "flac"),
        ("webm", "libvpx-vp9", "libopus"),
    ],
)
def test_flash_and_click_fall_into_the_same_slot(movie, form, codec, sound, start):
    """16 frames at 8 fps against 32,000 samples: slot j is tubelet j of 2 frames and 4,000 samples."""
    fps, rate, at = 24, 48_000, 2.25
    shades = [220 if i == round(at * fps) else 30 for i in range(4 * fps)]
    wave = np.zeros(4 * rate, np.float32)
    wave[round(at * rate) :][:200] = 0.9 * np.sin(np.arange(200))
    times = [start + i / fps for i in range(len(shades))]
    data = movie(
        shades, fps=fps, form=form, codec=codec, times=times, sound=wave, sound_codec=sound, sound_start=start
    )
    preprocess = ClipPreprocess(
        video=VideoPreprocess(size=(16, 16), frames=16, fps=8),
        audio=AudioPreprocess(sample_rate=16_000, samples=32_000),
    )
    for begin in (0.5, 0.75, 1.25, 1.75, 2.0):
        with Container(data) as container:
            video = preprocess.video.window(container, begin)
            audio = preprocess.audio.window(container, begin)
        flash = video.float().mean(dim=(0, 2, 3)).argmax().item() // 2
        click = (audio.abs() > 0.3).nonzero()[0, 0].item() / 4000
        assert flash == int((at - begin) * 4 + 1e-6)
        assert flash - 0.01 <= click < flash + 1  # 2.5 ms of a slot of 250 ms
        with Container(data) as container:
            assert container.pictures([at + 0.01]).__next__().getpixel((8, 8))[0] > 150


def test_sound_and_video_share_the_second_through_the_reader(movie):
    shades = [10 * (i // 10) for i in range(60)]  # the second is written in grey
    wave = np.concatenate([np.full(8000, 0.1 * s, np.float32) for s in range(6)])  # and in loudness
    data = movie(shades, form="matroska", sound=wave, rate=8000, sound_codec="pcm_s16le")
    reader = ClipReader(
        preprocess=ClipPreprocess(
            video=VideoPreprocess(size=(16, 16), frames=4, fps=4),
            audio=AudioPreprocess(sample_rate=8000, samples=8000),
        ),
        random_start=True,
    )
    starts = []
    for seed in range(8):
        clip = reader({"__key__": b"k", "mkv": data}, {}, random.Random(seed))
        starts.append(clip.start)
        expected = (torch.arange(4) / 4 + clip.start).floor() * 10
        assert (clip.video.float().mean(dim=(0, 2, 3)) - expected).abs().max() < 2
        seconds = ((torch.arange(8000) + 0.5) / 8000 + clip.start).floor()
        assert (clip.audio - 0.1 * seconds).abs().quantile(0.99) < 1e-3
    assert min(starts) < 1.5
    assert max(starts) > 3.5


def reason(call) -> str:
    with pytest.raises(BadSample) as caught:
        call()
    return caught.value.reason


def test_damage_is_named(movie, sound_bytes):
    video = VideoPreprocess(size=(16, 16), frames=4, fps=4)
    whole = movie([10 * i for i in range(20)], form="matroska", gop=5)
    assert reason(lambda: video(b"")) == "media-empty"
    assert reason(lambda: video(b"not a video" * 40)) == "media-unreadable"
    assert reason(lambda: video(movie([1, 2])[:500])) == "media-unreadable"
    assert reason(lambda: video(sound_bytes(np.zeros(16000)))) == "video-missing"
    assert reason(lambda: VideoPreprocess(max_pixels=100)(whole)) == "video-too-large"
    assert reason(lambda: AudioPreprocess()(whole)) == "audio-missing"
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
    assert reason(lambda: video(playlist)) == "media-unreadable"  # it would open other files
    with pytest.raises(UserError, match="no such file"):
        video("/nowhere.mp4")
    with pytest.raises(UserError, match="bytes, a path, or"):
        video(3)


def test_a_cut_file_gives_what_it_still_holds(movie, tmp_path):
    shades, wave = [10 * (i // 10) for i in range(100)], 0.3 * np.sin(np.arange(480_000) / 9)
    data = movie(shades, sound=wave, gop=10, options={"movflags": "faststart"}, path=tmp_path / "a.mp4")
    assert data.index(b"moov") < data.index(b"mdat")
    data = data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2]
    video = VideoPreprocess(size=(16, 16), frames=4, fps=4)
    assert video(data, 1.0).float().mean().item() == pytest.approx(10, abs=2)
    assert AudioPreprocess(samples=48_000)(data, 1.0).abs().max() > 0.2
    assert reason(lambda: video(data, 8.0)) == "video-truncated"
    assert reason(lambda: AudioPreprocess(samples=48_000)(data, 8.0)) == "audio-truncated"


class Measured(io.BytesIO):
    """Remembers the longest piece that was read of it."""

    longest = 0

    def read(self, size=-1, /):
        data = super().read(size)
        self.longest = max(self.longest, len(data))
        return data


@pytest.mark.parametrize(
    "head", [b"OggS\0\2\0\0", b"ID3\4\0\0\0\0", b"fLaC\0\0\0\x22", b"\x1aE\xdf\xa3\1\0\0\0"]
)
def test_files_of_other_formats_are_not_searched_for_tables(head):
    file = Measured(head + bytes(100_000))
    assert claims_too_much(file) == ""
    assert file.longest <= 16


def test_no_frames_at_all(movie):
    data = movie([], form="matroska", codec="libvpx", sound=np.zeros(4800, np.float32), sound_codec="flac")
    video = VideoPreprocess(size=(16, 16), frames=4, fps=4)
    assert reason(lambda: video(data)) in ("video-empty", "media-unreadable", "video-missing")


def test_flipped_bytes_never_escape(movie):
    """Whatever is damaged: an answer or a BadSample."""
    data = bytearray(
        movie([10 * i for i in range(12)], form="matroska", sound=np.ones(9600) * 0.1, sound_codec="flac")
    )
    video, audio = VideoPreprocess(size=(16, 16), frames=4, fps=4), AudioPreprocess(samples=4800)
    answers = 0
    for seed in range(40):
        rng = random.Random(seed)
        broken = bytearray(data)
        for _ in range(rng.randint(1, 30)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        for preprocess in (video, audio):
            with suppress(BadSample):
                answers += preprocess(bytes(broken)).isfinite().all().item()
    assert answers > 0


def test_mono_of_every_sample_format():
    packed = np.array([[0, 128, 255, 128]], np.uint8)
    assert mono(packed, "u8", 2).tolist() == pytest.approx([-0.5, 127 / 256])
    assert mono(np.array([[16384], [0]], np.int16), "s16p", 2).tolist() == [0.25]
    assert mono(np.array([[2**30]], np.int32), "s32", 1).tolist() == [0.5]
    assert mono(np.array([[0.5, 1.0]]), "dblp", 1).tolist() == [0.5, 1.0]
    assert mono(np.array([[0.5, 0.1]], np.float32), "flt", 2).tolist() == pytest.approx([0.3])


def test_paths_and_bytes_agree(movie, tmp_path):
    data = movie([10 * i for i in range(20)])
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    video = VideoPreprocess(size=(16, 16), frames=4, fps=4)
    assert torch.equal(video(data), video(path))
    assert torch.equal(video(memoryview(data)), video(str(path)))
