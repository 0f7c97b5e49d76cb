"""From plain-data configs to modules: the parts that several models share."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import TYPE_CHECKING, Any

from torch import nn

from mmvit.core.mlp import ACTIVATIONS
from mmvit.heads.pool import build_pool
from mmvit.heads.queries import QueryPool
from mmvit.models.config import (
    AudioTowerConfig,
    ForeignImageTowerConfig,
    ImageTowerConfig,
    Pool,
    QueryPoolConfig,
    TextTowerConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
    WordTowerConfig,
)
from mmvit.models.core_config import (
    AnyCoreConfig,
    CaitConfig,
    ConvNextConfig,
    CoreConfig,
    MixerConfig,
    MvitConfig,
    SwinConfig,
)

if TYPE_CHECKING:
    from mmvit.models.audio import AudioTower, WaveformTower
    from mmvit.models.foreign import ForeignImageTower
    from mmvit.models.image import ImageTower
    from mmvit.models.text import TextTower
    from mmvit.models.video import VideoTower
    from mmvit.models.words import WordTower

# config -> the file and class that it describes; a file is read when it is needed first
_CORES: dict[type, tuple[str, str]] = {
    CoreConfig: ("vit", "ViT"),
    CaitConfig: ("cait", "Cait"),
    MixerConfig: ("mixer", "Mixer"),
    MvitConfig: ("mvit", "Mvit"),
    ConvNextConfig: ("convnext", "ConvNext"),
    SwinConfig: ("swin", "Swin"),
}


def build_core(config: AnyCoreConfig, grid: tuple[int, ...] | None = None) -> Any:
    """The core that `config` describes, with random weights: Tokens -> Encoded.

    Args:
        config: of the core.
        grid: of the tokens that will come, for which a ViT's relative positions are stored.

    Raises:
        ValueError: a Mixer that is made for another number of tokens.
    """
    file, name = _CORES[type(config)]
    core = getattr(importlib.import_module(f"mmvit.core.{file}"), name)
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "type"}
    if isinstance(config, CoreConfig) and config.relative is not None:
        fields["relative_grid"] = grid
    if isinstance(config, MixerConfig) and grid is not None and math.prod(grid) != config.tokens:
        size = "x".join(map(str, grid))
        raise ValueError(
            f"tokens is {config.tokens}, but the grid is {size}: set tokens={math.prod(grid)} too"
        )
    return core(**fields)


def build_tower_pool(
    pool: Pool,
    core: AnyCoreConfig,
    norm_eps: float | None = None,
    queries: QueryPoolConfig | None = None,
) -> nn.Module:
    """The pooling of a tower, with the heads, MLP width and activation of its core.

    Args:
        pool: its name.
        core: whose tokens it reads.
        norm_eps: of its own norms, None = the core's.
        queries: of the pooling "queries".

    Raises:
        ValueError: map pooling, which takes its heads from the core, on a core without attention heads; or
            pooling by queries that are not described.
    """
    heads, hidden = getattr(core, "num_heads", 0), getattr(core, "mlp_dim", 0)
    if pool == "map" and not (heads and hidden):
        raise ValueError(f"pool is 'map', expected another one on a {type(core).__name__}")
    eps = core.norm_eps if norm_eps is None else norm_eps
    if pool == "queries":
        if queries is None:
            raise ValueError("pool is 'queries' and queries is None: describe them with a QueryPoolConfig")
        return QueryPool(core.out_width, queries.count, queries.width, queries.num_heads, norm_eps=eps)
    return build_pool(
        pool, core.out_width, heads, hidden, activation=ACTIVATIONS[core.activation], norm_eps=eps
    )


def build_tower(
    config: ImageTowerConfig | VideoTowerConfig | AudioTowerConfig | WaveformTowerConfig,
    core: nn.Module | None = None,
) -> ImageTower | VideoTower | AudioTower | WaveformTower:
    """Our own tower of any modality on a grid; random weights.

    Args:
        config: of the tower.
        core: to be shared with other towers, None = a new one; not for pictures, which are still clips there.
    """
    if isinstance(config, VideoTowerConfig):
        from mmvit.models.video import VideoTower

        return VideoTower(config, core)
    if isinstance(config, AudioTowerConfig):
        from mmvit.models.audio import AudioTower

        return AudioTower(config, core)
    if isinstance(config, WaveformTowerConfig):
        from mmvit.models.audio import WaveformTower

        return WaveformTower(config, core)
    assert core is None
    from mmvit.models.image import ImageTower

    return ImageTower(config)


def build_image_tower(config: ImageTowerConfig | ForeignImageTowerConfig) -> ImageTower | ForeignImageTower:
    """Our own ViT tower, or a peer library's model behind the same interface; random weights."""
    if isinstance(config, ForeignImageTowerConfig):
        from mmvit.models.foreign import ForeignImageTower

        return ForeignImageTower(config)
    from mmvit.models.image import ImageTower

    return ImageTower(config)


def build_text_tower(config: TextTowerConfig, core: nn.Module | None = None) -> TextTower:
    """The text tower that `config` describes; random weights.

    Args:
        config: of the tower.
        core: to be shared with other towers, None = a new one.
    """
    from mmvit.models.text import TextTower

    return TextTower(config, core)


def build_word_tower(config: WordTowerConfig, core: nn.Module | None = None) -> WordTower:
    """As `build_text_tower`, of words with their vectors."""
    from mmvit.models.words import WordTower

    return WordTower(config, core)
