"""What a model is fed through, checked against the model: preprocessing and tokenizer of a saved folder."""

from __future__ import annotations

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
        text = _check_pictures(config, kind, preprocess, tokenizer)
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


def _check_pictures(config: Any, kind: str, preprocess: Preprocess, tokenizer: Tokenizer | None) -> Any:
    """The config of what reads text, None if nothing does; raises as `check_parts`."""
    image, text = {
        "dual_encoder": lambda: (config.image, config.text),
        "detector": lambda: (config.image, config.text),
        "image_tower": lambda: (config, None),
        "text_tower": lambda: (None, config),
        "image_classifier": lambda: (config.tower, None),
    }.get(kind, lambda: (None, None))()
    if image is None and text is None and (preprocess or tokenizer):
        raise ValueError(f"a {kind} sees no pictures and reads no text: leave preprocess and tokenizer out")
    if image is not None and preprocess is None:
        raise ValueError(f"a {kind} needs its preprocessing: pass preprocess=ImagePreprocess(size=...)")
    if isinstance(preprocess, ClipPreprocess):
        raise ValueError(f"a {kind} sees pictures only: pass preprocess=ImagePreprocess(size=...)")
    if (
        isinstance(image, ImageTowerConfig)
        and preprocess
        and any(s % image.patch_size for s in preprocess.size)
    ):
        raise ValueError(f"preprocess.size {preprocess.size} is no multiple of patch_size={image.patch_size}")
    return text


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
    takes: list[Any] = [config.video, config.audio] if kind == "vatt" else [tower]
    for part in takes:
        name = "video" if isinstance(part, VideoTowerConfig) else "audio"
        own: Any = getattr(preprocess, name)
        if own is None:
            raise ValueError(f"a {kind} takes {name}: its ClipPreprocess has none")
        _check_shape(name, part, own.shape)


def _check_shape(name: str, tower: TowerConfig, shape: tuple[int, ...]) -> None:
    """Raises ValueError where what the preprocessing gives is nothing that the tower can cut into patches."""
    fits, wanted = True, ""
    if isinstance(tower, VideoTowerConfig):
        if tower.stem is None:
            fits = all(n % p == 0 for n, p in zip(shape[1:], tower.patch_size, strict=True))
            wanted = f"(3, frames, height, width) in multiples of patch_size={tower.patch_size}"
    elif isinstance(tower, WaveformTowerConfig):
        fits = len(shape) == 1 and shape[0] % tower.patch_size == 0
        wanted = f"a waveform whose samples are a multiple of patch_size={tower.patch_size}"
    elif isinstance(tower, AudioTowerConfig):
        fits = len(shape) == 2 and (tower.stem is not None or min(shape) >= tower.patch_size)
        wanted = f"a spectrogram (frames, mel bands) of at least patch_size={tower.patch_size} of each"
    if not fits:
        raise ValueError(f"preprocess.{name} gives {tuple(shape)}, the tower takes {wanted}")
