"""MViT v2 for pictures, MViT v1 and v2 for clips: the grid shrinks and the channels double over four stages.

Clips are named FRAMESxSTEP as they were trained: 16x4 reads 16 frames, every fourth of the video.
Source: MViT (arXiv:2104.11227); MViTv2 (arXiv:2112.01526); names of pictures' models as in timm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from mmvit.models.config import ConvStemConfig, ImageTowerConfig, VideoTowerConfig
from mmvit.models.core_config import MvitConfig
from mmvit.models.normalisation import IMAGENET, KINETICS

# size: (width, heads, blocks of each stage)
_SIZES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "tiny": (96, 1, (1, 2, 5, 2)),
    "small": (96, 1, (1, 2, 11, 2)),
    "base": (96, 1, (2, 3, 16, 3)),
    "large": (144, 2, (2, 6, 36, 4)),
    "huge": (192, 3, (4, 8, 60, 8)),
}
# What MViT v1 lacks of the second version.
_V1: dict[str, Any] = {
    "q_pool_always": False,
    "relative": False,
    "residual_pool": False,
    "widen": "mlp",
}


def _image(size: str, class_token: bool, widen: Literal["attention", "mlp"]) -> ImageTowerConfig:
    """MViTv2 at 224 pixels: the mean of the tokens, or a class token that residual pooling includes."""
    width, num_heads, depths = _SIZES[size]
    core = MvitConfig(
        width=width,
        num_heads=num_heads,
        depths=depths,
        grid=(56, 56),
        q_stride=(2, 2),
        kv_stride=(4, 4),
        residual_pool_prefix=True,
        widen=widen,
    )
    return ImageTowerConfig(
        core=core,
        patch_size=4,
        stem=ConvStemConfig(kernel=(7, 7), stride=(4, 4), padding=(3, 3), bias=True, max_pool=False),
        class_token=class_token,
        class_position=False,
        position="none",
        pool="cls" if class_token else "mean",
        **IMAGENET,
    )


def _video(
    size: str, depths: tuple[int, ...], frames: int, side: int, v1: bool, mean_std: dict[str, Any]
) -> VideoTowerConfig:
    """A class token is read; v1 has separable positions, v2 relative ones only."""
    width, num_heads, _ = _SIZES[size]
    core = MvitConfig(
        width=width,
        num_heads=num_heads,
        depths=depths,
        grid=(frames // 2, side // 4, side // 4),
        q_stride=(1, 2, 2),
        kv_stride=(1, 8, 8),
        **(_V1 if v1 else {}),
    )
    positions: dict[str, Any] = (
        {"position": "separable", "position_std": 0.02, "position_resample": "bicubic"}
        if v1
        else {"position": "none", "class_position": False}
    )
    return VideoTowerConfig(
        core=core,
        clip_size=(frames, side, side),
        patch_size=(2, 4, 4),
        stem=ConvStemConfig(kernel=(3, 7, 7), stride=(2, 4, 4), padding=(1, 3, 3), bias=True, max_pool=False),
        **positions,
        **mean_std,
    )


def table() -> dict[str, Callable[[], ImageTowerConfig | VideoTowerConfig]]:
    """The family's presets."""
    found: dict[str, Callable[[], ImageTowerConfig | VideoTowerConfig]] = {}
    for size in ("tiny", "small", "base", "large"):
        # Only the large one without class token was trained with channels doubled in the feed-forward part.
        found[f"mvitv2_{size}"] = partial(_image, size, False, "mlp" if size == "large" else "attention")
    for size in ("small", "base", "large", "huge"):
        found[f"mvitv2_{size}_cls"] = partial(_image, size, True, "attention")
    for name, size, frames, side, v1, mean_std in (
        ("v1_base_16x4", "small", 16, 224, True, KINETICS),
        ("v1_base_32x3", "base", 32, 224, True, KINETICS),
        ("v2_small_16x4", "small", 16, 224, False, KINETICS),
        ("v2_base_32x3", "base", 32, 224, False, KINETICS),
        ("v2_large_40x3", "large", 40, 312, False, IMAGENET),
    ):
        found[f"mvit_{name}"] = partial(_video, size, _SIZES[size][2], frames, side, v1, mean_std)
    return found
