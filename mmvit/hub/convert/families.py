"""What no state dict says, by family of weights: constants that load silently wrong when they are guessed.

One row a family: all of them for bare files (`.npz`, `.pth`), and for models that carry a config or modules
what those are silent about.
Source: the code that each family was trained and evaluated with (big_vision, vision_transformer, deit, CLIP,
SigLIP, MAE, BEiT, iBOT, DINOv2, transformers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmvit.errors import nearest
from mmvit.models.config import Pool
from mmvit.models.core_config import Activation
from mmvit.models.normalisation import MEAN_STD


@dataclass(frozen=True, kw_only=True)
class Family:
    """Constants of one family.

    Attributes:
        norm_eps: LayerNorm epsilon.
        activation: which GELU.
        norm: "pre" (ViT) or "post" (BERT).
        norm_first: a LayerNorm on the tokens before the blocks.
        norm_last: a final LayerNorm on all tokens.
        pool: how tokens become features; "mean_norm" has its norm behind the mean.
        class_token: whether a class token leads the grid.
        class_position: whether the position table has a row for it.
        normalisation: a name in `MEAN_STD`.
        position_resample: how the family's code takes its positions to another grid.
        patch_resample: how its patch kernel follows another patch size, None = it has one size.
        head_width: width of an attention head that tells the number of heads, None = by `HEADS`.
    """

    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    norm: Literal["pre", "post"] = "pre"
    norm_first: bool = False
    norm_last: bool = True
    pool: Pool = "cls"
    class_token: bool = True
    class_position: bool = True
    normalisation: str = "imagenet"
    position_resample: str = "bicubic"
    patch_resample: str | None = None
    head_width: int | None = None

    @property
    def mean_std(self) -> dict[str, Any]:
        """`mean` and `std` as fields of a tower's config."""
        return MEAN_STD[self.normalisation]

    @property
    def core_fields(self) -> dict[str, Any]:
        """The fields that belong into a `CoreConfig`."""
        return {
            "norm": self.norm,
            "norm_eps": self.norm_eps,
            "activation": self.activation,
            "norm_first": self.norm_first,
            "norm_last": self.norm_last,
        }

    @property
    def tower_fields(self) -> dict[str, Any]:
        """The fields that belong into an `ImageTowerConfig`."""
        return {
            "class_token": self.class_token,
            "class_position": self.class_token and self.class_position,
            "pool": self.pool,
            "position_resample": self.position_resample,
            "patch_resample": self.patch_resample,
            **self.mean_std,
        }

    def num_heads(self, width: int) -> int:
        """The number of heads that the family's models of this width have.

        Raises:
            ValueError: a width that is in no published model.
        """
        if self.head_width and width % self.head_width == 0:
            return width // self.head_width
        if self.head_width or width not in HEADS:
            raise ValueError(f"no published model is {width} wide: pass num_heads=...")
        return HEADS[width]


# width -> heads of the ViTs that heads of 64 channels do not explain as well as those that they do.
HEADS: dict[int, int] = {
    **{64 * heads: heads for heads in (3, 6, 8, 12, 16)},
    1152: 16,
    1280: 16,
    1408: 16,
    1536: 16,
    1664: 16,
    1792: 16,
}

_BIG_VISION: dict[str, Any] = {
    "activation": "gelu_tanh",
    "normalisation": "half",
    "position_resample": "bilinear_align_corners",
}
FAMILIES: dict[str, Family] = {
    # jax files
    "big_vision": Family(**_BIG_VISION, class_position=False),
    "augreg": Family(**_BIG_VISION),
    "flexivit": Family(
        **_BIG_VISION | {"position_resample": "bilinear_antialias"},
        patch_resample="pi",
        class_position=False,
    ),
    "mixer": Family(**_BIG_VISION, pool="mean", class_token=False),
    "lit": Family(**_BIG_VISION),
    "siglip": Family(**_BIG_VISION, pool="map", class_token=False),
    "siglip2": Family(**_BIG_VISION, pool="map", class_token=False),
    # supervised
    "deit": Family(),
    "deit_distilled": Family(pool="cls_dist"),
    "deit3": Family(class_position=False),
    "cait": Family(class_position=False, head_width=48),
    "torchvision_vit": Family(),
    # self-supervised
    "mae": Family(),
    "beit": Family(),
    "beit_in22k": Family(normalisation="half"),
    "ibot": Family(),
    "dinov2": Family(head_width=64),
    "dinov2_reg": Family(head_width=64, position_resample="bicubic_antialias"),
    # transformers, where a model's config is silent
    "transformers_vit": Family(norm_eps=1e-12, normalisation="half"),
    "transformers_deit": Family(norm_eps=1e-12),
    "transformers_clip": Family(norm_eps=1e-5, norm_first=True, normalisation="clip"),
    "transformers_siglip": Family(
        activation="gelu_tanh", normalisation="half", pool="map", class_token=False
    ),
    "bert": Family(norm="post", norm_eps=1e-12, norm_first=True, norm_last=False),
}


def family_of(name: str) -> Family:
    """The row of `FAMILIES` under a name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown family '{name}': {nearest(name, FAMILIES)}")
    return FAMILIES[name]
