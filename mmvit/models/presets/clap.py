"""CLAP: towers for sounds and texts: a spectrogram folded into a square before Swin's windows; RoBERTa.

Source: HTS-AT (arXiv:2202.00874), CLAP (arXiv:2211.06687) and its repository; RoBERTa (arXiv:1907.11692).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmvit.models.config import AudioTowerConfig, DualEncoderConfig, FoldStemConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig, SwinConfig

# size: (channels of the first stage, blocks of each stage)
_SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    "tiny": (96, (2, 2, 6, 2)),
    "base": (128, (2, 2, 12, 2)),
    "large": (256, (2, 2, 12, 2)),
}
# What every size of the tower has; released projections are 512 wide.
TOWER: dict[str, Any] = {"class_token": False, "class_position": False, "position": "none", "pool": "mean"}


def htsat(size: str, embed_dim: int | None = 512) -> AudioTowerConfig:
    """A tower for up to 1024 frames of 64 mel bands (10 s at 48 kHz are 1001), in four pieces.

    Args:
        size: a name in the table above.
        embed_dim: E of CLAP's projection, two linear maps with a ReLU between; None = the encoder alone.
    """
    width, depths = _SIZES[size]
    return AudioTowerConfig(
        core=SwinConfig(width=width, num_heads=(4, 8, 16, 32), depths=depths, window=8),
        spectrogram_size=(1024, 64),
        patch_size=4,
        patch_stride=(4, 4),
        stem=FoldStemConfig(fold=4),
        embed_dim=embed_dim,
        head_hidden=embed_dim,
        **TOWER,
    )


def clap_text() -> TextTowerConfig:
    """RoBERTa-base with its tanh pooler under CLAP's projection; 512 positions, 50,265 byte-level pieces."""
    core = CoreConfig(
        width=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        norm="post",
        norm_eps=1e-12,
        norm_first=True,
        norm_last=False,
    )
    return TextTowerConfig(
        core=core, vocab_size=50_265, context_length=512, pool="cls_tanh", embed_dim=512, head_hidden=512
    )


def clap(size: str) -> DualEncoderConfig:
    """The pair of a sound tower of this size and RoBERTa-base."""
    return DualEncoderConfig(image=htsat(size), text=clap_text(), logit_scale_max=None)


def table() -> dict[str, Callable[[], AudioTowerConfig | DualEncoderConfig]]:
    """The family's presets."""
    found: dict[str, Callable[[], AudioTowerConfig | DualEncoderConfig]] = {
        f"htsat_{size}": partial(htsat, size) for size in _SIZES
    }
    return found | {f"clap_{size}": partial(clap, size) for size in ("tiny", "base")}
