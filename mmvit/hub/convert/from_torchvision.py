"""torchvision's VisionTransformer (vit_b_16, ...) -> our image tower; its MViT -> our video tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvit.errors import need
from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.families import family_of
from mmvit.hub.convert.heads import with_head
from mmvit.hub.convert.keymap import Line, blocks, translate
from mmvit.hub.convert.torchvision import mvit
from mmvit.models.config import CoreConfig, ImageTowerConfig
from mmvit.models.overrides import override

_VIT: list[Line] = [
    ("class_token", "cls_token"),
    ("conv_proj.*", "patch_embed.proj.*"),
    ("encoder.pos_embedding", "pos_embed"),
    ("encoder.ln.*", "core.norm.*"),
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


def from_torchvision(source: nn.Module, *, head: bool = True, **overrides: Any) -> nn.Module:
    """A classifier with the peer's logits, or a tower; `.report` tells what was done.

    Features are the normed class token. What takes clips carries how it is fed as `.preprocess`.

    Args:
        source: a torchvision VisionTransformer without convolutional stem, or MViT.
        head: False leaves a classifier out: the tower alone.
        overrides: fields of our config to change, e.g. `image_size=128`.

    Raises:
        ValueError: another architecture.
    """
    models = need("torchvision").models
    name = f"torchvision {type(source).__name__}"
    config: Any
    if isinstance(source, models.VisionTransformer):
        config, table, state = _read(source)
    elif isinstance(source, models.video.MViT):
        config, table, state = mvit.read(source)
    else:
        raise ValueError(
            f"cannot convert torchvision's {type(source).__name__}: expected a VisionTransformer or MViT; "
            "lock it as it is with 'torchvision:NAME' instead"
        )
    classes = len(state["head.bias"]) if head and "head.bias" in state else 0
    config, table = with_head(config, table, {"head": "head"}, classes)
    translated, report = translate(state, table, source=name)
    model: Any = assemble(override(config, overrides), translated, report, source=name)
    if isinstance(source, models.video.MViT):
        model.preprocess = mvit.preprocess_of(model.config)
    return model


def _read(model: Any) -> tuple[ImageTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a VisionTransformer, its classifier under `head`."""
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
        **family_of("torchvision_vit").mean_std,
    )
    return config, _VIT, {n.replace("heads.head.", "head."): v for n, v in model.state_dict().items()}
