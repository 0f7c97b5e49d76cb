"""What transformers' configs have in common -> our configs, for the files that read one family each."""

from __future__ import annotations

from typing import Any

from mmvit.hub.convert.families import family_of
from mmvit.models.config import DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def core_of(c: Any, **more: Any) -> CoreConfig:
    """The core of a peer's config `c`, other fields as given.

    Raises:
        ValueError: an activation that ours has not.
    """
    fields: dict[str, Any] = {
        "width": c.hidden_size,
        "depth": c.num_hidden_layers,
        "num_heads": c.num_attention_heads,
        "mlp_dim": int(c.hidden_size * c.mlp_ratio) if hasattr(c, "mlp_ratio") else c.intermediate_size,
        "norm_eps": c.layer_norm_eps,
        "activation": activation_of(c),
        "qkv_bias": getattr(c, "qkv_bias", True),
    }
    return CoreConfig(**fields | more)


def clip_pair_of(c: Any) -> DualEncoderConfig:
    """CLIP's pair, which is OWL-ViT's too, of a peer's config `c`."""
    head = {"embed_dim": c.projection_dim, "head_bias": False}
    core = core_of(c.vision_config, norm_first=True)
    image = image_of(
        c.vision_config, core, patch_bias=False, **family_of("transformers_clip").mean_std, **head
    )
    t = c.text_config
    # The end token sees nothing behind it, so padding needs no mask.
    text = TextTowerConfig(
        core=core_of(t, causal=True),
        vocab_size=t.vocab_size,
        context_length=t.max_position_embeddings,
        pad_mask=False,
        **head,
    )
    return DualEncoderConfig(image=image, text=text)


def activation_of(c: Any, field: str = "hidden_act") -> Any:
    """Our name of the activation that a peer's config `c` has in `field`.

    Raises:
        ValueError: an activation that ours has not.
    """
    name = getattr(c, field)
    if name not in _ACTIVATIONS:
        raise ValueError(f"{field} is '{name}', expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def image_of(c: Any, core: CoreConfig, **more: Any) -> ImageTowerConfig:
    """The image tower of a peer's config `c`, other fields as given."""
    size = square(c.image_size)
    fields: dict[str, Any] = {
        "image_size": size,
        "patch_size": square(c.patch_size)[0],
        "position_resample": "bicubic",
    }
    return ImageTowerConfig(core=core, **fields | more)


def square(size: Any) -> tuple[int, int]:
    """(height, width) of a size that transformers writes as one number or as two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
