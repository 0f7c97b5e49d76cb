"""From an image-text pair to an open-vocabulary detector: pooling and image head go, detection heads come.

Shape letters: N grid tokens, P special tokens, D width, E embedding width.
Source: OWL-ViT (arXiv:2205.06230) section 3: the pooling is removed, every token becomes a candidate.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmvit.core.relative import resample_table
from mmvit.models.build import build_image_tower, build_text_tower
from mmvit.models.config import DetectorConfig, ForeignImageTowerConfig, ImageTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.foreign import token_width
from mmvit.models.lit import DualEncoder
from mmvit.models.owl import OwlDetector
from mmvit.models.stem import tower_grid
from mmvit.models.unfilled import Unfilled
from mmvit.tokens.positions import FIXED, RECOMPUTE, resample_grid

_READS_CLASS = ("cls", "cls_dist", "cls_dist_norm")
_NORM_BEHIND = ("mean_norm", "cls_dist_norm")


def to_detector(
    pair: DualEncoder,
    *,
    class_init: Literal["zeros", "projection"] = "zeros",
    image_size: int | tuple[int, int] | None = None,
    drop_path: tuple[float, float] | None = None,
    **fields: Any,
) -> OwlDetector:
    """The detector that a pair becomes, with copies of its weights and new heads, all of it trainable.

    Of the image tower, special tokens, positions and core stay; its pooling and head go. A norm that stood
    behind the pooling ("mean_norm") becomes the norm of every token. The text tower stays whole.

    Args:
        pair: left as it is; on any device, the detector is on the CPU and float32.
        class_init: how class embeddings start: "zeros", as published (almost zero, of no direction yet), or
            "projection", as the pair's own image head makes them of each token. For a mean-pooled tower and
            merge="drop", their mean over the tokens is the pair's embedding before normalisation; on any
            other tower it is a start and no more.
        image_size: side or (height, width) in pixels at which positions are stored, resampled as the tower
            says; None = the pair's. A peer's tower is told to expect it.
        drop_path: stochastic depth of the image and of the text tower, None = as they were built.
        **fields: of `DetectorConfig`, without the towers. `merge` is by default "mul_ln" where the pair read
            its class token, "drop" elsewhere, and "norm" where the pooling's norm has no place in the core.

    Raises:
        ValueError: an image tower that cannot serve tokens or cannot be resized, an unknown field or
            `class_init`, drop path for a peer's tower, or a projection that does not read the tokens.
    """
    if class_init not in ("zeros", "projection"):
        raise ValueError(f"class_init is '{class_init}', expected 'zeros' or 'projection'")
    known = {f.name for f in dataclasses.fields(DetectorConfig)} - {"image", "text"}
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"to_detector has no option '{unknown[0]}', expected one of {', '.join(sorted(known))}"
        )
    rates = drop_path or (None, None)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    state = {name: value.detach().cpu() for name, value in pair.image.state_dict().items()}
    old, image, norm = pair.config.image, _image_config(pair.image, size, rates[0]), _pool_norm(pair, state)
    if isinstance(old, ImageTowerConfig) and isinstance(image, ImageTowerConfig):
        if norm is not None and _takes_norm(old):
            state |= {f"core.norm.{name}": value for name, value in norm.items()}
            norm = None
        _resize(state, old, image)
    if "merge" not in fields:
        reads = isinstance(old, ImageTowerConfig) and old.pool in _READS_CLASS
        fields["merge"] = "norm" if norm is not None else "mul_ln" if reads else "drop"
    if norm is not None and fields["merge"] == "norm" and isinstance(old, ImageTowerConfig):
        fields.setdefault("merge_eps", old.core.norm_eps if old.pool_eps is None else old.pool_eps)
    text = _with_drop_path(pair.config.text, rates[1])
    config = DetectorConfig(image=image, text=text, **fields)
    with Unfilled():
        towers: tuple[nn.Module, nn.Module] = build_image_tower(image), build_text_tower(text)
    _copy(state, towers[0])
    _copy(pair.text.state_dict(), towers[1])
    detector = OwlDetector(config, *towers)  # type: ignore[arg-type]
    if norm is not None and detector.merge is not None and config.merge == "norm":
        detector.merge.norm.load_state_dict(norm)
    if class_init == "projection":
        _project(pair, detector)
    return detector


def _image_config(
    tower: Any, size: tuple[int, int] | None, rate: float | None
) -> ImageTowerConfig | ForeignImageTowerConfig:
    """The tower without pooling and head, at another size, with another drop path."""
    old = tower.config
    bare: dict[str, Any] = {"embed_dim": None, "head_bias": True, "center": False}
    bare["image_size"] = size or old.image_size
    if isinstance(old, ForeignImageTowerConfig):
        if rate:
            raise ValueError(f"drop_path of the image tower is {rate}, but a peer's model has its own: use 0")
        return dataclasses.replace(old, tokens=True, width=token_width(old, tower.module), **bare)
    core: Any = old.core
    if _takes_norm(old):
        core = dataclasses.replace(core, norm_last=True)
    pool: Any = "cls" if old.class_token else "mean"
    new = dataclasses.replace(old, core=core, pool=pool, pool_eps=None, queries=None, **bare)
    return _with_drop_path(new, rate)


def _with_drop_path(config: Any, rate: float | None) -> Any:
    if rate is None:
        return config
    return dataclasses.replace(config, core=dataclasses.replace(config.core, drop_path=rate))


def _takes_norm(old: ImageTowerConfig) -> bool:
    """Whether a norm stood behind the pooling whose place and epsilon are those of the core's final norm."""
    core = old.core
    free = isinstance(core, CoreConfig) and core.norm != "post" and not core.norm_last
    return old.pool in _NORM_BEHIND and free and old.pool_eps in (None, core.norm_eps)


