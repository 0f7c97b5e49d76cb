"""A DINOv2 backbone read out of an ONNX file -> our image tower.

Source: Oquab et al. 2023 (DINOv2): class token, LayerScale, patches of 14 pixels, positions stored at 37x37.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.keymap import translate
from mmvit.hub.convert.onnx.dinov2 import read_dinov2_onnx
from mmvit.hub.convert.transformers.tables import DINOV2
from mmvit.models.config import CoreConfig, ImageTowerConfig
from mmvit.models.normalisation import IMAGENET
from mmvit.models.overrides import override


def from_dinov2_onnx(path: str | Path, num_heads: int | None = None, **overrides: Any) -> nn.Module:
    """The image tower, no head: the class token after the final norm; `.report` tells what was done.

    Args:
        path: the ONNX file; whatever follows the backbone in it is not read.
        num_heads: no tensor tells it; width / 64 when None, as in all of DINOv2.
        overrides: fields of our config to change, e.g. `depth=11`, `norm_last=False`, `pool="mean"`.
    """
    found = read_dinov2_onnx(path)
    state, report = translate(found, DINOV2, source=str(path))
    width = state["cls_token"].shape[-1]
    patch = state["patch_embed.proj.weight"].shape[-1]
    side = math.isqrt(state["pos_embed"].shape[1] - 1) * patch
    core = CoreConfig(
        width=width,
        depth=sum(name.endswith(".norm1.weight") for name in state),
        num_heads=num_heads or width // 64,
        mlp_dim=state["core.blocks.0.mlp.fc1.weight"].shape[0],
        layer_scale=1.0,
    )
    config = ImageTowerConfig(
        core=core,
        image_size=(side, side),
        patch_size=patch,
        position_resample="bicubic",
        **IMAGENET,
    )
    return assemble(override(config, overrides), state, report, source=str(path))
