"""How a tower is fed when no folder says it: what its family was trained on, at the sizes of its config.

Source: Whisper (arXiv:2212.04356), AST (arXiv:2104.01778), CLAP (arXiv:2211.06687), VATT (arXiv:2104.11178).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.errors import UserError
from mmvit.models.config import (
    AudioTowerConfig,
    FoldStemConfig,
    FrameStemConfig,
    PatchStemConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
)

_VATT_HOP = 1024  # samples at 48 kHz from one frame to the next


def preprocess_of(config: Any) -> ImagePreprocess | ClipPreprocess:
    """The preprocessing of a tower of pictures, clips or sounds.

    Args:
        config: of the tower.
    """
    if isinstance(config, VideoTowerConfig):
        frames, height, width = config.clip_size
        return ClipPreprocess(video=VideoPreprocess(size=(height, width), frames=frames))
    if isinstance(config, WaveformTowerConfig):
        return ClipPreprocess(audio=AudioPreprocess(samples=config.samples))
    if isinstance(config, AudioTowerConfig):
        return ClipPreprocess(audio=_spectrogram_of(config))
    return ImagePreprocess(size=config.image_size)


def _spectrogram_of(config: AudioTowerConfig) -> AudioPreprocess:
    """The recipe that goes with the stem, as long as the tower stores positions for."""
    frames, bands = config.spectrogram_size
    if isinstance(config.stem, FrameStemConfig):
        return AudioPreprocess(features="whisper", sample_rate=16_000, samples=160 * frames, mel_bins=bands)
    if isinstance(config.stem, FoldStemConfig):  # ten seconds, which leave some of the fold empty
        return AudioPreprocess(
            features="clap", sample_rate=48_000, samples=480_000, mel_bins=bands, pad="repeat"
        )
    if isinstance(config.stem, PatchStemConfig):
        return AudioPreprocess(features="log_mel", samples=_VATT_HOP * frames, mel_bins=bands)
    known: dict[str, Any] = {}
    if config.std != (1.0,):
        known = {"mean": config.mean[0], "std": config.std[0] / 2}
    # Kaldi's frames: one every 10 ms, the last one 25 ms long.
    return AudioPreprocess(
        features="fbank",
        sample_rate=16_000,
        samples=160 * (frames - 1) + 400,
        mel_bins=bands,
        frames=frames,
        pad="spectrogram",
        **known,
    )


def changed(preprocess: Any, image_size: int = 0, seconds: float = 0.0) -> Any:
    """The preprocessing for another size of pictures or clips, or for another length of clips or sounds.

    Args:
        preprocess: of pictures, clips or sounds.
        image_size: side in pixels, 0 = as it is.
        seconds: of a window, 0 = as it is; spectrograms then have as many frames as that gives.

    Raises:
        UserError: a size for what is not seen, or a length for what does not last.
    """
    if isinstance(preprocess, ImagePreprocess):
        if seconds:
            raise UserError(
                f"seconds={seconds:g} is for towers of clips and sounds, and this one takes pictures"
            )
        return replace(preprocess, size=(image_size, image_size)) if image_size else preprocess
    video, audio = preprocess.video, preprocess.audio
    if image_size and video is None:
        raise UserError(f"image_size={image_size} is for towers that see, and this one takes sounds")
    if image_size:
        video = replace(video, size=(image_size, image_size))
    if seconds and video is not None:
        video = replace(video, frames=max(1, round(seconds * video.fps)))
    if seconds and audio is not None:
        audio = replace(audio, samples=round(seconds * audio.sample_rate), frames=None)
    return replace(preprocess, video=video, audio=audio)
