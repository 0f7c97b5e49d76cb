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

_STEEP = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """The value x * sigmoid(1.702 x), any shape: the approximation that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(_STEEP * x)


# Weights do not say which one they were trained with, and none of the mistakes raises: a difference of up to
# 5e-4 (tanh for erf) or 2e-2 (quick for erf) in every activation.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}


class Mlp(nn.Module):
    """Linear -> activation -> dropout -> Linear -> dropout: (...,D) -> (...,D).

    Args:
        width: D.
        hidden: M.
        activation: a name in `ACTIVATIONS`.
        dropout: probability of zeroing an element, 0..1.
        out_width: width of what comes out, None = D.
        bias: whether the two linear maps have biases.

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
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is '{activation}', expected one of {', '.join(ACTIVATIONS)}")
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, out_width or width, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform kernels, biases N(0, 1e-6)."""
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """The transformed tokens (...,D), or as wide as `out_width` says."""
        if self._folds(x):
            return self._folded(x)
        x = self.activation(self.fc1(x))
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        x = self.fc2(x)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _folds(self, x: Tensor) -> bool:
        """Whether the cheaper form of `_folded` may be taken: inference on a CPU, with plain weights."""
        plain = type(self.fc1.weight) is nn.Parameter and not torch.compiler.is_compiling()
        plain = plain and self.fc1.bias is not None
        inference = not torch.is_grad_enabled() and not (self.dropout and self.training)
        return self.activation is quick_gelu and inference and plain and x.device.type == "cpu"

    def _folded(self, x: Tensor) -> Tensor:
        """The same for quick_gelu: x sigmoid(kx) = silu(kx) / k, both factors taken by the products."""
        rows = x.reshape(-1, x.shape[-1])
        hidden = torch.addmm(self.fc1.bias, rows, self.fc1.weight.t(), beta=_STEEP, alpha=_STEEP)
        F.silu(hidden, inplace=True)
        out = torch.addmm(self.fc2.bias, hidden, self.fc2.weight.t(), alpha=1 / _STEEP)
        return out.reshape(*x.shape[:-1], -1)
