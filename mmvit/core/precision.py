"""Keeping a few parameters in float32 when the model around them is cast to a half type.

Temperatures and LayerScale gains are tiny numbers whose updates vanish in bfloat16 (8 bits of mantissa).
Place in the path: used by `core/block.py` and by the models that own a temperature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def never_half(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` as `nn.Module._apply` takes it, except that it moves but never casts down to a half type."""

    def apply(value: Tensor) -> Tensor:
        out = fn(value)
        return value.to(out.device) if out.dtype in HALF and value.dtype not in HALF else out

    return apply
