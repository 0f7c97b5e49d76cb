"""The feed-forward half of a block, and the activations that published weights need.

Shape letters: B batch, N tokens, D width, M hidden width of the feed-forward part.
Source: ViT (arXiv:2010.11929) eq. 3. Init: big_vision `models/vit.py` (xavier kernels, N(0, 1e-6) biases).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """The value x * sigmoid(1.702 x), any shape: the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


# Weights do not say which one they were trained with, and none of the mistakes raises: a difference of up to
# 5e-4 (tanh for erf) or 2e-2 (quick for erf) in every activation.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class Mlp(nn.Module):
    """Linear -> activation -> dropout -> Linear -> dropout: (...,D) -> (...,D).

    Args:
        width: D.
        hidden: M.
        activation: a name in `ACTIVATIONS`.
        dropout: probability of zeroing an element, 0..1.
        out_width: width of what comes out, None = D.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is '{activation}', expected one of {', '.join(ACTIVATIONS)}")
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out_width or width)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform kernels, biases N(0, 1e-6)."""
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """The transformed tokens (...,D), or as wide as `out_width` says."""
        x = self.activation(self.fc1(x))
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        x = self.fc2(x)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
