"""VATT: video, audio and text on three cores (base-base-small …) or on one, from raw pixels and waveforms.

Names: `_bbs`, `_mbs`, `_lbs` have a core for video, audio and text of those sizes, `_ma` one for all; `_mel`
hears spectrograms in place of waveforms. `vatt_tiny*` are ours, for clips of 2 s on a laptop.
Source: VATT (arXiv:2104.11178) section 3 and its repository (google-research/vatt), whose text core is T5's.
The table of words (19,660,800 values, frozen there) is part of the model and of no published count. Those of
the sizes (87.9, 155.0 and 306.1 million) are met by the video towers under a classifier of 600 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmvit.models.config import (
    AudioTowerConfig,
    VattConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
    WordTowerConfig,
)
from mmvit.models.core_config import CoreConfig
from mmvit.models.stem_config import PatchStemConfig

# letter: (width, depth, mlp_dim, num_heads)
CORES: dict[str, tuple[int, int, int, int]] = {
    "s": (512, 6, 2048, 8),
    "b": (768, 12, 3072, 12),
    "m": (1024, 12, 4096, 16),
    "l": (1024, 24, 4096, 16),
}
DROPOUT: dict[str, Any] = {"dropout": 0.1, "attn_dropout": 0.1, "final_dropout": 0.1}
T5: dict[str, Any] = {
    "norm_type": "rms",
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "attn_scale": 1.0,
    "relative": "buckets",
    "relative_distance": 64,
}


def core(letter: str, **fields: Any) -> CoreConfig:
    """The core of a size, by its letter."""
    width, depth, mlp_dim, num_heads = CORES[letter]
    return CoreConfig(width=width, depth=depth, mlp_dim=mlp_dim, num_heads=num_heads, **DROPOUT, **fields)


def tokens(width: int, shared: bool) -> dict[str, Any]:
    """What the towers of clips and sounds share: positions by axis with their norm, AGG without one."""
    fields = {
        "class_position": False,
        "class_std": width**-0.5,
        "position": "axes",
        "position_norm": True,
        "pre_projection": shared,
    }
    return fields | ({"post_projection": width} if shared else {})


def vatt(video: str, audio: str, text: str, mel: bool = False) -> VattConfig:
    """32 frames at 10 a second and the 3.2 s of sound at 48 kHz beside them, 16 words of 65,536.

    Args:
        video: letter of the core.
        audio: likewise.
        text: likewise; "" = one core for all, as `video` says.
        mel: hear 150 frames of 80 mel bands, in patches of 16 frames and 5 bands; the last 6 fill none.
    """
    shared = not text
    seen, heard = core(video), core(audio)
    see = tokens(seen.width, shared) | {"token_dropout": 0.1}
    hear = tokens(heard.width, shared) | {"token_dropout": 0.1}
    sound: AudioTowerConfig | WaveformTowerConfig = WaveformTowerConfig(core=heard, **hear)
    if mel:
        stem = PatchStemConfig(patch=(16, 5), crop=True)
        sound = AudioTowerConfig(
            core=heard, spectrogram_size=(150, 80), stem=stem, **hear, position_resample="bicubic_antialias"
        )
    words = WordTowerConfig(core=seen, post_projection=seen.width, token_dropout=0.1)
    if not shared:
        words = WordTowerConfig(core=core(text, **T5), style="t5", token_dropout=0.1)
    return VattConfig(
        video=VideoTowerConfig(core=seen, clip_size=(32, 224, 224), patch_size=(4, 16, 16), **see),
        audio=sound,
        text=words,
        shared=shared,
    )


def tiny(shared: bool = False, mel: bool = False) -> VattConfig:
    """16 frames of 112 pixels and 2 s of sound at 16 kHz (or 192 frames of 128 mel bands), no dropout.

    Args:
        shared: one core for all.
        mel: hear spectrograms.
    """
    one = CoreConfig(width=256, depth=6, num_heads=4, mlp_dim=1024)
    fields = tokens(one.width, shared)
    sound: AudioTowerConfig | WaveformTowerConfig = WaveformTowerConfig(core=one, samples=32_000, **fields)
    if mel:
        size: dict[str, Any] = {"spectrogram_size": (192, 128), "patch_size": 16, "patch_stride": (16, 16)}
        sound = AudioTowerConfig(core=one, **size, **fields)
    ordered = CoreConfig(
        width=256, depth=4, num_heads=4, mlp_dim=1024, relative="buckets", relative_distance=64
    )
    words = WordTowerConfig(core=ordered, vocab_size=8192, style="t5")
    if shared:
        words = WordTowerConfig(core=one, vocab_size=8192, post_projection=one.width)
    return VattConfig(
        video=VideoTowerConfig(core=one, clip_size=(16, 112, 112), patch_size=(4, 16, 16), **fields),
        audio=sound,
        text=words,
        shared=shared,
    )


def table() -> dict[str, Callable[[], VattConfig]]:
    """The family's presets."""
    found: dict[str, Callable[[], VattConfig]] = {}
    for ending, mel in (("", False), ("_mel", True)):
        found |= {f"vatt_{v}bs{ending}": partial(vatt, v, "b", "s", mel) for v in "bml"}
        found[f"vatt_ma_medium{ending}"] = partial(vatt, "m", "m", "", mel)
        found[f"vatt_tiny{ending}"] = partial(tiny, False, mel)
        found[f"vatt_tiny_ma{ending}"] = partial(tiny, True, mel)
    return found
