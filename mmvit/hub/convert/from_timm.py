"""timm's plain vision transformers (vit_*, deit_*, deit3_*, flexivit_*, CLIP, SigLIP, DINOv2) -> our tower.

Our names inside the core are timm's, so the table is short; what takes care is the shape of the model around
it: which tokens carry a position, where the final norm stands, how the tokens are pooled.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mmvit.errors import need
from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.keymap import LEFT_OUT, Line, translate
from mmvit.models.config import CoreConfig, ImageTowerConfig
from mmvit.models.overrides import override

TIMM: list[Line] = [
    ("patch_embed.proj.*", "patch_embed.proj.*"),
    ("cls_token", "cls_token"),
    ("reg_token", "reg_token"),
    ("pos_embed", "pos_embed"),
    ("norm_pre.*", "core.norm_pre.*"),
    ("blocks.*", "core.blocks.*"),
    ("norm.*", "core.norm.*"),
    ("fc_norm.*", "pool.norm.*"),
    ("attn_pool.*", "pool.*"),
    ("head.*", LEFT_OUT + "a classifier; the tower ends in features"),
]
_POOLS = {"token": "cls", "avg": "mean", "map": "map"}


def from_timm(source: nn.Module | str, *, weights: bool = True, **overrides: Any) -> nn.Module:
    """An image tower with the features of forward_head(pre_logits=True); `.report` tells what was done.

    Args:
        source: a model, or its name (its published weights are fetched unless `weights` is False).
        weights: for a name only.
        overrides: fields of our config to change, e.g. `image_size=128`, `depth=11`, `embed_dim=None`.

    Raises:
        ValueError: not a plain vision transformer, or tensors that have no place in ours.
    """
    timm = need("timm")
    model: nn.Module = timm.create_model(source, pretrained=weights) if isinstance(source, str) else source
    name = f"timm {type(model).__name__}"
    config, state = timm_config(model), model.state_dict()
    if config.registers and config.class_position and config.class_token:
        # Positions of registers are constants added to constants: they become part of the registers.
        table = state["pos_embed"]
        state["reg_token"] = state["reg_token"] + table[:, 1 : 1 + config.registers]
        state["pos_embed"] = table[:, [0, *range(1 + config.registers, table.shape[1])]]
    translated, report = translate(state, TIMM, source=name)
    return assemble(override(config, overrides), translated, report, source=name)


def timm_config(model: Any) -> ImageTowerConfig:
    """Our config for a timm VisionTransformer, read from its modules.

    Raises:
        ValueError: a variant that is not the plain transformer.
    """
    vision = need("timm").models.vision_transformer
    if not isinstance(model, vision.VisionTransformer) or model.global_pool not in _POOLS:
        pool = getattr(model, "global_pool", "-")
        raise ValueError(
            f"cannot convert timm's {type(model).__name__} with pooling '{pool}': "
            f"expected a VisionTransformer with {', '.join(_POOLS)}; lock it as 'timm:NAME' instead"
        )
    block = model.blocks[0]
    scale = getattr(block.ls1, "gamma", None)
    norm_last = isinstance(model.norm, nn.LayerNorm)
    pool = "mean_norm" if isinstance(model.fc_norm, nn.LayerNorm) else _POOLS[model.global_pool]
    if pool == "mean_norm" and model.global_pool != "avg":
        raise ValueError(f"cannot convert a norm behind '{model.global_pool}' pooling")
    if pool in ("mean", "mean_norm") and model.pool_include_prefix:
        raise ValueError("cannot convert average pooling that includes the class token")
    data = need("timm").data.resolve_model_data_config(model)
    core = CoreConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        norm_eps=block.norm1.eps,
        activation=activation_name(block.mlp.act),
        qkv_bias=block.attn.qkv.bias is not None,
        layer_scale=None if scale is None else 1.0,
        norm_first=isinstance(model.norm_pre, nn.LayerNorm),
        norm_last=norm_last,
    )
    return ImageTowerConfig(
        core=core,
        image_size=tuple(model.patch_embed.img_size),
        patch_size=model.patch_embed.patch_size[0],
        patch_bias=model.patch_embed.proj.bias is not None,
        class_token=model.has_class_token,
        class_position=not model.no_embed_class,
        registers=model.num_reg_tokens,
        pool=pool,  # type: ignore[arg-type]
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
