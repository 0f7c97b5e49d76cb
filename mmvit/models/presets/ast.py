"""The Audio Spectrogram Transformer: overlapping patches of a log-mel spectrogram, two tokens read.

Source: AST (arXiv:2104.01778); constants as in its code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmvit.models.config import AudioTowerConfig
from mmvit.models.normalisation import AUDIOSET
from mmvit.models.presets.sizes import core_of


def ast(size: str) -> AudioTowerConfig:
    """A tower for 1024 frames (10.24 s) of 128 mel bands; its pooling has the norm of AST's classifier."""
    return AudioTowerConfig(
        core=core_of(size), distill_token=True, pool="cls_dist_norm", pool_eps=1e-5, **AUDIOSET
    )


def table() -> dict[str, Callable[[], AudioTowerConfig]]:
    """The family's presets."""
    return {"ast_base_patch16": partial(ast, "base")}
