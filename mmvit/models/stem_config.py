"""Plain-data descriptions of stems that are not plain square patches: inputs -> grid tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConvStemConfig:
    """Overlapping convolutions in place of plain patches: CCT's tokenizer, MViT's stem.

    Attributes:
        layers: convolutions, one after the other.
        kernel: side, per axis of the grid or one number for all.
        stride: likewise.
        padding: likewise.
        channels: of the hidden layers.
        max_pool: ReLU and a 3x3 max pooling of stride 2 behind each convolution (CCT).
    """

    layers: int = 1
    kernel: tuple[int, ...] = (7, 7)
    stride: tuple[int, ...] = (2, 2)
    padding: tuple[int, ...] = (3, 3)
    channels: int = 64
    bias: bool = False
    max_pool: bool = True


@dataclass(frozen=True, kw_only=True)
class FrameStemConfig:
    """Convolutions along the time of a spectrogram in place of patches, a GELU behind each (Whisper).

    Attributes:
        kernel: frames that a token of each convolution sees, over all mel bands; odd.
        strides: frames from one to the next, one number per convolution.
        skip_silence: whether tokens behind the last frame that sounds are left out, which is exact and
            cheaper; Whisper hears the silence that fills its 30 s.
    """

    kernel: int = 3
    strides: tuple[int, ...] = (1, 2)
    skip_silence: bool = False


@dataclass(frozen=True, kw_only=True)
class FoldStemConfig:
    """Patches of a spectrogram whose time is cut into pieces that lie over each other (HTSAT, CLAP).

    Its bands are normed by stored statistics first and its time is stretched to the stored size.

    Attributes:
        fold: how many pieces.
    """

    fold: int = 4


@dataclass(frozen=True, kw_only=True)
class PatchStemConfig:
    """Patches of a spectrogram side by side that need not be square, time slowest (VATT).

    Attributes:
        patch: (frames, mel bands) of a patch.
        crop: whether frames and bands at the end that fill no patch are left out; False = they are an error.
    """

    patch: tuple[int, int] = (16, 5)
    crop: bool = False
