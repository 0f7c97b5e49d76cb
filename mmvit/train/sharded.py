"""What is different when FSDP2 shards the trainable weights over the ranks; without it, nothing.

Locked weights and scalars (a temperature cannot be sharded) stay whole on every rank, outside of FSDP.
Source: torch.distributed.fsdp.fully_shard, as Accelerate calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from mmvit.errors import UserError


def exempt(accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Tells FSDP2, before it wraps `module`, what to leave whole and to leave types to autocast.

    Raises:
        UserError: an optimizer whose state cannot be sharded.
    """
    if not accelerator.is_fsdp2:
        return
    if any(group.get("beta2_cap") for group in optimizer.param_groups):
        raise UserError("--optim.name adafactor factors whole matrices: with FSDP2 use adamw or lion")
    whole = [p for p in module.parameters() if not p.requires_grad or p.ndim == 0]
    plugin = accelerator.state.fsdp_plugin
    plugin.ignored_modules = [nn.ParameterList(whole)]
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def check_cached(parameters: Sequence[nn.Parameter], micro_batch: int) -> None:
    """Nothing, when the gradient cache can compute a loss that reads these parameters; 0 = no cache.

    Raises:
        UserError: one of them is sharded: the cache computes the loss where they are not whole.
    """
    if micro_batch and any(isinstance(p, DTensor) for p in parameters):
        raise UserError(
            f"--train.micro-batch {micro_batch} needs the weights of the loss whole on every rank, FSDP2 "
            "shards them: launch with DDP (recipes/accelerate/8gpu_ddp.yaml), or leave it out"
        )


def average_scalars(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Gradients of parameters outside of FSDP become their mean over the ranks, as FSDP does with its own."""
    if not accelerator.is_fsdp2:
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= accelerator.num_processes


def clip(
    accelerator: Accelerator,
    parameters: Sequence[nn.Parameter],
    limit: float,
    spared: Sequence[nn.Parameter] = (),
) -> Tensor:
    """Global gradient norm before clipping; afterwards that of all but `spared` is at most `limit`.

    What is spared is neither cut nor counted in what the others are cut by.
    """
    accelerator.unscale_gradients()
    total = _norm(parameters)
    left_out = {id(p) for p in spared}
    cut = [p for p in parameters if id(p) not in left_out]
    counted = _norm(cut) if left_out and cut else total
    if total.device.type == "cpu" and float(counted) + 1e-6 < limit:
        return total  # the factor is one; a GPU multiplies by it rather than wait for the answer
    for kind in _kinds(cut):
        nn.utils.clip_grads_with_norm_(kind, limit, counted)
    return total


def _kinds(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Sharded parameters, and whole ones: no operation takes both."""
    return [[p for p in parameters if isinstance(p, DTensor) == sharded] for sharded in (True, False)]


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm of all gradients together."""
    norms = []
    for kind in _kinds(parameters):
        grads = [p.grad for p in kind if p.grad is not None]
        if grads:
            norms.append(full(nn.utils.get_total_norm(grads)))
    return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """A block in which sharded weights are whole on every rank, for evaluation."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not module)


def full(value: Tensor) -> Tensor:
    """The whole tensor of a sharded one; every rank must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` (the same on every rank) on the parameter's device, sharded like it where the shapes agree."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape and value.ndim > 0:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def shared_state(parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """A parameter's optimizer state as rank 0 has it; a rank with an empty shard never made its own."""
    if not isinstance(parameter, DTensor):
        return state
    content = [{k: None if isinstance(v, DTensor) else v for k, v in state.items()}]
    dist.broadcast_object_list(content)
    for name, value in content[0].items():
        if value is None:
            content[0][name] = state[name] if name in state else torch.zeros_like(parameter)
    return content[0]
