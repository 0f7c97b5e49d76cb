"""VideoMAE's video towers as they are fine-tuned: the mean of all tubelets is normed.

Source: VideoMAE (arXiv:2203.12602); constants as in its code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import VideoTowerConfig
from mmvit.models.normalisation import IMAGENET
from mmvit.models.presets.sizes import core_of


def videomae(size: str) -> VideoTowerConfig:
    """A tower for 16 frames of 224 pixels; no class token, keys without bias, positions fixed.

    The encoder of pre-training norms its tokens instead: `norm_last=True, pool="mean"`.
    """
    return VideoTowerConfig(
        core=core_of(size, key_bias=False, norm_last=False),
        class_token=False,
        position="sincos1d",
        position_resample="recompute",
        pool="mean_norm",
        **IMAGENET,
    )


def table() -> dict[str, Callable[[], VideoTowerConfig]]:
    """The family's presets."""
    return {
        f"videomae_{size}_patch16_224": partial(videomae, size) for size in ("small", "base", "large", "huge")
    }
