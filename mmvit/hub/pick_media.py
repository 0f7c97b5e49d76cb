"""What recipes take as --model.video and --model.audio: a tower to lock or to start from, and how it is fed.

A tower comes out up to its pooled features: the spaces that it is put under bring heads of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.errors import UserError
from mmvit.hub.convert.from_transformers import from_transformers
from mmvit.hub.folder import load
from mmvit.hub.pick import is_preset, option_values
from mmvit.hub.preprocess import preprocess_of
from mmvit.models.audio import AudioTower, WaveformTower
from mmvit.models.classifier import Classifier
from mmvit.models.lit import DualEncoder
from mmvit.models.presets import create_model
from mmvit.models.towers import bare
from mmvit.models.vatt import Vatt
from mmvit.models.video import VideoTower

_PEER = "transformers:"


def pick_video_tower(spec: str, options: Sequence[str] = ()) -> tuple[VideoTower, VideoPreprocess, bool]:
    """(video tower without head, preprocessing, whether it is pretrained).

    Args:
        spec: a folder of ours (a video tower or classifier, a pair, video, audio and text in common spaces),
            "transformers:FOLDER" as its save_pretrained wrote it, or a preset's name.
        options: NAME=VALUE changes of a preset.

    Raises:
        UserError: neither a folder nor a preset, one that cannot be read, or without a video tower of ours.
    """
    tower, fed, pretrained = _pick(spec, "video", (VideoTower,), options)
    assert fed.video is not None
    return tower, fed.video, pretrained


def pick_audio_tower(
    spec: str, options: Sequence[str] = ()
) -> tuple[AudioTower | WaveformTower, AudioPreprocess, bool]:
    """(audio tower without head, preprocessing, whether it is pretrained), as `pick_video_tower`."""
    tower, fed, pretrained = _pick(spec, "audio", (AudioTower, WaveformTower), options)
    assert fed.audio is not None
    return tower, fed.audio, pretrained


def _pick(
    spec: str, side: str, kinds: tuple[type, ...], options: Sequence[str]
) -> tuple[Any, ClipPreprocess, bool]:
    """The tower of a side, bare, and the preprocessing that came with it or goes with its config."""
    try:
        model, fed, pretrained = _open(spec, options)
    except (ValueError, OSError) as error:
        raise UserError(f"{side} tower {spec}: {error}") from None
    if isinstance(model, Vatt):
        model = getattr(model, side)
    elif isinstance(model, DualEncoder):
        model = model.image
    elif isinstance(model, Classifier):
        model = model.tower
    if not isinstance(model, kinds):
        raise UserError(f"{side} tower {spec}: it is a {type(model).__name__}, expected {kinds[0].__name__}")
    tower: Any = bare(model)
    if not isinstance(fed, ClipPreprocess) or getattr(fed, side) is None:
        fed = preprocess_of(tower.config)
    return tower, fed, pretrained


def _open(spec: str, options: Sequence[str]) -> tuple[Any, Any, bool]:
    """(model, its preprocessing or None, whether it is pretrained)."""
    folder = Path(spec.removeprefix(_PEER))
    if spec.startswith(_PEER) and folder.is_dir():
        model = from_transformers(folder)
        return model, getattr(model, "preprocess", None), True
    if is_preset(spec):
        return create_model(spec, **option_values(options)), None, False
    loaded = load(spec)
    return loaded.model, loaded.preprocess, True