def _pool_norm(pair: DualEncoder, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Weight and bias of the norm behind the pooling of the image tower, None if there is none."""
    config = pair.config.image
    if not isinstance(config, ImageTowerConfig) or config.pool not in _NORM_BEHIND:
        return None
    return {name: state[f"pool.norm.{name}"] for name in ("weight", "bias")}


def _resize(state: dict[str, Tensor], old: ImageTowerConfig, new: ImageTowerConfig) -> None:
    """Takes learned positions and relative tables in `state` to the grid of `new`."""
    before, after = tower_grid(old), tower_grid(new)
    if before == after:
        return
    table = state.get("pos_embed")
    if table is not None and old.position == "learned":
        special = (old.class_token + old.distill_token) * old.class_position
        rows = resample_grid(table[:, special:], before, after, old.position_resample)
        state["pos_embed"] = torch.cat([table[:, :special], rows], dim=1)
    elif table is not None and old.position_resample == RECOMPUTE:
        fixed = FIXED[old.position](after, old.core.width)
        assert fixed is not None
        state["pos_embed"] = fixed
    elif table is not None:
        state["pos_embed"] = resample_grid(table, before, after, old.position_resample)
    if isinstance(old.core, CoreConfig) and old.core.relative:
        for name in [n for n in state if n.endswith("relative.table")]:
            state[name] = resample_table(state[name], before, after, old.core.relative_resample)


def _copy(state: dict[str, Tensor], tower: nn.Module) -> None:
    """Fills `tower` with what it has a place for; all its tensors must be there."""
    own = tower.state_dict()
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            raise ValueError(
                f"'{name}' is {tuple(value.shape)} in the detector, and the pair's does not fit: leave "
                "image_size as it is, this tower cannot be resized"
            )
    tower.load_state_dict({name: state[name] for name in own})


@torch.no_grad()
def _project(pair: DualEncoder, detector: OwlDetector) -> None:
    """Class embeddings as the pair's image head makes them, W(x - mean) + b, at the pair's temperature."""
    head, dense = pair.image.head, detector.class_head.dense
    width = dense.in_features
    weight = torch.eye(width) if head.weight is None else head.weight.detach().float().cpu()
    if weight.shape != dense.weight.shape:
        raise ValueError(
            f"the pair's image head reads {weight.shape[1]} features, tokens are {width} wide: "
            "use class_init='zeros'"
        )
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().float().cpu()
    if head.mean is not None:
        bias = bias - weight @ head.mean.float().cpu()
    dense.weight.copy_(weight)
    dense.bias.copy_(bias)
    # Cosines of the pair mean what they meant at its own temperature; a cosine of 0 gets the prior.
    scale = max(1.0, pair.logit_scale.exp().item())
    prior = detector.config.prior
    detector.class_head.logit_scale.bias.fill_(scale - 1)
    detector.class_head.logit_shift.bias.fill_(math.log(prior / (1 - prior)) / scale)
