"""Which GELU a peer's module computes: its state dict does not say, and the wrong one loads silently."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmvit.core.mlp import ACTIVATIONS
from mmvit.models.core_config import Activation


def activation_name(module: nn.Module) -> Activation:
    """Our name of a peer's activation, found by what it computes.

    Raises:
        ValueError: none of ours gives the same values.
    """
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    found: Any = next((n for n, f in ACTIVATIONS.items() if torch.allclose(module(x), f(x), atol=1e-9)), None)
    if found is None:
        raise ValueError(f"activation {module} is none of {', '.join(ACTIVATIONS)}")
    return found
