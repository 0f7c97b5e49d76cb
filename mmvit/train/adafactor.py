"""Adafactor as Scaling ViT uses it: factored second moments, momentum in bfloat16, no update clipping.

Source: Scaling Vision Transformers (Zhai et al. 2022), section 3.4; big_vision's scale_by_adafactor.
Differs: a fused (3D,D) projection is factored as one matrix, not per head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MIN_FACTORED = 32  # the second-largest axis must be at least this long, else the second moment is kept whole
TINY = 1e-30


class Adafactor(torch.optim.Optimizer):
    """Steps theta by -lr * (m + weight_decay * theta) with m the average of normalised gradients.

    beta2 of step i (from 0) is min(beta2_cap, 1 - (i+1)^-0.8); SigLIP lowers the cap to 0.95. The momentum is
    stored in bfloat16 and not debiased.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2_cap: float = 0.999,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            params, {"lr": lr, "beta1": beta1, "beta2_cap": beta2_cap, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step; returns the closure's value, None without a closure."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return value

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        beta2 = min(group["beta2_cap"], 1.0 - (state["step"] + 1.0) ** -0.8)
        gradient = parameter.grad.float()  # type: ignore[union-attr]
        direction = gradient * _inverse_root(state, gradient.square().add_(TINY), beta2)
        momentum = state["momentum"].float().mul_(group["beta1"]).add_(direction, alpha=1.0 - group["beta1"])
        state["momentum"].copy_(momentum)
        state["step"] += 1
        if group["weight_decay"]:
            momentum = momentum.add(parameter, alpha=group["weight_decay"])
        parameter.add_(momentum, alpha=-group["lr"])


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(largest axis, second largest) when the second moment of that shape is factored, else None."""
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (order[-1], order[-2]) if shape[order[-2]] >= MIN_FACTORED else None


def _inverse_root(state: dict[str, Any], squares: Tensor, beta2: float) -> Tensor:
    """1/sqrt of the running second moment, after mixing `squares` into it; broadcasts to the gradient."""
    axes = factored_axes(tuple(squares.shape))
    if axes is None:
        return _mix(state, "second", squares, beta2).rsqrt()
    largest, second = axes
    row = _mix(state, "row", squares.mean(largest, keepdim=True), beta2)
    column = _mix(state, "column", squares.mean(second, keepdim=True), beta2)
    return (row / row.mean(second, keepdim=True)).rsqrt() * column.rsqrt()


def _mix(state: dict[str, Any], name: str, fresh: Tensor, beta2: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(fresh)
    return state[name].mul_(beta2).add_(fresh, alpha=1.0 - beta2)
