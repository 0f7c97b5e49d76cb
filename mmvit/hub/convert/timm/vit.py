"""timm's VisionTransformer (vit_*, deit*, deit3_*, flexivit_*, CLIP, SigLIP, DINOv2) -> our tower.

Our names inside the core are timm's, so the table is short; what takes care is the shape of the model around
it: which tokens carry a position, where the final norm stands, how the tokens are pooled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.keymap import Line
from mmvit.hub.convert.timm.pixels import pixels_of
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import CoreConfig

VIT: list[Line] = [
    ("patch_embed.proj.*", "patch_embed.proj.*"),
    ("cls_token", "cls_token"),
    ("dist_token", "dist_token"),
    ("reg_token", "reg_token"),
    ("pos_embed", "pos_embed"),
    ("norm_pre.*", "core.norm_pre.*"),
    ("blocks.*", "core.blocks.*"),
    ("norm.*", "core.norm.*"),
    ("fc_norm.*", "pool.norm.*"),
    ("attn_pool.*", "pool.*"),
]
_POOLS = {"token": "cls", "avg": "mean", "map": "map"}


def read(model: Any) -> tuple[ImageTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a timm VisionTransformer.

    Raises:
        ValueError: a variant that is not the plain transformer.
    """
    config, state = timm_config(model), model.state_dict()
    if config.registers and not model.no_embed_class:
        # Positions of registers are constants added to constants: they become part of the registers.
        table, first = state["pos_embed"], int(config.class_token)
        last = first + config.registers
        state["reg_token"] = state["reg_token"] + table[:, first:last]
        state["pos_embed"] = torch.cat([table[:, :first], table[:, last:]], dim=1)
    return config, VIT, state


def timm_config(model: Any) -> ImageTowerConfig:
    """Our config for a timm VisionTransformer, read from its modules.

    Raises:
        ValueError: a variant that is not the plain transformer.
    """
    if model.global_pool not in _POOLS:
        raise ValueError(
            f"cannot convert timm's VisionTransformer with pooling '{model.global_pool}': expected one of "
            f"{', '.join(_POOLS)}; lock it as 'timm:NAME' instead"
        )
    block = model.blocks[0]
    scale = getattr(block.ls1, "gamma", None)
    norm_last = isinstance(model.norm, nn.LayerNorm)
    pool = "mean_norm" if isinstance(model.fc_norm, nn.LayerNorm) else _POOLS[model.global_pool]
    if pool == "mean_norm" and model.global_pool != "avg":
        raise ValueError(f"cannot convert a norm behind '{model.global_pool}' pooling")
    if pool in ("mean", "mean_norm") and model.pool_include_prefix:
        raise ValueError("cannot convert average pooling that includes the class token")
    prefix = model.has_class_token or model.num_reg_tokens
    if pool == "map" and prefix and not model.pool_include_prefix:
        raise ValueError("cannot convert attention pooling that leaves out class token and registers")
    distilled = hasattr(model, "dist_token")
    # FlexiViT is told from a plain ViT by its name alone: the weights have the same names and shapes.
    flexible = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", "")).startswith(
        "flexivit"
    )
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
        patch_resample="pi" if flexible else None,
        class_token=model.has_class_token,
        class_position=not (model.has_class_token and model.no_embed_class),
        distill_token=distilled,
        registers=model.num_reg_tokens,
        position_resample="bilinear_antialias" if flexible else "bicubic_antialias",
        pool="cls_dist" if distilled else pool,  # type: ignore[arg-type]
        **pixels_of(model),
    )
