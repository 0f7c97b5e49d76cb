"""Clips, sounds and pictures made in memory, and a small random model of video, audio and text to ask."""

import io
import string
from fractions import Fraction

import av
import numpy as np
import soundfile
import torch
from PIL import Image

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.text import WordPieceTokenizer
from mmvit.data.video import VideoPreprocess
from mmvit.data.write import ShardWriter
from mmvit.hub import save
from mmvit.models.config import CoreConfig, VattConfig, VideoTowerConfig, WaveformTowerConfig, WordTowerConfig
from mmvit.models.vatt import Vatt

RATE = 8_000
COLOURS = ("red", "green", "blue", "yellow")
INKS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
TONES = {"red": 300, "green": 600, "blue": 1100, "yellow": 2100}
PREPROCESS = ClipPreprocess(
    video=VideoPreprocess(size=(32, 32), frames=8, fps=8.0),
    audio=AudioPreprocess(sample_rate=RATE, samples=2560),
)


def frames(colour, count=16, size=64):
    """(T,H,W,3) uint8: a square of a colour that moves from left to right over white."""
    out = np.full((count, size, size, 3), 255, np.uint8)
    for t, frame in enumerate(out):
        x = round((size - 24) * t / max(1, count - 1))
        frame[20:44, x : x + 24] = INKS[colour]
    return out


def tone(hz, seconds=1.0, rate=RATE):
    """(S,) float32 of one pitch."""
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def mp4(colour, count=16, fps=8, sound=True):
    """A clip as H.264, with its tone as AAC."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=fps)
        video.width = video.height = 64
        video.pix_fmt, video.options = "yuv420p", {"crf": "18", "threads": "1"}
        audio = file.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for i, picture in enumerate(frames(colour, count)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if audio is not None:
            samples = tone(TONES[colour], count / fps, 16_000)
            for start in range(0, len(samples), 1024):
                part = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format="fltp", layout="mono"
                )
                part.sample_rate, part.pts, part.time_base = 16_000, start, Fraction(1, 16_000)
                file.mux(audio.encode(part))
            file.mux(audio.encode())
    return data.getvalue()


def wav(waveform, rate=RATE, subtype="PCM_16"):
    """A wav file of (S,) or (S,channels)."""
    data = io.BytesIO()
    soundfile.write(data, waveform, rate, format="WAV", subtype=subtype)
    return data.getvalue()


def png(colour):
    """A picture with a square of a colour."""
    data = io.BytesIO()
    Image.fromarray(frames(colour, 1)[0]).save(data, "png")
    return data.getvalue()


def random_model(seed=0, **fields):
    """A `Vatt` whose weights are large enough for embeddings to differ."""
    core = CoreConfig(width=32, depth=2, num_heads=2, mlp_dim=64)
    grid = {"core": core, "class_token": True, "class_position": False, "position": "axes"}
    grid |= {"position_norm": True, "pre_projection": True, "post_projection": 32}
    torch.manual_seed(seed)
    model = Vatt(
        VattConfig(
            video=VideoTowerConfig(clip_size=(8, 32, 32), patch_size=(2, 16, 16), **grid),
            audio=WaveformTowerConfig(samples=2560, **grid),
            text=WordTowerConfig(core=core, vocab_size=56, context_length=16, post_projection=32),
            **({"va_dim": 24, "vt_dim": 16} | fields),
        )
    )
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def tokenizer():
    """Words as letters."""
    letters = list(string.ascii_lowercase)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    return WordPieceTokenizer("\n".join(vocabulary).encode(), context_length=16)


def save_model(path, seed=0, **fields):
    """Folder of a saved random model."""
    save(random_model(seed, **fields), path, preprocess=PREPROCESS, tokenizer=tokenizer())
    return path


def write_shards(folder):
    """Shards clips/ (mp4, txt) and things/ (png, wav, txt), a clip and a thing of each colour."""
    clips = ShardWriter(folder / "clips" / "clips", samples_per_shard=3)
    things = ShardWriter(folder / "things" / "things", samples_per_shard=3)
    for colour in COLOURS:
        clips.write(f"{colour}-moves", {"mp4": mp4(colour), "txt": f"{colour} square moving right"})
        sound = wav(tone(TONES[colour]))
        things.write(f"{colour}-thing", {"png": png(colour), "wav": sound, "txt": f"{colour} thing"})
    clips.finish()
    things.finish()
    return folder
