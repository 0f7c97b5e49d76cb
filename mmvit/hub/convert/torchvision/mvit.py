"""torchvision's MViT (mvit_v1_b, mvit_v2_s and what its block settings can describe) -> our video tower."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from torch import Tensor, cat

from mmvit.data.clip import ClipPreprocess
from mmvit.data.video import VideoPreprocess
from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.feeding import kinetics
from mmvit.hub.convert.keymap import Line, blocks, token
from mmvit.hub.convert.timm.mvit import check_strides, conv_stem
from mmvit.models.config import ClassifierConfig, VideoTowerConfig
from mmvit.models.core_config import MvitConfig
from mmvit.models.normalisation import KINETICS

TABLE: list[Line] = [
    ("conv_proj.*", "patch_embed.convs.0.*"),
    ("pos_encoding.class_token", "cls_token", token),
    ("pos_embed", "pos_embed"),
    ("norm.*", "core.norm.*"),
    *blocks(
        "blocks.{i}.",
        "core.blocks.{i}.",
        [
            ("norm1.*", "norm1.*"),
            ("norm2.*", "norm2.*"),
            ("attn.qkv.*", "attn.qkv.*"),
            ("attn.project.0.*", "attn.proj.*"),
            *((f"attn.pool_{x}.pool.weight", f"attn.pool_{x}.conv.weight") for x in "qkv"),
            *((f"attn.pool_{x}.norm_act.0.*", f"attn.pool_{x}.norm.*") for x in "qkv"),
            *((f"attn.rel_pos_{axis}", f"attn.rel_pos.{axis}") for axis in "thw"),
            ("mlp.0.*", "mlp.fc1.*"),
            ("mlp.3.*", "mlp.fc2.*"),
            ("project.*", "shortcut.*"),
        ],
    ),
]
_POSITIONS = ("pos_encoding.class_pos", "pos_encoding.temporal_pos", "pos_encoding.spatial_pos")


def read(model: Any) -> tuple[VideoTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a torchvision MViT, its classifier under `head`.

    Raises:
        ValueError: stages whose channels do not double, or other poolings than ours.
    """
    config, state = _config(model), model.state_dict()
    if config.position == "separable":
        # One table of ours: the class token's row, the times, the places.
        rows = [state.pop(name) for name in _POSITIONS]
        state["pos_embed"] = cat([rows[0][None], rows[1], rows[2]])[None]
    return config, TABLE, {n.replace("head.1.", "head."): v for n, v in state.items()}


def preprocess_of(config: VideoTowerConfig | ClassifierConfig) -> ClipPreprocess:
    """How torchvision's published weights were evaluated: 7.5 frames a second, the middle of 256 pixels."""
    tower: Any = config.tower if isinstance(config, ClassifierConfig) else config
    frames, height, width = tower.clip_size
    fed = VideoPreprocess(size=(height, width), frames=frames, crop_fraction=224 / 256)
    return ClipPreprocess(video=kinetics(fed))


def _config(model: Any) -> VideoTowerConfig:
    """Our config, read from the modules."""
    attention = [block.attn for block in model.blocks]
    first, axes = attention[0], (1, 1, 1)
    if any(a.pool_k is None for a in attention):
        raise ValueError("cannot convert torchvision's MViT with a block that does not pool its keys")
    kernels = {tuple(p.pool.kernel_size) for a in attention for p in (a.pool_q, a.pool_k, a.pool_v) if p}
    if len({side for kernel in kernels for side in kernel}) > 1:
        raise ValueError(
            f"cannot convert torchvision's MViT with pooling kernels {sorted(kernels)}: not cubes"
        )
    stages = [len(list(run)) for _, run in groupby(a.num_heads for a in attention)]
    strides = [(axes if a.pool_q is None else a.pool_q.pool.stride, a.pool_k.pool.stride) for a in attention]
    encoding, proj, width = model.pos_encoding, model.conv_proj, model.conv_proj.out_channels
    relative = first.rel_pos_h is not None
    grid = (encoding.temporal_size, *encoding.spatial_size)
    core = MvitConfig(
        width=width,
        num_heads=first.num_heads,
        depths=tuple(stages),
        # Tables of both axes are as long as the longer side needs.
        grid=(grid[0], max(grid[1:]), max(grid[1:])) if relative else grid,
        q_stride=tuple(strides[stages[0]][0]) if len(stages) > 1 else axes,
        kv_stride=tuple(strides[0][1]),
        kernel=first.pool_k.pool.kernel_size[0],
        q_pool_always=first.pool_q is not None,
        relative=relative,
        residual_pool=first.residual_pool,
        residual_pool_prefix=first.residual_pool and first.residual_with_cls_embed,
        widen="attention" if model.blocks[0].proj_after_attn else "mlp",
        norm_eps=model.norm.eps,
        activation=activation_name(model.blocks[0].mlp[1]),
    )
    check_strides(core, strides, "torchvision's MViT")
    positions: dict[str, Any] = (
        {"position": "none", "class_position": False}
        if relative
        else {"position": "separable", "position_std": 0.02, "position_resample": "bicubic"}
    )
    return VideoTowerConfig(
        core=core,
        clip_size=tuple(n * s for n, s in zip(grid, proj.stride, strict=True)),
        patch_size=tuple(proj.stride),
        stem=conv_stem(proj),
        **positions,
        **KINETICS,
    )
