"""Batch norm over the rows of all ranks, of which some may have none.

Shape letters: b rows of this rank, C channels.
Source: batch normalisation (arXiv:1502.03167). Differs from torch's SyncBatchNorm, which needs a GPU: any
backend, and any number of rows on each rank, none too.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm(nn.Module):
    """(b,C) -> (b,C) float32 (float64 stays), normalised by mean and variance over the rows of all ranks.

    In evaluation running statistics are used. Every rank must call it equally often while training, also
    without a row. The backward sums the ranks' gradients, as `losses.gather` does: with losses that are means
    of each rank and gradients averaged over ranks, all is as on one process.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: share of the newest batch in the running statistics.
        affine: whether a learned gain and bias follow.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised rows (b,C).

        Args:
            x: (b,C).

        Raises:
            ValueError: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != len(self.running_mean):
            raise ValueError(f"rows are {tuple(x.shape)}, expected (b,{len(self.running_mean)})")
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            mean, var = self._measure(x) if self.training else (self.running_mean, self.running_var)
            return self.affine((x - mean) * torch.rsqrt(var + self.eps))

    def affine(self, x: Tensor) -> Tensor:
        """Normed rows (b,C) with the learned gain and bias, where there are any."""
        return x if self.weight is None or self.bias is None else x * self.weight + self.bias

    def mean_length(self) -> Tensor:
        """The root of the mean square length of normed rows, a scalar without a gradient."""
        gain = torch.ones_like(self.running_mean) if self.weight is None else self.weight.detach()
        bias = torch.zeros_like(gain) if self.bias is None else self.bias.detach()
        return (gain.square() + bias.square()).sum().sqrt()  # each channel had unit variance

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, biased variance), each (C,), of the rows of all ranks.

        Two rounds, the deviations after the mean: E[x^2] - E[x]^2 loses all digits where means are large.
        """
        sums = _of_all_ranks(torch.cat([x.sum(0), x.new_full((1,), len(x))]))
        total, count = sums[:-1], sums[-1].detach()
        mean = total / count.clamp(min=1)
        var = _of_all_ranks((x - mean).square().sum(0)) / count.clamp(min=1)
        with torch.no_grad():  # a single row says nothing of a variance, and none nothing at all
            step = self.momentum * (count > 1).to(self.running_mean.dtype)
            unbiased = var * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), step)
        return mean, var


def _of_all_ranks(x: Tensor) -> Tensor:
    """The sum over ranks of x, same shape."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return all_reduce(x)
    return x
