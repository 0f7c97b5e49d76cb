"""Named models: sizes, presets, and how overrides reach a field of a config.

Source: the size table is Scaling ViT (arXiv:2106.04560) table 2 and big_vision's `decode_variant`; CLIP
(arXiv:2103.00020), SigLIP (arXiv:2303.15343), LiT (arXiv:2111.07991) and DINOv2 (arXiv:2304.07193) for the
constants of their families.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from mmvit.errors import nearest
from mmvit.models.build import build_core, build_image_tower, build_text_tower
from mmvit.models.classifier import ImageClassifier
from mmvit.models.config import (
    ClassifierConfig,
    CoreConfig,
    DualEncoderConfig,
    ForeignImageTowerConfig,
    ImageTowerConfig,
    TextTowerConfig,
)
from mmvit.models.lit import DualEncoder, build_dual_encoder
from mmvit.models.overrides import override

__all__ = [
    "SIZES",
    "build_core",
    "build_dual_encoder",
    "build_image_tower",
    "build_model",
    "build_text_tower",
    "create_model",
    "list_models",
    "preset",
]

AnyConfig = (
    ImageTowerConfig | ForeignImageTowerConfig | TextTowerConfig | DualEncoderConfig | ClassifierConfig
)

# name: (width, depth, mlp_dim, num_heads)
SIZES: dict[str, tuple[int, int, int, int]] = {
    "mu": (32, 1, 128, 2),
    "tiny": (192, 12, 768, 3),
    "small": (384, 12, 1536, 6),
    "medium": (512, 12, 2048, 8),
    "base": (768, 12, 3072, 12),
    "large": (1024, 24, 4096, 16),
    "so400m": (1152, 27, 4304, 16),
    "huge": (1280, 32, 5120, 16),
    "giant": (1408, 40, 6144, 16),
    "giantopt": (1536, 40, 6144, 16),
    "gigantic": (1664, 48, 8192, 16),
    "giganticopt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}

_PATCHES: dict[str, tuple[int, ...]] = {
    "mu": (16,),
    "tiny": (16,),
    "small": (16, 32),
    "medium": (16,),
    "base": (8, 16, 32),
    "large": (16,),
    "giantopt": (16,),
}
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def core_of(size: str, **fields: Any) -> CoreConfig:
    """The core of a named size, other fields as given."""
    width, depth, mlp_dim, num_heads = SIZES[size]
    return CoreConfig(width=width, depth=depth, mlp_dim=mlp_dim, num_heads=num_heads, **fields)


def _vit(size: str, patch: int, pool: str) -> ImageTowerConfig:
    """A plain ViT at 224 pixels; without a class token when nothing reads it."""
    pooled: dict[str, Any] = {"cls": {}, "map": {"class_token": False}, "gap": {"class_token": False}}[pool]
    name: Any = {"gap": "mean"}.get(pool, pool)
    return ImageTowerConfig(core=core_of(size), patch_size=patch, pool=name, **pooled)


def _dinov2(size: str, registers: int) -> ImageTowerConfig:
    """DINOv2's ViT/14, positions stored at 518 pixels; any other multiple of 14 is resampled as it goes."""
    return ImageTowerConfig(
        core=core_of(size, layer_scale=1.0),
        image_size=(518, 518),
        patch_size=14,
        registers=registers,
        position_resample="bicubic_antialias" if registers else "bicubic",
        **_IMAGENET,
    )


def _text(size: str, **fields: Any) -> TextTowerConfig:
    """LiT's text tower: bidirectional, 16 tokens, 32,000 subwords; padding hidden, the end token read."""
    return TextTowerConfig(core=core_of(size), vocab_size=32_000, **fields)


def _lit(size: str) -> DualEncoderConfig:
    """LiT with towers of one size: no image head, a linear text head into the image tower's width."""
    image = _vit(size, 16, "cls")
    return DualEncoderConfig(
        image=image,
        text=_text(size, embed_dim=image.core.width),
        logit_scale_init=math.log(10.0),
        logit_scale_max=None,
    )


