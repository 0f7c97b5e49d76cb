"""A small random model of video, audio and text, and shards of drawn clips with tones, for the programs."""

import io

import av
import numpy as np
import soundfile
import torch

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.data.write import ShardWriter
from mmvit.models.config import CoreConfig, VattConfig, VideoTowerConfig, WaveformTowerConfig, WordTowerConfig
from mmvit.models.vatt import Vatt

THINGS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "white": (240, 240, 240)}
MOTIONS = ("rising", "falling", "resting")
PREPROCESS = ClipPreprocess(
    video=VideoPreprocess(size=(32, 32), frames=4, fps=4.0),
    audio=AudioPreprocess(sample_rate=8000, samples=8000),
)


def clip(color, motion, frames=12, fps=8):
    """An mp4 of 1.5 s: a bar of one colour on grey."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=fps, width=32, height=32, pix_fmt="yuv420p")
        for i in range(frames):
            way = {"rising": frames - 1 - i, "falling": i, "resting": frames // 2}[motion]
            picture = np.full((32, 32, 3), 90, np.uint8)
            picture[2 * way : 2 * way + 8] = color
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def tone(hz, seconds=1.5, rate=8000):
    """A wav of one tone."""
    out = io.BytesIO()
    time = np.arange(int(rate * seconds)) / rate
    soundfile.write(out, 0.5 * np.sin(2 * np.pi * hz * time), rate, format="WAV")
    return out.getvalue()


def write_clips(folder):
    """12 clips, 4 things x 3 motions, each thing with its tone; one lacks sound, one its caption."""
    writer = ShardWriter(folder / "clips", samples_per_shard=5)
    for number, (thing, color) in enumerate(THINGS.items()):
        for motion in MOTIONS:
            members = {"mp4": clip(color, motion), "wav": tone(300 * (number + 1))}
            members["txt"] = f"{thing} {motion}"
            members["json"] = {"label": thing, "motion": motion, "tags": [thing, motion]}
            if (thing, motion) == ("blue", "falling"):
                del members["wav"]
            if (thing, motion) == ("white", "resting"):
                del members["txt"]
            writer.write(f"{thing}-{motion}", members)
    writer.finish()
    return folder


def tiny_vatt(seed=0):
    """Random, with statistics in its norms that tell inputs apart."""
    core = CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=64)
    kinds = {"class_token": True, "class_position": False, "position": "axes", "position_norm": True}
    torch.manual_seed(seed)
    model = Vatt(
        VattConfig(
            video=VideoTowerConfig(core=core, clip_size=(4, 32, 32), patch_size=(2, 16, 16), **kinds),
            audio=WaveformTowerConfig(core=core, samples=8000, patch_size=200, **kinds),
            text=WordTowerConfig(core=core, vocab_size=56, context_length=24, word_width=16),
            va_dim=24,
            vt_dim=16,
        )
    )
    for parameter in model.parameters():  # the initial values are so small that all embeddings look alike
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
