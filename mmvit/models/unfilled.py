"""Building a model whose parameters are overwritten at once, without drawing random numbers for them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What random initialisation is made of; constants (ones, zeros, fill) are cheap and stay.
_DRAWS = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "sub_", "clamp_")
# Functions of torch.nn.init that are seen as a whole.
_INITS = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_")


class Unfilled(TorchFunctionMode):
    """`with Unfilled(): model = build_model(config)` leaves parameters as the memory happened to be.

    Only what changes a parameter in place is left out, so constants that a module computes are right. On the
    meta device, where there are no values, everything in place is: torch loads four seconds' worth of modules
    to know how it would be done.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The tensor itself in place of an operation that changes it."""
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            given = next(iter([*args, *(kwargs or {}).values()]), None)
            if isinstance(given, nn.Parameter) and name in (*_DRAWS, *_INITS):
                return given
            if isinstance(given, Tensor) and given.is_meta:
                return given
        return func(*args, **(kwargs or {}))
