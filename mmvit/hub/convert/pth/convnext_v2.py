"""ConvNeXt V2 weights as its authors published them -> our tower: dense models, and encoders as pre-trained.

Pre-trained encoders come in the layout of a sparse convolution library: kernels by offset, x before y.
Source: the ConvNeXt-V2 repository (models/convnextv2.py, models/fcmae.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.heads import with_head
from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks, translate
from mmvit.hub.convert.transformers.convnext import numbered, vector
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import ConvNextConfig
from mmvit.models.normalisation import IMAGENET
from mmvit.models.overrides import override


def offsets_last(x: Tensor) -> Tensor:
    """A sparse kernel by offset, (k*k,in,out) or depthwise (k*k,C), as (out,in,k,k) or (C,1,k,k)."""
    side = math.isqrt(len(x))
    kernel = x[:, None] if x.ndim == 2 else x
    return kernel.permute(2, 1, 0).unflatten(2, (side, side)).transpose(2, 3).contiguous()


_DECODER = LEFT_OUT + "the decoder, which only pre-training needs"
_TABLE: list[Line] = [
    ("downsample_layers.0.0.*", "patch_embed.proj.*"),
    ("downsample_layers.0.1.*", "core.norm_pre.*"),
    ("norm.*", "pool.norm.*"),
    *((f"{part}.*", _DECODER) for part in ("decoder", "proj", "pred")),
    ("mask_token", _DECODER),
    *blocks(
        "downsamples.{i}.",
        "core.downsamples.{i}.",
        [
            ("0.weight", "norm.weight"),
            ("0.bias", "norm.bias"),
            ("0.ln.*", "norm.*"),
            ("1.weight", "conv.weight"),
            ("1.kernel", "conv.weight", offsets_last),
            ("1.bias", "conv.bias", vector),
        ],
    ),
    *blocks(
        "blocks.{i}.",
        "core.blocks.{i}.",
        [
            ("dwconv.weight", "conv.weight"),
            ("dwconv.kernel", "conv.weight", offsets_last),
            ("dwconv.bias", "conv.bias", vector),
            *(
                (f"{theirs}.{inner}{leaf}", f"{ours}.{leaf}")
                for theirs, inner, ours in (
                    ("norm", "ln.", "norm"),
                    ("pwconv1", "linear.", "fc1"),
                    ("pwconv2", "linear.", "fc2"),
                )
                for inner in ("", inner)
                for leaf in ("weight", "bias")
            ),
            ("grn.gamma", "response.weight", vector),
            ("grn.beta", "response.bias", vector),
        ],
    ),
]


def convert(
    state: Mapping[str, Tensor], *, head: bool, source: str, overrides: Mapping[str, Any]
) -> nn.Module:
    """The classifier or image tower of a ConvNeXt V2 checkpoint; `.report` tells what was done.

    An encoder as pre-trained has no norm behind the pooling: its tower's pool is "mean".

    Args:
        state: the file's tensors.
        head: keep a classifier.
        source: the file, for messages.
        overrides: fields of our config to change, e.g. `drop_path=0.1`.

    Raises:
        ValueError: tensors that have no place in ours.
    """
    state = {n.removeprefix("encoder."): v for n, v in state.items()}
    state = numbered(state, r"stages\.(\d+)\.(\d+)\.", r"downsample_layers\.(\d+)\.")
    classes = len(state["head.bias"]) if head and "head.bias" in state else 0
    config, table = with_head(_config(state), _TABLE, {"head": "head"}, classes)
    translated, report = translate(state, table, source=source)
    return assemble(override(config, dict(overrides)), translated, report, source=source)


def _config(state: Mapping[str, Tensor]) -> ImageTowerConfig:
    """Our config, read from the shapes: depths are runs of blocks of equal width."""
    stem = state.get("downsample_layers.0.0.weight")
    widths: list[int] = []
    while (bias := state.get(f"blocks.{len(widths)}.dwconv.bias")) is not None:
        widths.append(bias.numel())
    if stem is None or not widths:
        raise ValueError(
            "no 'downsample_layers.0.0.weight' or no blocks among the tensors: not a ConvNeXt V2 checkpoint"
        )
    own = sorted(set(widths))
    first = state.get("blocks.0.dwconv.weight")
    offsets = state.get("blocks.0.dwconv.kernel")
    kernel = first.shape[-1] if first is not None else math.isqrt(len(offsets)) if offsets is not None else 7
    return ImageTowerConfig(
        core=ConvNextConfig(
            widths=tuple(own), depths=tuple(widths.count(width) for width in own), kernel=kernel
        ),
        patch_size=stem.shape[-1],
        class_token=False,
        class_position=False,
        position="none",
        pool="mean_norm" if "norm.weight" in state else "mean",
        **IMAGENET,
    )
