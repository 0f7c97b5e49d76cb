"""Towers made to fit each other: another head on the same weights, the bare tower that features come from.

Letters: D width of a tower, E width of the common space.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from mmvit.models.build import build_image_tower, build_text_tower
from mmvit.models.config import TextTowerConfig
from mmvit.models.foreign import ForeignImageTower


def with_head(tower: Any, embed_dim: int | None, center: bool | None = None) -> Any:
    """The tower with the head that is asked for; its own head is kept when it fits already.

    Args:
        tower: an image or text tower; a peer's module inside it is shared, not copied.
        embed_dim: E of a linear head, None = none (E = D).
        center: image towers: whether the features' mean is subtracted first, None = as it is.

    Returns:
        A tower with `tower`'s weights; a head that is new is random, a mean that is new is zero.
    """
    change: dict[str, Any] = {"embed_dim": embed_dim}
    if center is not None and not isinstance(tower.config, TextTowerConfig):
        change["center"] = center
    config = dataclasses.replace(tower.config, **change)
    if config == tower.config:
        return tower
    new: nn.Module
    if isinstance(config, TextTowerConfig):
        new = build_text_tower(config)
    elif isinstance(tower, ForeignImageTower):
        new = ForeignImageTower(config, tower.module)
    else:
        new = build_image_tower(config)
    own = new.state_dict()
    fits = {n: v for n, v in tower.state_dict().items() if n in own and own[n].shape == v.shape}
    missing = [n for n in new.load_state_dict(fits, strict=False).missing_keys if not n.startswith("head.")]
    assert not missing, missing
    return new


def bare(tower: Any) -> Any:
    """The image tower without head and centring: what cached features depend on, and nothing else."""
    return with_head(tower, None, center=False)
