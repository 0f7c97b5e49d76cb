"""The projection into the common space: features (B,D) -> embedding (B,E), not yet normalised.

Shape letters: B batch, D width of the tower, E width of the common space.
Source: LiT (arXiv:2111.07991) section 3.2. Init: LeCun normal as flax's Dense, zero bias;
a zero-initialised head would make the L2 norm 0/0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """Optional centring, then a linear map, two with a ReLU between, or the identity, always in float32.

    Args:
        width: D.
        embed_dim: E, or None: no linear map, E = D.
        center: keep a buffer `mean` (D,), subtracted from the features; zeros until it is set. Rectified
            features share a large common component that a cosine would otherwise see first.
        bias: whether the linear map has a bias.
        hidden: width of a linear map with bias and ReLU in front of it (CLAP), None = none.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None

    def __init__(
        self,
        width: int,
        embed_dim: int | None,
        center: bool = False,
        bias: bool = True,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim or width
        linear = embed_dim is not None
        self.hidden = nn.Linear(width, hidden) if linear and hidden else None
        self.register_parameter(
            "weight", nn.Parameter(torch.empty(self.embed_dim, hidden or width)) if linear else None
        )
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(self.embed_dim)) if linear and bias else None
        )
        self.register_buffer("mean", torch.zeros(width) if center else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight LeCun normal (truncated at two deviations, variance 1/D), bias zero."""
        if self.weight is not None:
            std = math.sqrt(1.0 / self.weight.shape[1]) / 0.87962566103423978
            nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.hidden is not None:
            self.hidden.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """The embedding (B,E) float32 (float64 for float64 features), not normalised.

        Autocast is off here: half-precision rounding of the embedding would cost more than the product saves.

        Args:
            features: (B,D), any floating type.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = features if features.dtype == torch.float64 else features.float()
            if self.mean is not None:
                x = x - self.mean.to(x.dtype)
            if self.weight is None:
                return x
            if self.hidden is not None:
                x = F.relu(F.linear(x, self.hidden.weight.to(x.dtype), self.hidden.bias.to(x.dtype)))
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
