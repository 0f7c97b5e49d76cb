"""How peers' models of clips and sounds are fed -> our preprocessing, out of what they save of theirs.

Source: transformers' feature extractors of AST and CLAP, and VideoMAE's image processor; VideoMAE
(arXiv:2203.12602) and torchvision's notes on MViT's weights for the frame rate, which no file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clap_spectrogram import steps
from mmvit.data.clip import ClipPreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.hub.preprocess import preprocess_of
from mmvit.models.config import AudioTowerConfig, ClassifierConfig, DualEncoderConfig, VideoTowerConfig

_FILTERS: dict[Any, Any] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_PADS = {"repeatpad": "repeat", "pad": "silence"}
_STEPS = ("fft_window_size", "hop_length")


def clip_preprocess(config: Any, saved: Mapping[str, Any]) -> ClipPreprocess | None:
    """The preprocessing of transformers' tower, classifier or pair, None where it takes pictures or reads.

    Args:
        config: our config of the model.
        saved: the folder's preprocessor_config.json, empty without one; its own word comes first.

    Raises:
        ValueError: a way of padding sounds, or windows of a spectrogram, that ours has not.
    """
    tower = config.tower if isinstance(config, ClassifierConfig) else config
    tower = tower.image if isinstance(tower, DualEncoderConfig) else tower
    if not isinstance(tower, VideoTowerConfig | AudioTowerConfig):
        return None
    fed = preprocess_of(tower)
    assert isinstance(fed, ClipPreprocess)
    if fed.video is not None:
        return replace(
            fed, video=kinetics(fed.video, interpolation=_FILTERS.get(saved.get("resample"), "bilinear"))
        )
    assert fed.audio is not None
    recipe = {"clap": _clap, "fbank": _fbank}.get(fed.audio.features)
    return fed if recipe is None else replace(fed, audio=recipe(fed.audio, saved))


def released_preprocess(config: Any) -> ClipPreprocess:
    """The preprocessing of a tower or classifier out of its authors' own file.

    Args:
        config: our config of the model.
    """
    fed = preprocess_of(config.tower if isinstance(config, ClassifierConfig) else config)
    assert isinstance(fed, ClipPreprocess)
    return fed if fed.video is None else replace(fed, video=kinetics(fed.video))


def as_fed(config: AudioTowerConfig, saved: Mapping[str, Any]) -> AudioTowerConfig:
    """The config with the mean and deviation of an AST extractor, which divides by twice the deviation."""
    mean, std = saved.get("mean"), saved.get("std")
    if config.stem is not None or mean is None or std is None:
        return config
    if not saved.get("do_normalize", True):
        return replace(config, mean=(0.0,), std=(1.0,))
    return replace(config, mean=(float(mean),), std=(2 * float(std),))


def kinetics(video: VideoPreprocess, interpolation: Any = "bilinear") -> VideoPreprocess:
    """How towers of Kinetics' videos see: every fourth of 30 frames a second."""
    return replace(video, fps=7.5, interpolation=interpolation)


def _fbank(audio: AudioPreprocess, saved: Mapping[str, Any]) -> AudioPreprocess:
    """AST's, whose extractor leaves the waveform's mean in."""
    return replace(audio, sample_rate=saved.get("sampling_rate", audio.sample_rate), remove_mean=False)


def _clap(audio: AudioPreprocess, saved: Mapping[str, Any]) -> AudioPreprocess:
    """CLAP's; a model that fuses nothing hears one window, with Slaney's bands."""
    rate = saved.get("sampling_rate", audio.sample_rate)
    padding = saved.get("padding", "repeatpad")
    if padding not in _PADS:
        raise ValueError(f"padding is '{padding}', expected one of {', '.join(_PADS)}")
    cut = tuple(saved.get(name, own) for name, own in zip(_STEPS, steps(rate), strict=True))
    if cut != steps(rate):
        raise ValueError(f"{' and '.join(_STEPS)} are {cut}, expected {steps(rate)} at {rate} Hz")
    return replace(
        audio,
        sample_rate=rate,
        samples=int(saved.get("max_length_s", audio.samples / audio.sample_rate) * rate),
        pad=_PADS[padding],  # type: ignore[arg-type]
        frequency_min=float(saved.get("frequency_min", audio.frequency_min)),
        frequency_max=float(saved.get("frequency_max", audio.frequency_max)),
    )
