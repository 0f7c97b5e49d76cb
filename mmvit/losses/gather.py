"""Rows of all ranks, with gradients that find their way home: under every loss over the global batch.

Shape letters: b rows of this rank, B = W*b rows of all W ranks, E embedding dim.
Source: LiT (Zhai et al. 2022), appendix F: the loss is global.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup | None


def world(group: Group = None) -> tuple[int, int]:
    """(rank, number of ranks) in `group`; (0, 1) when torch.distributed does not run."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def gather(x: Tensor, group: Group = None) -> Tensor:
    """(B,...) the rows x (b,...) of all ranks in rank order, without gradients; x itself on one rank."""
    ranks = world(group)[1]
    x = x.detach()
    if ranks == 1:
        return x
    out = x.new_empty((ranks * x.shape[0], *x.shape[1:]))
    _all_gather(out, x.contiguous(), group)
    return out


def gather_with_grad(x: Tensor, group: Group = None) -> Tensor:
    """(B,...) the rows x (b,...) of all ranks in rank order; the backward SUMS all ranks' gradients.

    With the sum (not the mean), the mean over ranks of the parameter gradients, which DDP takes, is the
    gradient of the mean over ranks of the losses. Every rank must bring the same b and run the backward.
    """
    if world(group)[1] == 1:
        return x
    return _Gather.apply(x, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gather(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ranks = world(ctx.group)[1]
        out = grad.new_empty((grad.shape[0] // ranks, *grad.shape[1:]))
        _reduce_scatter(out, grad.contiguous(), ctx.group)
        return out, None


def _all_gather(out: Tensor, x: Tensor, group: Group) -> None:
    # Newer torch renames the tensor collectives and warns about the old names.
    call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    call(out, x, group=group)


def _reduce_scatter(out: Tensor, x: Tensor, group: Group) -> None:
    call = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    call(out, x, op=dist.ReduceOp.SUM, group=group)
