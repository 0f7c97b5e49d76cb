"""timm's Beit (beit_*, beitv2_*) -> our tower; its names are those of the official BEiT files.

Source: BEiT (arXiv:2106.08254), https://github.com/microsoft/unilm/tree/master/beit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks
from mmvit.hub.convert.timm.pixels import pixels_of
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import CoreConfig

_DERIVED = LEFT_OUT + "derived from the grid"

# Official files have these names as well, and in pre-trained ones two more tensors that no tower reads.
BEIT: list[Line] = [
    ("patch_embed.proj.*", "patch_embed.proj.*"),
    ("cls_token", "cls_token"),
    ("pos_embed", "pos_embed"),
    ("rel_pos_bias.relative_position_bias_table", "core.relative.table"),
    ("rel_pos_bias.relative_position_index", _DERIVED),
    ("norm.*", "core.norm.*"),
    ("fc_norm.*", "pool.norm.*"),
    ("mask_token", LEFT_OUT + "the token that stands for hidden patches in pre-training"),
    ("lm_head.*", LEFT_OUT + "the prediction of codes in pre-training"),
    *blocks(
        "blocks.{i}.",
        "core.blocks.{i}.",
        [
            ("norm1.*", "norm1.*"),
            ("norm2.*", "norm2.*"),
            ("attn.qkv.weight", "attn.qkv.weight"),
            ("attn.q_bias", "attn.q_bias"),
            ("attn.v_bias", "attn.v_bias"),
            ("attn.proj.*", "attn.proj.*"),
            ("attn.relative_position_bias_table", "relative.table"),
            ("attn.relative_position_index", _DERIVED),
            ("gamma_1", "ls1.gamma"),
            ("gamma_2", "ls2.gamma"),
            ("mlp.fc1.*", "mlp.fc1.*"),
            ("mlp.fc2.*", "mlp.fc2.*"),
        ],
    ),
]


def read(model: Any) -> tuple[ImageTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a timm Beit.

    Raises:
        ValueError: pooling that our tower has not, or both kinds of relative position at once.
    """
    block = model.blocks[0]
    own = block.attn.relative_position_bias_table is not None
    normed = isinstance(model.fc_norm, nn.LayerNorm)
    pools = {("avg", True): "mean_norm", ("avg", False): "mean", ("token", False): "cls"}
    if (model.global_pool, normed) not in pools:
        raise ValueError(
            f"cannot convert a Beit with pooling '{model.global_pool}' and use_fc_norm={normed}: expected "
            "'avg', or 'token' without that norm"
        )
    if own and model.rel_pos_bias is not None:
        raise ValueError("cannot convert a Beit with relative positions per block and shared ones at once")
    core = CoreConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        norm_eps=block.norm1.eps,
        activation=activation_name(block.mlp.act),
        qkv_bias=block.attn.q_bias is not None,
        key_bias=False,
        relative="block" if own else "shared" if model.rel_pos_bias is not None else None,
        relative_resample="geometric",
        layer_scale=None if block.gamma_1 is None else 1.0,
        norm_last=isinstance(model.norm, nn.LayerNorm),
    )
    config = ImageTowerConfig(
        core=core,
        image_size=tuple(model.patch_embed.img_size),
        patch_size=model.patch_embed.patch_size[0],
        position="none" if model.pos_embed is None else "learned",
        pool=pools[model.global_pool, normed],  # type: ignore[arg-type]
        **pixels_of(model),
    )
    return config, BEIT, model.state_dict()
