"""What recipes take as --model.video and --model.audio: a tower to lock or to start from, and how it is fed.

A tower comes out up to its pooled features: the spaces that it is put under bring heads of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.errors import UserError
from mmvit.hub.convert.from_transformers import from_transformers
from mmvit.hub.folder import load
from mmvit.hub.pick import is_preset
from mmvit.hub.preprocess import preprocess_of
from mmvit.hub.towers import tower_in
from mmvit.models.audio import AudioTower, WaveformTower
from mmvit.models.presets import create_model
from mmvit.models.towers import bare
from mmvit.models.video import VideoTower

_PEER = "transformers:"


def pick_video_tower(spec: str) -> tuple[VideoTower, VideoPreprocess]:
    """(video tower without head, preprocessing).

    Args:
        spec: a folder of ours (a video tower or classifier, a pair, video, audio and text in common spaces),
            "transformers:FOLDER" as its save_pretrained wrote it, or a preset's name.

    Raises:
        UserError: neither a folder nor a preset, one that cannot be read, or without a video tower of ours.
    """
    tower, fed = _pick(spec, "video", (VideoTower,))
    assert fed.video is not None
    return tower, fed.video


def pick_audio_tower(spec: str) -> tuple[AudioTower | WaveformTower, AudioPreprocess]:
    """(audio tower without head, preprocessing), as `pick_video_tower`."""
    tower, fed = _pick(spec, "audio", (AudioTower, WaveformTower))
    assert fed.audio is not None
    return tower, fed.audio


def _pick(spec: str, side: str, kinds: tuple[type, ...]) -> tuple[Any, ClipPreprocess]:
    """The tower of a side, bare, and the preprocessing that came with it or goes with its config."""
    try:
        model, fed = _open(spec)
    except (ValueError, OSError) as error:
        raise UserError(f"{side} tower {spec}: {error}") from None
    model = tower_in(model, side)
    if not isinstance(model, kinds):
        raise UserError(f"{side} tower {spec}: it is a {type(model).__name__}, expected {kinds[0].__name__}")
    tower: Any = bare(model)
    if not isinstance(fed, ClipPreprocess) or getattr(fed, side) is None:
        fed = preprocess_of(tower.config)
    return tower, fed


def _open(spec: str) -> tuple[Any, Any]:
    """(model, its preprocessing or None)."""
    folder = Path(spec.removeprefix(_PEER))
    if spec.startswith(_PEER) and folder.is_dir():
        model = from_transformers(folder)
        return model, getattr(model, "preprocess", None)
    if is_preset(spec):
        return create_model(spec), None
    loaded = load(spec)
    return loaded.model, loaded.preprocess
