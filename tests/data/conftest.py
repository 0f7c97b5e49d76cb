import io
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvit.data.text_sentencepiece import SentencePieceTokenizer, train_sentencepiece
from mmvit.data.write import ShardWriter


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random RGB picture."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def make_movie(
    shades, *, fps=10, form="mp4", codec="libx264", size=(32, 32), times=None, sound=None, rate=48000,
    sound_codec="aac", sound_start=0.0, gop=None, rotation=0, options=None, path=None,
) -> bytes:  # fmt: skip
    """A file whose i-th frame has the grey `shades[i]` (or is that picture), with sound beside it."""
    av = pytest.importorskip("av")
    sink = io.BytesIO()
    with av.open(str(path) if path else sink, "w", format=form, options=options or {}) as container:
        base = Fraction(1, 1000) if times is not None else Fraction(1, fps)
        video = audio = None
        if shades is not None:
            video = container.add_stream(codec, rate=fps)
            video.height, video.width = size
            video.pix_fmt, video.codec_context.time_base = "yuv420p", base
            video.codec_context.gop_size = gop or 12
            if codec == "libx264":
                video.options = {"crf": "10", "preset": "ultrafast"}
            if rotation:
                video.set_display_rotation(rotation)
        if sound is not None:
            sound = np.atleast_2d(np.asarray(sound, np.float32))
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream(sound_codec, rate=rate, layout=layout)
        for i, shade in enumerate(shades if shades is not None else ()):
            frame = np.zeros((*size, 3), np.uint8)
            frame[:] = shade
            frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            frame.pts, frame.time_base = (i if times is None else round(times[i] * 1000)), base
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode())
        if audio is not None:
            context = audio.codec_context
            block = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
            block.sample_rate, block.pts, block.time_base = rate, round(sound_start * rate), Fraction(1, rate)
            form, per = context.format.name, context.frame_size or 1024
            change = av.AudioResampler(format=form, layout=layout, rate=rate, frame_size=per)
            for part in [*change.resample(block), *change.resample(None)]:
                container.mux(audio.encode(part))
            container.mux(audio.encode())
    return path.read_bytes() if path else sink.getvalue()


def make_sound(waveform, rate=16000, form="WAV", subtype=None) -> bytes:
    """A sound file of (S,) or (S,channels) float samples."""
    sf = pytest.importorskip("soundfile")
    sink = io.BytesIO()
    sf.write(sink, waveform, rate, format=form, subtype=subtype)
    return sink.getvalue()


@pytest.fixture(scope="session")
def movie():
    """movie(shades, **options) -> bytes of a video, see `make_movie`."""
    return make_movie


@pytest.fixture(scope="session")
def sound_bytes():
    """sound_bytes(waveform, rate, format, subtype) -> bytes of a sound file."""
    return make_sound


@pytest.fixture(scope="session")
def picture():
    """picture(width, height, seed) -> PIL picture."""
    return noise


@pytest.fixture(scope="session")
def image_bytes():
    """image_bytes(PIL picture, format, **options) -> bytes."""
    return encode


@pytest.fixture(scope="session")
def write_shards():
    """write_shards(folder/name, samples, samples per shard) -> pattern; sample i is called s0000i."""

    def write(path: Path, count: int, per_shard: int = 7, prefix: str = "s", **meta) -> str:
        with ShardWriter(path, per_shard, meta=meta) as writer:
            for i in range(count):
                writer.write(f"{prefix}{i:05d}", {
                    "png": encode(noise(12, 12, i)),
                    "txt": f"{prefix} caption {i}",
                    "json": {"label": i % 3, "texts": {"en": [f"other {i}", ""], "de": [f"auch {i}"]}},
                    "npy": np.full((2, 4), i, np.float16) + np.array([[0], [0.5]], np.float16),
                })  # fmt: skip
        return str(path.parent)

    return write


@pytest.fixture(scope="session")
def shards(tmp_path_factory, write_shards) -> str:
    """A folder with 60 samples in 9 shards of 7 (the last of 4)."""
    return write_shards(tmp_path_factory.mktemp("shards") / "train", 60)


@pytest.fixture
def raw_tar(tmp_path):
    """raw_tar(name, [(member, bytes), ...]) -> path of a tar written without the writer's care."""

    def write(name: str, members: list[tuple[str, bytes]]) -> str:
        path = tmp_path / name
        with tarfile.open(path, "w") as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return str(path)

    return write


@pytest.fixture(scope="session")
def sentencepiece() -> SentencePieceTokenizer:
    captions = [f"a photo of a {c} {t}" for c in ("red", "blue", "green") for t in ("fox", "dog", "volcano")]
    model, _ = train_sentencepiece(captions, 400)
    return SentencePieceTokenizer(model, context_length=8)


LABELS = ["red fox", "blue dog", "volcano", "green cat", "tea cup", "violin", "moon", "old key"]


@pytest.fixture(scope="session")
def write_scenes():
    """write_scenes(folder/name, samples, **JSON facts) -> pattern; sample b0000i has one bright box.

    Its picture is black and its only box, of label LABELS[i % 8], is filled with red 130 + 3 i.
    """

    def write(path: Path, count: int, per_shard: int = 7, prefix: str = "b", **facts) -> str:
        with ShardWriter(path, per_shard) as writer:
            for i in range(count):
                rng = np.random.default_rng(i)
                width, height = (int(v) for v in rng.integers(60, 160, 2))
                x0, y0 = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
                box = [x0, y0, x0 + width // 3, y0 + height // 3]
                image = Image.new("RGB", (width, height))
                image.paste((130 + 3 * i, 0, 0), box)
                thing = {"label": LABELS[i % 8], "box": box}
                meta = {"width": width, "height": height, "objects": [thing], "level": 130 + 3 * i}
                writer.write(f"{prefix}{i:05d}", {"png": encode(image), "json": {**meta, **facts}})
        return str(path.parent)

    return write


@pytest.fixture(scope="session")
def scenes(tmp_path_factory, write_scenes) -> str:
    """A folder with 40 pictures, each with one box."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "train", 40)
