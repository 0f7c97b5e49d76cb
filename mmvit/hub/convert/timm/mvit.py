"""timm's MultiScaleVit (mvitv2_*) -> our tower with the staged core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.keymap import Line, blocks
from mmvit.hub.convert.timm.pixels import pixels_of
from mmvit.models.config import ConvStemConfig, ImageTowerConfig
from mmvit.models.core_config import MvitConfig

_BLOCK: list[Line] = [
    ("norm1.*", "norm1.*"),
    ("norm2.*", "norm2.*"),
    ("mlp.*", "mlp.*"),
    ("attn.qkv.*", "attn.qkv.*"),
    ("attn.proj.*", "attn.proj.*"),
    *((f"attn.pool_{x}.weight", f"attn.pool_{x}.conv.weight") for x in "qkv"),
    *((f"attn.norm_{x}.*", f"attn.pool_{x}.norm.*") for x in "qkv"),
    ("attn.rel_pos_h", "attn.rel_pos.h"),
    ("attn.rel_pos_w", "attn.rel_pos.w"),
    ("shortcut_proj_attn.*", "shortcut.*"),
    ("shortcut_proj_mlp.*", "shortcut.*"),
]


def read(model: Any) -> tuple[ImageTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a timm MultiScaleVit.

    Raises:
        ValueError: a variant that is neither of the published kinds.
    """
    config = _config(model)
    table: list[Line] = [
        ("patch_embed.proj.*", "patch_embed.convs.0.*"),
        ("cls_token", "cls_token"),
        ("norm.*", "core.norm.*"),
    ]
    places = [(s, b) for s, depth in enumerate(model.depths) for b in range(depth)]
    for number, (stage, block) in enumerate(places):
        table += blocks(f"stages.{stage}.blocks.{block}.", f"core.blocks.{number}.", _BLOCK)
    return config, table, {n.replace("head.fc.", "head."): v for n, v in model.state_dict().items()}


def check_strides(
    core: MvitConfig, found: Sequence[tuple[Sequence[int], Sequence[int]]], source: str
) -> None:
    """Raises ValueError unless the blocks of a peer pool as ours will: no tensor's shape tells.

    Args:
        core: our config.
        found: (stride of the queries, stride of keys and values) of each of the peer's blocks.
        source: the peer, for the message.
    """
    none = (1,) * len(core.grid)
    places = [(stage, block) for stage, depth in enumerate(core.depths) for block in range(depth)]
    for number, ((stage, block), (q, kv)) in enumerate(zip(places, found, strict=True)):
        expected_q = core.q_stride if stage and not block else none
        expected_kv = tuple(max(k // s**stage, 1) for k, s in zip(core.kv_stride, core.q_stride, strict=True))
        if (tuple(q), tuple(kv)) != (expected_q, expected_kv):
            raise ValueError(
                f"cannot convert {source}: block {number} pools by {tuple(q)} and {tuple(kv)}, expected "
                f"{expected_q} and {expected_kv}"
            )


def _config(model: Any) -> ImageTowerConfig:
    """Our config, read from the modules."""
    attention = [block.attn for stage in model.stages for block in stage.blocks]
    first = attention[0]
    plain = type(first).__name__ == "MultiScaleAttention" and first.mode == "conv"
    if not plain or model.pos_embed is not None or first.pool_q is None or first.rel_pos_type != "spatial":
        raise ValueError(
            "cannot convert timm's MultiScaleVit with absolute positions or another pooling than convolutions"
        )
    proj = model.patch_embed.proj
    # Nothing else remembers the size of the picture: rows = 2 * side - 1 where queries are not strided.
    side = (len(first.rel_pos_h) + 1) // 2
    core = MvitConfig(
        width=proj.out_channels,
        num_heads=first.num_heads,
        depths=tuple(model.depths),
        grid=(side, side),
        q_stride=tuple(model.stages[1].blocks[0].attn.pool_q.stride),
        kv_stride=tuple(first.pool_k.stride),
        kernel=first.pool_q.kernel_size[0],
        mlp_ratio=model.stages[0].blocks[0].mlp.fc1.out_features / proj.out_channels,
        residual_pool=first.residual_pooling,
        residual_pool_prefix=True,
        widen="attention" if model.expand_attn else "mlp",
        norm_eps=model.norm.eps,
        activation=activation_name(model.stages[0].blocks[0].mlp.act),
    )
    check_strides(core, [(a.pool_q.stride, a.pool_k.stride) for a in attention], "timm's MultiScaleVit")
    return ImageTowerConfig(
        core=core,
        image_size=(side * proj.stride[0], side * proj.stride[1]),
        patch_size=proj.stride[0],
        stem=conv_stem(proj),
        class_token=model.cls_token is not None,
        class_position=False,
        position="none",
        pool="cls" if model.global_pool == "token" else "mean",
        **pixels_of(model),
    )


def conv_stem(conv: nn.Conv2d | nn.Conv3d) -> ConvStemConfig:
    """Our stem for a peer's single convolution."""
    return ConvStemConfig(
        kernel=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=tuple(conv.padding),  # type: ignore[arg-type]
        bias=conv.bias is not None,
        max_pool=False,
    )
