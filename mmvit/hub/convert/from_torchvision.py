"""torchvision's VisionTransformer (vit_b_16, vit_l_16, ...) -> our image tower."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmvit.errors import need
from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks, translate
from mmvit.models.config import CoreConfig, ImageTowerConfig
from mmvit.models.overrides import override

_VIT: list[Line] = [
    ("class_token", "cls_token"),
    ("conv_proj.*", "patch_embed.proj.*"),
    ("encoder.pos_embedding", "pos_embed"),
    ("encoder.ln.*", "core.norm.*"),
    ("heads.*", LEFT_OUT + "a classifier; the tower ends in features"),
    *blocks(
        "encoder.layers.encoder_layer_{i}.",
        "core.blocks.{i}.",
        [
            ("ln_1.*", "norm1.*"),
            ("ln_2.*", "norm2.*"),
            ("self_attention.in_proj_weight", "attn.qkv.weight"),
            ("self_attention.in_proj_bias", "attn.qkv.bias"),
            ("self_attention.out_proj.*", "attn.proj.*"),
            ("mlp.0.*", "mlp.fc1.*"),
            ("mlp.3.*", "mlp.fc2.*"),
        ],
    ),
]


def from_torchvision(source: nn.Module, **overrides: Any) -> nn.Module:
    """An image tower whose features are the normed class token; `.report` tells what was done.

    Args:
        source: a torchvision VisionTransformer without convolutional stem.
        overrides: fields of our config to change, e.g. `image_size=128`.

    Raises:
        ValueError: another architecture.
    """
    if not isinstance(source, need("torchvision").models.VisionTransformer):
        raise ValueError(
            f"cannot convert torchvision's {type(source).__name__}: expected a VisionTransformer; "
            "lock it as it is with 'torchvision:NAME' instead"
        )
    model: Any = source
    layer = model.encoder.layers[0]
    core = CoreConfig(
        width=model.hidden_dim,
        depth=len(model.encoder.layers),
        num_heads=layer.num_heads,
        mlp_dim=model.mlp_dim,
        norm_eps=layer.ln_1.eps,
        activation=activation_name(layer.mlp[1]),
    )
    config = ImageTowerConfig(
        core=core,
        image_size=(model.image_size, model.image_size),
        patch_size=model.patch_size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    translated, report = translate(model.state_dict(), _VIT, source="torchvision VisionTransformer")
    return assemble(override(config, overrides), translated, report, source="torchvision VisionTransformer")
