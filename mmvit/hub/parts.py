"""What a model is fed through, checked against the model: preprocessing and tokenizer of a saved folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import Tokenizer
from mmvit.models.config import (
    AudioTowerConfig,
    DualEncoderConfig,
    ImageTowerConfig,
    TowerConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
)
from mmvit.models.stem import tower_grid

Preprocess = ImagePreprocess | ClipPreprocess | None


def is_of_clips(kind: str, config: Any) -> bool:
    """Whether a model takes clips or sounds, and so a `ClipPreprocess`.

    Args:
        kind: its name in `plain.KINDS`.
        config: of the model; what a pair's towers take is not in its kind.
    """
    if isinstance(config, DualEncoderConfig):
        return config.modality != "image"
    return kind == "vatt" or kind.startswith(("video_", "audio_"))


def check_parts(config: Any, kind: str, preprocess: Preprocess, tokenizer: Tokenizer | None) -> None:
    """Raises ValueError when a model lacks what it is fed through, or gets one that does not fit it.

    Args:
        config: of the model.
        kind: its name in `plain.KINDS`.
        preprocess: of what it sees and hears.
        tokenizer: of what it reads.
    """
    if is_of_clips(kind, config):
        _check_clips(config, kind, preprocess)
        text = getattr(config, "text", None)
    else:
        text = _check_pictures(config, kind, preprocess)
    if text is None:
        if tokenizer is not None and is_of_clips(kind, config):
            raise ValueError(f"a {kind} reads no text: leave the tokenizer out")
        return
    if tokenizer is None:
        raise ValueError(f"a {kind} needs its tokenizer: pass tokenizer=...")
    if tokenizer.vocab_size > text.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the text tower {text.vocab_size}")
    if tokenizer.context_length > text.context_length:
        raise ValueError(
            f"the tokenizer gives {tokenizer.context_length} tokens, the text tower takes "
            f"{text.context_length}: use tokenizer.with_context({text.context_length})"
        )


def check_fed(tower: Any, preprocess: ImagePreprocess | ClipPreprocess) -> None:
    """Raises ValueError where what the preprocessing gives is nothing that the tower can cut into patches.

    Args:
        tower: config of a tower; peers' towers and stems that take any size are not asked.
        preprocess: of pictures where it sees pictures, else of clips and sounds.
    """
    sized: Any
    if isinstance(preprocess, ImagePreprocess):
        sized = replace(tower, image_size=preprocess.size) if isinstance(tower, ImageTowerConfig) else None
    else:
        name = "video" if isinstance(tower, VideoTowerConfig) else "audio"
        own: Any = getattr(preprocess, name)
        if own is None:
            raise ValueError(f"the tower takes {name}: its ClipPreprocess has none")
        sized = _sized(tower, own.shape)
    try:
        if sized is not None:
            tower_grid(sized)
    except ValueError as error:
        raise ValueError(f"the preprocessing does not fit the tower: {error}") from None


def _check_pictures(config: Any, kind: str, preprocess: Preprocess) -> Any:
    """The config of what reads text, None if nothing does; raises as `check_parts`."""
    if kind == "text_tower":
        if isinstance(preprocess, ClipPreprocess):
            raise ValueError("a text_tower takes no clips or sounds: leave preprocess out")
        return config
    if preprocess is None:
        raise ValueError(f"a {kind} needs its preprocessing: pass preprocess=ImagePreprocess(size=...)")
    if isinstance(preprocess, ClipPreprocess):
        raise ValueError(f"a {kind} sees pictures only: pass preprocess=ImagePreprocess(size=...)")
    check_fed(config.tower if kind == "image_classifier" else getattr(config, "image", config), preprocess)
    return getattr(config, "text", None)


def _check_clips(config: Any, kind: str, preprocess: Preprocess) -> None:
    """Raises ValueError for a preprocessing of clips and sounds that is missing or does not fit."""
    if preprocess is None:
        if kind in ("vatt", "dual_encoder"):
            parts = "video=..., audio=..." if kind == "vatt" else f"{config.modality}=..."
            raise ValueError(f"a {kind} needs its preprocessing: pass preprocess=ClipPreprocess({parts})")
        return
    if not isinstance(preprocess, ClipPreprocess):
        raise ValueError(f"a {kind} takes clips or sounds: pass preprocess=ClipPreprocess(...)")
    tower = config.image if isinstance(config, DualEncoderConfig) else getattr(config, "tower", config)
    for part in (config.video, config.audio) if kind == "vatt" else (tower,):
        check_fed(part, preprocess)


def _sized(tower: TowerConfig, shape: Any) -> TowerConfig | None:
    """The config of a tower of clips or sounds for inputs of `shape`; None where its stem takes any size."""
    if isinstance(tower, VideoTowerConfig):
        return replace(tower, clip_size=shape[1:])
    if isinstance(tower, WaveformTowerConfig) and len(shape) == 1:
        return replace(tower, samples=shape[0])
    if isinstance(tower, AudioTowerConfig) and len(shape) == 2:
        return replace(tower, spectrogram_size=shape) if tower.stem is None else None
    wanted = (
        "a waveform (samples)"
        if isinstance(tower, WaveformTowerConfig)
        else "a spectrogram (frames, mel bands)"
    )
    raise ValueError(f"the preprocessing gives {tuple(shape)}, the tower takes {wanted}")
