"""Gradients clipped for each example before they are averaged, one example at a time.

Keeps one sample with an enormous gradient from deciding a step, which clipping the batch's gradient cannot.
Shape letters: b samples of this rank's batch.
Source: arXiv:2205.06230 trains so; the rule is DP-SGD's (arXiv:1607.00133) without its noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.types import Batch


def check(accelerator: Accelerator, task: nn.Module, limit: float, micro_batch: int) -> None:
    """Nothing, when gradients can be clipped by example; limit 0 = nobody asks for it.

    Raises:
        UserError: sharded weights, a loss that is not the mean of its rows' losses, micro-batches besides.
    """
    if not limit:
        return
    if limit < 0:
        raise UserError(f"--train.per-example-clip is a norm, 0 = off; got {limit}")
    if accelerator.distributed_type == DistributedType.FSDP:
        raise UserError(
            "--train.per-example-clip needs whole gradients on every rank, FSDP shards them: launch with DDP "
            "(recipes/accelerate/8gpu_ddp.yaml), or set it to 0"
        )
    if not getattr(task, "separable", False):
        raise UserError(
            "--train.per-example-clip needs a loss that is the mean of the examples' own losses "
            "(per-example normalization); with this one set it to 0"
        )
    if micro_batch:
        raise UserError(
            "--train.per-example-clip takes one example at a time already: leave out "
            f"--train.micro-batch {micro_batch}"
        )


def per_example_backward(
    accelerator: Accelerator,
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch: Batch,
    limit: float,
) -> dict[str, Tensor]:
    """Mean over this rank's examples of the scalars; `.grad` has the mean of their clipped gradients.

    Nothing is exchanged between ranks: `average_gradients` does that. A gradient that is not finite stays
    so. Beside the activations of one example this takes the memory of one more gradient.

    Args:
        accelerator: the run's.
        module: `Trainable` as Accelerate prepared it.
        parameters: those that learn; their `.grad` are None.
        batch: b samples.
        limit: largest norm of one example's gradient over all parameters.
    """
    total = [torch.zeros_like(p) for p in parameters]
    rows: list[dict[str, Tensor]] = []
    # fp16's scaler has multiplied the gradients, and undoes it in the sum.
    limit *= 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())
    with accelerator.no_sync(module):
        for i in range(len(batch)):
            out = module(batch.rows(i, i + 1))
            accelerator.backward(out["loss"])
            rows.append({name: value.detach() for name, value in out.items()})
            _add_clipped(total, parameters, limit, 1 / len(batch))
            for p in parameters:
                p.grad = None
    for p, grad in zip(parameters, total, strict=True):
        p.grad = grad
    columns: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {n: c.all() if c.dtype == torch.bool else c.double().mean() for n, c in columns.items()}


def average_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Gradients become their mean over the ranks, as DDP's own hooks make them elsewhere."""
    if accelerator.num_processes == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
        work.wait()
    torch._foreach_div_(grads, accelerator.num_processes)


def _add_clipped(total: list[Tensor], parameters: Sequence[nn.Parameter], limit: float, share: float) -> None:
    """Adds one example's gradients, cut to the norm `limit`, times `share`."""
    pairs = [(t, p.grad) for t, p in zip(total, parameters, strict=True) if p.grad is not None]
    if not pairs:
        return
    sums, grads = [t for t, _ in pairs], [g for _, g in pairs]
    norm = nn.utils.get_total_norm(grads)
    factor = share * (limit / norm.clamp(min=limit))
    torch._foreach_mul_(grads, factor)
    torch._foreach_add_(sums, grads)
