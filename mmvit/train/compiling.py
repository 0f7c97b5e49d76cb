"""torch.compile where it pays: on the blocks that a model repeats, in place.

One block's code serves all its twins; names of weights stay, wrappers and hooks see the same modules.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from mmvit.errors import UserError


def compile_blocks(module: nn.Module, device: torch.device, backend: str = "inductor") -> int:
    """How many blocks will be compiled at their first call.

    A block is an element of a list of at least two modules of one class that have parts of their own, as in
    every transformer. Compiled arithmetic differs from eager by rounding, and a resumed run may compile for
    other shapes first: its losses then equal those of a run never stopped to rounding, not to the last bit.

    Args:
        module: the task.
        device: where it will run.
        backend: of torch.compile.

    Raises:
        UserError: no C++ compiler for the CPU's code, or nothing to compile.
    """
    compiler = os.environ.get("CXX", "g++")
    if backend == "inductor" and device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"--train.compile needs a C++ compiler, and there is no '{compiler}': install one or set CXX"
        )
    count = 0
    for part in module.modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential):
            continue
        twins = list(part)
        if len(twins) > 1 and len({type(twin) for twin in twins}) == 1 and any(twins[0].children()):
            for twin in twins:
                twin.compile(backend=backend)
            count += len(twins)
    if not count:
        raise UserError("--train.compile found no repeated blocks in the model: leave it out")
    return count
