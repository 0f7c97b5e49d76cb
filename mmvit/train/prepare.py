"""From a task, its frozen parts and an optimizer to an engine that steps on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from mmvit.train.compiling import compile_blocks
from mmvit.train.ema import Average
from mmvit.train.freeze import Freeze, matching
from mmvit.train.health import Health
from mmvit.train.per_example import check as check_per_example
from mmvit.train.rng import seed_all
from mmvit.train.setup import Run
from mmvit.train.sharded import check_cached, exempt
from mmvit.train.step import Engine, Task, Trainable


def prepare(
    run: Run,
    task: nn.Module,
    frozen: Freeze,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    chance: float | None = None,
) -> Engine:
    """The engine of a run: the trainable part wrapped for data parallelism, locked parts only moved.

    Afterwards every rank draws its own random numbers; until here all must have built the same task.

    Args:
        run: from `start`.
        task: what to train.
        frozen: what `freeze` returned for it.
        optimizer: over its trainable parameters.
        schedule: factor of the learning rate for step 1, 2, …
        chance: loss of a model that knows nothing, for a warning when training does not leave it.
    """
    accelerator, train = run.accelerator, run.train
    check_per_example(accelerator, task, train.per_example_clip, train.micro_batch)
    task.to(accelerator.device)
    if train.compile:
        run.log.line(f"{compile_blocks(task, accelerator.device)} blocks will be compiled at their first use")
    trainable = Trainable(task, frozen)
    exempt(accelerator, trainable, optimizer)
    module, prepared = accelerator.prepare(trainable, optimizer)
    check_cached(cast(Task, task).loss_parameters(), train.micro_batch)
    seed_all(train.seed + 7919 * (1 + accelerator.process_index))
    return Engine(
        accelerator=accelerator,
        task=task,
        module=module,
        optimizer=prepared,
        frozen=frozen,
        schedule=schedule,
        health=Health(accelerator, run.out / "health", run.stop, chance),
        clip_norm=train.clip_norm,
        micro_batch=train.micro_batch,
        per_example_clip=train.per_example_clip,
        average=Average(task, train.average) if train.average else None,
        clip_spares=matching(frozen.trainable(), train.clip_spares, "--train.clip-spares"),
    )
