"""The linear classifier on pooled features: (B,D) -> logits (B,C).

Source: ViT (arXiv:2010.11929) section 3.1; big_vision's zero kernel and constant bias.
"""

from __future__ import annotations

from torch import Tensor, nn


class Classify(nn.Linear):
    """A linear layer that starts at a constant: zero kernel, every bias at `bias_init`.

    Args:
        width: D.
        num_classes: C.
        bias_init: 0 for softmax; for sigmoid losses the log-odds of a class, e.g. -6.9 for 1 of 1000.
    """

    def __init__(self, width: int, num_classes: int, bias_init: float = 0.0) -> None:
        self.bias_init = bias_init
        super().__init__(width, num_classes)

    def reset_parameters(self) -> None:
        """Zero kernel, constant bias."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, self.bias_init)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,C) of features (B,D)."""
        return super().forward(features)
