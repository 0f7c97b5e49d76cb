"""timm's ConvNeXt with response normalisation (convnextv2_*) -> our tower with the convolutional core."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.keymap import Line, blocks
from mmvit.hub.convert.timm.pixels import pixels_of, size_of
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import ConvNextConfig


def matrix(x: Tensor) -> Tensor:
    """A pointwise convolution's kernel (out,in,1,1), or a matrix already, as a Linear weight (out,in)."""
    return x.flatten(1)


_BLOCK: list[Line] = [
    ("conv_dw.*", "conv.*"),
    ("norm.*", "norm.*"),
    ("mlp.fc1.weight", "fc1.weight", matrix),
    ("mlp.fc1.bias", "fc1.bias"),
    ("mlp.grn.*", "response.*"),
    ("mlp.fc2.weight", "fc2.weight", matrix),
    ("mlp.fc2.bias", "fc2.bias"),
]


def read(model: Any) -> tuple[ImageTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a timm ConvNeXt of the second version.

    Raises:
        ValueError: a first version, or a variant with another stem, stride or head.
    """
    table: list[Line] = [
        ("stem.0.*", "patch_embed.proj.*"),
        ("stem.1.*", "core.norm_pre.*"),
        ("pool_norm.*", "pool.norm.*"),
    ]
    number = 0
    for s, stage in enumerate(model.stages):
        if s:
            table += blocks(
                f"stages.{s}.downsample.",
                f"core.downsamples.{s - 1}.",
                [("0.*", "norm.*"), ("1.*", "conv.*")],
            )
        for b in range(len(stage.blocks)):
            table += blocks(f"stages.{s}.blocks.{b}.", f"core.blocks.{number}.", _BLOCK)
            number += 1
    config, state = _config(model), model.state_dict()
    renames = {"head.norm.": "pool_norm.", "head.fc.": "head."}
    for old, new in renames.items():
        state = {n.replace(old, new, 1) if n.startswith(old) else n: v for n, v in state.items()}
    return config, table, state


def _config(model: Any) -> ImageTowerConfig:
    """Our config, read from the modules."""
    blocks_ = [block for stage in model.stages for block in stage.blocks]
    first, patch = blocks_[0], model.stem[0]
    downs = [stage.downsample[1] for stage in list(model.stages)[1:]]
    published = (
        all(hasattr(block.mlp, "grn") and block.gamma is None for block in blocks_)
        and len(model.stem) == 2
        and patch.kernel_size == patch.stride
        and all(d.kernel_size == d.stride == (2, 2) for d in downs)
        and isinstance(model.norm_pre, nn.Identity)
        and model.head.global_pool.pool_type == "avg"
        and isinstance(model.head.norm, nn.LayerNorm)
    )
    if not published:
        raise ValueError(
            "cannot convert this timm ConvNeXt: expected a convnextv2_* (response normalisation, no layer "
            "scale, patches as stem, pooling before the last norm); lock it as 'timm:NAME' instead"
        )
    core = ConvNextConfig(
        widths=tuple(stage.blocks[0].conv_dw.out_channels for stage in model.stages),
        depths=tuple(len(stage.blocks) for stage in model.stages),
        kernel=first.conv_dw.kernel_size[0],
        norm_eps=first.norm.eps,
        activation=activation_name(first.mlp.act),
    )
    return ImageTowerConfig(
        core=core,
        image_size=size_of(model),
        patch_size=patch.stride[0],
        patch_bias=patch.bias is not None,
        class_token=False,
        class_position=False,
        position="none",
        pool="mean_norm",
        **pixels_of(model),
    )
