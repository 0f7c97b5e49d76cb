"""timm's Cait (cait_*), and the names of the deit repository's CaiT files, which are the same -> our tower.

Those files carry `module.` before every name, which the reader of weight files takes off.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.keymap import Line, blocks
from mmvit.hub.convert.timm.pixels import pixels_of
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import CaitConfig

_BLOCK: list[Line] = [
    ("norm1.*", "norm1.*"),
    ("attn.*", "attn.*"),
    ("gamma_1", "ls1.gamma"),
    ("norm2.*", "norm2.*"),
    ("mlp.*", "mlp.*"),
    ("gamma_2", "ls2.gamma"),
]
CAIT: list[Line] = [
    ("patch_embed.proj.*", "patch_embed.proj.*"),
    ("pos_embed", "pos_embed"),
    ("cls_token", "core.cls_token"),
    *blocks("blocks.{i}.", "core.blocks.{i}.", _BLOCK),
    *blocks("blocks_token_only.{i}.", "core.class_blocks.{i}.", _BLOCK),
    ("norm.*", "core.norm.*"),
]
_POOLS = {"token": "cls", "avg": "mean"}


def read(model: Any) -> tuple[ImageTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a timm Cait.

    Raises:
        ValueError: a variant without its class-attention blocks, or without pooling.
    """
    if model.global_pool not in _POOLS or not model.blocks_token_only:
        raise ValueError(
            f"cannot convert timm's Cait with pooling '{model.global_pool}': expected one of "
            f"{', '.join(_POOLS)} and its class-attention blocks; lock it as 'timm:NAME' instead"
        )
    block, last = model.blocks[0], model.blocks_token_only[0]
    if last.mlp.fc1.out_features != block.mlp.fc1.out_features:
        raise ValueError("cannot convert a Cait whose class-attention blocks have MLPs of another width")
    core = CaitConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        class_depth=len(model.blocks_token_only),
        norm_eps=block.norm1.eps,
        activation=activation_name(block.mlp.act),
    )
    config = ImageTowerConfig(
        core=core,
        image_size=tuple(model.patch_embed.img_size),
        patch_size=model.patch_embed.patch_size[0],
        class_token=False,
        class_position=False,
        position_std=0.02,
        position_resample="bicubic",
        pool=_POOLS[model.global_pool],  # type: ignore[arg-type]
        **pixels_of(model),
    )
    return config, CAIT, model.state_dict()
