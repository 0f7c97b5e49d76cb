"""Shards with classes that can be learned in seconds, small towers, command lines of recipes/classify.py."""

import io
import random

import numpy as np
import soundfile
import torch
from PIL import Image

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.data.write import ShardWriter
from mmvit.hub import folder
from mmvit.models.audio import WaveformTower
from mmvit.models.config import VideoTowerConfig, WaveformTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.video import VideoTower

CORE = CoreConfig(width=32, depth=2, num_heads=2, mlp_dim=64)
VIDEO = VideoTowerConfig(core=CORE, clip_size=(4, 16, 16), patch_size=(2, 8, 8), position="axes")
AUDIO = WaveformTowerConfig(core=CORE, samples=1024, patch_size=64, position="axes")
MOTIONS = ("left", "right", "still")
FRAMES, FPS, RATE = 6, 8, 4000


def clip(rng, motion):
    """Members of one clip: a square goes left or right, or stands, over a noisy ground."""
    ground = np.random.default_rng(rng.randrange(2**32)).integers(0, 60, (16, 16, 3), np.uint8)
    x, y = {"left": 11, "right": 1, "still": rng.randrange(2, 10)}[motion], rng.randrange(1, 11)
    step = {"left": -2, "right": 2, "still": 0}[motion]
    members = {}
    for k in range(FRAMES):
        picture = ground.copy()
        picture[y : y + 4, max(0, x + step * k) : x + step * k + 4] = (250, 240, 60)
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "png")
        members[f"{k:04d}.png"] = data.getvalue()
    return members


def sound(rng, tones):
    """Half a second of low, high or both tones, as WAV."""
    t = np.arange(RATE // 2) / RATE
    wave = sum(
        (np.sin(2 * np.pi * {"low": 130, "high": 900}[tone] * t + rng.random()) for tone in tones), 0 * t
    )
    data = io.BytesIO()
    soundfile.write(
        data,
        0.3 * wave + 1e-3 * np.random.default_rng(rng.randrange(2**32)).normal(size=len(t)),
        RATE,
        format="WAV",
    )
    return {"wav": data.getvalue()}


def write(out):
    """train/, more/ and val/ with clips (motion) and sounds (tones, a list), and a folder of each tower.

    odd/ has a clip whose motion occurs nowhere else.
    """
    rng = random.Random(0)
    for split, count in (("train", 36), ("more", 13), ("val", 12)):
        with ShardWriter(out / split / "clips" / "a", 10) as writer:
            for i in range(count):
                motion = MOTIONS[i % 3]
                writer.write(f"{split}{i:03d}", clip(rng, motion) | {"json": {"motion": motion, "fps": FPS}})
        with ShardWriter(out / split / "sounds" / "a", 10) as writer:
            for i in range(count):
                tones = [tone for bit, tone in enumerate(("low", "high")) if i >> bit & 1]
                writer.write(f"{split}{i:03d}", sound(rng, tones) | {"json": {"tones": tones}})
    with ShardWriter(out / "odd" / "clips" / "a", 10) as writer:
        writer.write("odd", clip(rng, "left") | {"json": {"motion": "spinning", "fps": FPS}})
    torch.manual_seed(3)
    video = ClipPreprocess(video=VideoPreprocess(size=(16, 16), frames=4, fps=FPS))
    audio = ClipPreprocess(audio=AudioPreprocess(sample_rate=RATE, samples=1024))
    folder.save(VideoTower(VIDEO), out / "video", preprocess=video)
    folder.save(WaveformTower(AUDIO), out / "audio", preprocess=audio)
    return out


def options(data, out, modality="video", changes=()):
    """The words of a short run; values of `changes` may be tuples, True stands for a flag."""
    parts = {"video": ("clips", "motion"), "audio": ("sounds", "tones")}[modality]
    base = {
        "--preset": "tiny",
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--data.modality": modality,
        "--data.label": parts[1],
        "--data.train": data / "train" / parts[0],
        "--model.tower": data / modality,
        "--out": out,
    }
    words = []
    for name, value in (base | dict(changes)).items():
        words += [name, *(value if isinstance(value, tuple) else () if value is True else (value,))]
    return [str(word) for word in words]
