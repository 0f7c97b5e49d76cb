"""What the projections of patches, tubelets and spectrogram patches share: their start and their type.

Source: big_vision and flax (LeCun normal, zero bias).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def lecun_normal_(projection: Any) -> None:
    """Nothing; fills a convolution: kernel truncated at two deviations, variance 1/fan_in; bias zero."""
    std = math.sqrt(1.0 / projection.weight[0].numel()) / 0.87962566103423978  # what truncation leaves of it
    nn.init.trunc_normal_(projection.weight, std=std, a=-2 * std, b=2 * std)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


def computed_in(weight: Tensor) -> torch.dtype:
    """The type of a product with `weight`; inputs cast to it before they are cut take half the copy."""
    kind = weight.device.type
    half = weight.dtype == torch.float32 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if half else weight.dtype