def _clip(size: str, patch: int, text_width: int, embed_dim: int) -> DualEncoderConfig:
    """CLIP: class token, norm before the blocks, causal text; LAION's exact GELU (OpenAI's is quick_gelu)."""
    image = ImageTowerConfig(
        core=core_of(size, norm_eps=1e-5, norm_first=True),
        patch_size=patch,
        patch_bias=False,
        embed_dim=embed_dim,
        head_bias=False,
        **_CLIP,
    )
    core = CoreConfig(
        width=text_width,
        depth=12,
        num_heads=text_width // 64,
        mlp_dim=4 * text_width,
        norm_eps=1e-5,
        causal=True,
    )
    # The end token sees nothing behind it, so padding needs no mask.
    text = TextTowerConfig(
        core=core,
        vocab_size=49_408,
        context_length=77,
        pad_mask=False,
        embed_dim=embed_dim,
        head_bias=False,
    )
    return DualEncoderConfig(image=image, text=text)


def _siglip(size: str, patch: int, context_length: int) -> DualEncoderConfig:
    """SigLIP: map pooling, no image head; text read at the last position with its padding attended."""
    core = core_of(size, activation="gelu_tanh")
    image = ImageTowerConfig(core=core, patch_size=patch, pool="map", class_token=False)
    text = TextTowerConfig(
        core=core,
        vocab_size=32_000,
        context_length=context_length,
        pool="last",
        pad_mask=False,
        embed_dim=core.width,
    )
    return DualEncoderConfig(
        image=image,
        text=text,
        logit_scale_init=math.log(10.0),
        logit_bias_init=-10.0,
        logit_scale_max=None,
        activation="sigmoid",
    )


def _table() -> dict[str, Callable[[], AnyConfig]]:
    """Every preset by name."""
    table: dict[str, Callable[[], AnyConfig]] = {}
    for size in SIZES:
        for patch in _PATCHES.get(size, (14,)):
            for pool in ("cls", "map", "gap"):
                suffix = "" if pool == "cls" else f"_{pool}"
                table[f"vit_{size}_patch{patch}_224{suffix}"] = partial(_vit, size, patch, pool)
    for size in ("small", "base", "large"):
        table[f"dinov2_{size}_patch14_518"] = partial(_dinov2, size, 0)
        table[f"dinov2_{size}_patch14_reg4_518"] = partial(_dinov2, size, 4)
    for size in ("mu", "tiny", "small", "medium", "base", "large"):
        table[f"text_{size}"] = partial(_text, size)
        table[f"lit_{size}"] = partial(_lit, size)
    for size, patch, text_width, embed_dim in (
        ("base", 32, 512, 512),
        ("base", 16, 512, 512),
        ("large", 14, 768, 768),
    ):
        table[f"clip_{size}_patch{patch}_224"] = partial(_clip, size, patch, text_width, embed_dim)
    for size, patch, context_length in (("base", 16, 64), ("so400m", 14, 16)):
        table[f"siglip_{size}_patch{patch}_224"] = partial(_siglip, size, patch, context_length)
    return table


_PRESETS = _table()


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names of the presets that match a shell pattern, e.g. "vit_*_map".

    Example:
        >>> list_models("lit_[st]*")
        ['lit_small', 'lit_tiny']
    """
    return sorted(fnmatch.filter(_PRESETS, pattern))


def preset(name: str, **overrides: Any) -> AnyConfig:
    """The config of a preset with overrides applied, see `create_model`.

    Raises:
        ValueError: unknown name or override; the message names the nearest valid ones.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown model '{name}': {nearest(name, _PRESETS)}")
    config = _PRESETS[name]()
    classes = overrides.pop("num_classes", 0)
    if classes and isinstance(config, ImageTowerConfig):
        config = ClassifierConfig(tower=config, num_classes=classes)
    elif classes:
        raise ValueError(f"num_classes is for image towers, and '{name}' is none")
    return override(config, overrides)


def create_model(name: str, **overrides: Any) -> nn.Module:
    """A model with random weights: a tower, an image-text pair or (num_classes > 0) a classifier.

    Args:
        name: one of `list_models()`.
        **overrides: fields of the model's config by name, e.g. `image_size=384`, `num_classes=10`,
            `drop_path=0.1`, `embed_dim=256` (of both towers of a pair). A name that both towers have is
            written with its tower: `**{"image.depth": 6}`.

    Raises:
        ValueError: unknown name or override; the message names the nearest valid ones.

    Example:
        >>> create_model("vit_mu_patch16_224", image_size=32, num_classes=10).head.out_features
        10
    """
    return build_model(preset(name, **overrides))


def build_model(config: AnyConfig) -> nn.Module:
    """The module that any config describes, with random weights."""
    if isinstance(config, DualEncoderConfig):
        return DualEncoder(config)
    if isinstance(config, ClassifierConfig):
        return ImageClassifier(config)
    if isinstance(config, TextTowerConfig):
        return build_text_tower(config)
    return build_image_tower(config)
