"""CCT: compact transformers for small data, with a convolutional tokenizer and sequence pooling.

A name reads cct_DEPTH_KERNELxCONVOLUTIONS_SIDE; `_sine` has fixed positions in place of a learned table.
Source: CCT (arXiv:2104.05704) table 1 and its repository.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmvit.models.config import ConvStemConfig, ImageTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.normalisation import IMAGENET

# depth: (heads, hidden width of the MLP over the width, width)
_DEPTHS: dict[int, tuple[int, int, int]] = {
    2: (2, 1, 128),
    4: (2, 1, 128),
    6: (4, 2, 256),
    7: (4, 2, 256),
    14: (6, 3, 384),
}
# (depth, kernel, convolutions, side of the picture)
_PUBLISHED = (
    (2, 3, 2, 32),
    (4, 3, 2, 32),
    (6, 3, 1, 32),
    (6, 3, 2, 32),
    (7, 3, 1, 32),
    (7, 3, 2, 32),
    (7, 7, 2, 224),
    (14, 7, 2, 224),
    (14, 7, 2, 384),
)
# kernel: (stride, padding)
_STRIDES = {3: (1, 1), 7: (2, 3)}
_CIFAR10: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def _cct(depth: int, kernel: int, layers: int, side: int, sine: bool) -> ImageTowerConfig:
    """No class token; q, k and v without biases; positions start at a deviation of 0.2."""
    num_heads, ratio, width = _DEPTHS[depth]
    stride, padding = _STRIDES[kernel]
    core = CoreConfig(
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=ratio * width,
        norm="mid",
        norm_eps=1e-5,
        qkv_bias=False,
    )
    positions: dict[str, Any] = (
        {"position": "sincos1d", "position_resample": "recompute"}
        if sine
        else {"position_std": 0.2, "position_resample": "bilinear"}
    )
    return ImageTowerConfig(
        core=core,
        image_size=(side, side),
        stem=ConvStemConfig(
            layers=layers, kernel=(kernel,) * 2, stride=(stride,) * 2, padding=(padding,) * 2
        ),
        class_token=False,
        class_position=False,
        pool="seq",
        **positions,
        **(_CIFAR10 if side == 32 else IMAGENET),
    )


def table() -> dict[str, Callable[[], ImageTowerConfig]]:
    """The family's presets."""
    found: dict[str, Callable[[], ImageTowerConfig]] = {}
    for depth, kernel, layers, side in _PUBLISHED:
        name = f"cct_{depth}_{kernel}x{layers}_{side}"
        found[name] = partial(_cct, depth, kernel, layers, side, False)
        if side == 32:
            found[f"{name}_sine"] = partial(_cct, depth, kernel, layers, side, True)
    return found
