"""A running mean of the trainable weights, kept beside them.

Source: Polyak averaging; with the short-run correction min(decay, (1+t)/(10+t)).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmvit.train.sharded import like


class Average:
    """mean <- d*mean + (1-d)*weights after every step, d = min(decay, (1+t)/(10+t)) of step t.

    Frozen parameters are not averaged; buffers are taken as they are.

    Args:
        module: whose trainable parameters to follow.
        decay: 0..1, e.g. 0.999.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.mean: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Mixes in the weights after step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.live.items():
            self.mean[name].lerp_(parameter, 1.0 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins the mean anew at the weights of now."""
        for name, parameter in self.live.items():
            self.mean[name].copy_(parameter)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the mean weights inside the block, with its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.live.items():
            own = parameter.detach().clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The mean weights by name."""
        return self.mean

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over mean weights of the same names and shapes.

        Raises:
            ValueError: other names.
        """
        if set(state) != set(self.mean):
            raise ValueError(f"averaged weights do not fit: {sorted(set(state) ^ set(self.mean))[:3]}")
        for name, value in state.items():
            self.mean[name].copy_(like(value, self.mean[name]))
