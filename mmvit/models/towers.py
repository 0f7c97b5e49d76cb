"""Towers made to fit each other: another head on the same weights, the bare tower, two towers as a pair.

Letters: D width of a tower, E width of the common space.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from torch import Tensor, nn

from mmvit.models.build import build_text_tower
from mmvit.models.config import DualEncoderConfig, TextTowerConfig
from mmvit.models.foreign import ForeignImageTower
from mmvit.models.lit import DualEncoder, seeing_tower


def with_head(tower: Any, embed_dim: int | None, center: bool | None = None) -> Any:
    """The tower with the head that is asked for; its own head is kept when it fits already.

    Args:
        tower: a tower of any modality; a peer's module inside it is shared, not copied.
        embed_dim: E of a linear head, None = none (E = D).
        center: all but text towers: whether the features' mean is subtracted first, None = as it is.

    Returns:
        A tower with `tower`'s weights; a head that is new is random, a mean that is new is zero.
    """
    change: dict[str, Any] = {"embed_dim": embed_dim}
    if embed_dim != tower.config.embed_dim and getattr(tower.config, "head_hidden", None):
        change["head_hidden"] = None
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
        new = seeing_tower(config)
    own = new.state_dict()
    fits = {n: v for n, v in tower.state_dict().items() if n in own and own[n].shape == v.shape}
    missing = [n for n in new.load_state_dict(fits, strict=False).missing_keys if not n.startswith("head.")]
    assert not missing, missing
    return new


def bare(tower: Any) -> Any:
    """The tower without head and centring: what cached features depend on, and nothing else."""
    return with_head(tower, None, center=False)


def join(
    image: Any,
    text: Any,
    *,
    embed_dim: int | None = None,
    center: Tensor | None = None,
    kind: Literal["softmax", "sigmoid"] = "softmax",
    scale: float = 10.0,
    bias: float = -10.0,
    scale_max: float = 100.0,
) -> DualEncoder:
    """The pair of two towers, with heads into one space; towers that fit already are shared, not copied.

    Args:
        image: the tower beside the text's: of pictures, clips or sounds.
        text: text tower; gets a linear head into the other tower's space where it has none of that width.
        embed_dim: E of a linear head on both towers; None = no head on the first, E is its features' width.
        center: (D,) mean that is subtracted from the first tower's features, None = no centring.
        kind: how similarities become probabilities; a sigmoid pair has a bias.
        scale: initial factor of the cosines, not its logarithm.
        bias: initial bias of a sigmoid pair.
        scale_max: the factor's upper limit, 0 = none.
    """
    image = with_head(image, embed_dim, center=center is not None)
    if center is not None:
        image.head.mean.copy_(center)
    text = with_head(text, image.embed_dim)
    described = DualEncoderConfig(
        image=image.config,
        text=text.config,
        logit_scale_init=math.log(scale),
        logit_bias_init=bias if kind == "sigmoid" else None,
        logit_scale_max=math.log(scale_max) if scale_max else None,
        activation=kind,
    )
    return DualEncoder(described, image=image, text=text)
