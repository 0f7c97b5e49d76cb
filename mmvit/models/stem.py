"""Which stem a tower has, and the token grid it gives: patches of many kinds, or convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from mmvit.models.config import (
    AudioTowerConfig,
    ConvStemConfig,
    FoldStemConfig,
    ImageTowerConfig,
    PatchStemConfig,
    TowerConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
)
from mmvit.tokens.audio import (
    SpectrogramPatches,
    TimeMajorPatches,
    WaveformPatches,
    spectrogram_grid,
    time_major_grid,
)
from mmvit.tokens.folded import FoldedPatches, folded_grid
from mmvit.tokens.frames import FrameConvolutions, frame_grid
from mmvit.tokens.image import PatchEmbed
from mmvit.tokens.video import TubeletEmbed


def grid_of(size: Sequence[int], patch: Sequence[int], stem: ConvStemConfig | None) -> tuple[int, ...]:
    """Tokens along each axis for inputs of `size`.

    Args:
        size: input extent per axis, e.g. (height, width) in pixels.
        patch: extent of a patch per axis.
        stem: overlapping convolutions in place of patches, None = patches.

    Raises:
        ValueError: an extent that is not positive, or patches that do not divide it.
    """
    if stem is None:
        if any(side <= 0 or p < 1 or side % p for side, p in zip(size, patch, strict=True)):
            name = "image_size" if len(size) == 2 else "clip_size"
            shown = patch[0] if len(set(patch)) == 1 else tuple(patch)
            raise ValueError(f"{name} is {tuple(size)}, expected multiples of patch_size={shown}")
        return tuple(side // p for side, p in zip(size, patch, strict=True))
    grid = tuple(size)
    for _ in range(stem.layers):
        axes = zip(grid, stem.kernel, stem.stride, stem.padding, strict=True)
        grid = tuple((n + 2 * pad - k) // s + 1 for n, k, s, pad in axes)
        if stem.max_pool:
            grid = tuple((n + 2 - 3) // 2 + 1 for n in grid)
    if min(grid) < 1:
        raise ValueError(f"inputs of {tuple(size)} are too small for {stem}")
    return grid


def tower_grid(config: TowerConfig) -> tuple[int, ...]:
    """The token grid of a tower's inputs of the stored size.

    Raises:
        ValueError: sizes that do not go together.
    """
    if isinstance(config, ImageTowerConfig):
        return grid_of(config.image_size, (config.patch_size, config.patch_size), config.stem)
    if isinstance(config, VideoTowerConfig):
        return grid_of(config.clip_size, config.patch_size, config.stem)
    if isinstance(config, WaveformTowerConfig):
        if config.samples <= 0 or config.patch_size < 1 or config.samples % config.patch_size:
            raise ValueError(
                f"samples is {config.samples}, expected a multiple of patch_size={config.patch_size}, both "
                "at least 1"
            )
        return (config.samples // config.patch_size,)
    assert isinstance(config, AudioTowerConfig)
    if isinstance(config.stem, FoldStemConfig):
        return folded_grid(config.spectrogram_size, config.patch_size, config.stem.fold)
    if isinstance(config.stem, PatchStemConfig):
        return time_major_grid(config.spectrogram_size, config.stem.patch, config.stem.crop)
    if config.stem is not None:
        frames = config.spectrogram_size[0]
        if frames < 1:
            raise ValueError(
                f"spectrogram_size is {config.spectrogram_size} (frames, mel bands): none is empty"
            )
        return frame_grid(frames, config.stem.kernel, config.stem.strides)
    if min(config.spectrogram_size) < config.patch_size or min(config.patch_stride) < 1:
        raise ValueError(
            f"spectrogram_size is {config.spectrogram_size} (frames, mel bands), expected at least "
            f"patch_size={config.patch_size} of each, and patch_stride {config.patch_stride} at least 1"
        )
    return spectrogram_grid(config.spectrogram_size, config.patch_size, config.patch_stride)


def image_stem(config: ImageTowerConfig) -> nn.Module:
    """Pixels (B,3,H,W) -> Tokens (B,N,D): patches, or the convolutions of `config.stem`."""
    if config.stem is not None:
        return _convolutions(config.stem, config)
    return PatchEmbed(
        config.core.width,
        config.patch_size,
        bias=config.patch_bias,
        resample=config.patch_resample,
        mean=config.mean,
        std=config.std,
    )


def video_stem(config: VideoTowerConfig) -> nn.Module:
    """Clips (B,3,T,H,W) -> Tokens (B,N,D): tubelets, or the convolutions of `config.stem`."""
    if config.stem is not None:
        return _convolutions(config.stem, config)
    return TubeletEmbed(
        config.core.width, config.patch_size, bias=config.patch_bias, mean=config.mean, std=config.std
    )


def audio_stem(config: AudioTowerConfig) -> nn.Module:
    """Spectrograms (B,T,M) -> Tokens (B,N,D): patches, or what `config.stem` describes."""
    if isinstance(config.stem, FoldStemConfig):
        size, fold = config.spectrogram_size, config.stem.fold
        return FoldedPatches(
            config.core.width, config.patch_size, size=size, fold=fold, bias=config.patch_bias
        )
    if isinstance(config.stem, PatchStemConfig):
        patch, crop = config.stem.patch, config.stem.crop
        return TimeMajorPatches(config.core.width, patch, crop=crop, bias=config.patch_bias)
    if config.stem is not None:
        bands = config.spectrogram_size[1]
        return FrameConvolutions(config.core.width, bands, **dataclasses.asdict(config.stem))
    return SpectrogramPatches(
        config.core.width, config.patch_size, stride=config.patch_stride, bias=config.patch_bias
    )


def waveform_stem(config: WaveformTowerConfig) -> nn.Module:
    """Waveforms (B,S) -> Tokens (B,N,D): pieces side by side."""
    return WaveformPatches(config.core.width, config.patch_size, bias=config.patch_bias)


def _convolutions(stem: ConvStemConfig, config: TowerConfig) -> nn.Module:
    from mmvit.tokens.conv import ConvTokens

    return ConvTokens(config.core.width, **dataclasses.asdict(stem), mean=config.mean, std=config.std)
