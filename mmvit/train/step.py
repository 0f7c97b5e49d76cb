"""The one step of every recipe: forward, backward, health, clip, optimizer, clamp, average.

Shape letters: b samples of this rank's batch, K micro-batches, E embedding dim.
Source: GradCache (Gao et al. 2021) for the exact big batch on small memory; docs/training.md derives the
rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmvit.train.ema import Average
from mmvit.train.freeze import Freeze
from mmvit.train.health import Health
from mmvit.train.optim import set_rate
from mmvit.train.per_example import average_gradients, per_example_backward
from mmvit.train.rng import capture, restore
from mmvit.train.sharded import average_scalars, clip, full, whole
from mmvit.types import Batch


class Task(Protocol):
    """What a step needs of a method; tasks are torch modules that have these besides."""

    def precompute(self, batch: Batch) -> Batch:
        """The batch after everything that takes no gradient."""

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the loss compares, row by row: tensors (b,...)."""

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Scalars, "loss" among them; its mean over the ranks is minimised."""

    def loss_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters that `loss` reads directly."""

    def after_step(self) -> None:
        """Constraints on parameters, after each optimizer step."""


class Trainable(nn.Module):
    """The module that data parallelism wraps: one forward for plain steps and for cached gradients."""

    def __init__(self, task: nn.Module, frozen: Freeze):
        super().__init__()
        self.task = task
        names = [n for n, _ in task.named_parameters()] + [n for n, _ in task.named_buffers()]
        # DDP neither broadcasts nor reduces these: locked towers stay outside of it.
        self._ddp_params_and_buffers_to_ignore = [f"task.{n}" for n in names if frozen.is_locked(n)]

    def forward(self, batch: Batch, mode: str = "loss", pulls: Sequence[Tensor] = ()) -> Any:
        """One of the four things a step asks of the task, so that wrappers around this module see them all.

        Args:
            batch: this rank's samples.
            mode: "precompute" -> the batch after its gradient-free part; "embed" -> the embeddings;
                "loss" -> loss and metrics; "pull" -> {"loss": the sum of <embedding, its pull> (and of
                <parameter, its pull> where pulls are left)}, whose gradient is the whole batch's.
            pulls: gradients of the loss by the embeddings' rows, then by `loss_parameters`.
        """
        task = cast(Task, self.task)
        if mode == "precompute":
            return task.precompute(batch)
        embeddings = task.embed(batch)
        if mode == "embed":
            return embeddings
        if mode == "loss":
            out = task.loss(embeddings, batch)
            out["finite"] = _all_finite(embeddings)
            return out
        parts = [*embeddings, *task.loss_parameters()]
        products = [(part * pull).sum() for part, pull in zip(parts, pulls, strict=False)]
        return {"loss": torch.stack(products).sum()}


@dataclass
class Engine:
    """The prepared parts of a run.

    Attributes:
        task: the bare task, for precomputing, embedding and saving.
        module: `Trainable(task)` as Accelerate prepared it.
        schedule: factor of the learning rate for step 1, 2, …
        clip_norm: largest global gradient norm, 0 = no clipping.
        clip_spares: names of parameters that are neither cut by it nor counted in that norm.
        micro_batch: rows of one forward on this rank, 0 = the whole batch at once.
        per_example_clip: largest norm of one example's gradient before the mean over the batch, 0 = off.
        health: decides before each step whether the numbers are sound.
        average: running mean of the weights, or None.
        step: optimizer steps taken.
        samples_seen: samples of the global stream consumed.
    """

    accelerator: Accelerator
    task: nn.Module
    module: nn.Module
    optimizer: Any
    frozen: Freeze
    schedule: Callable[[int], float]
    health: Health
    clip_norm: float = 1.0
    micro_batch: int = 0
    per_example_clip: float = 0.0
    average: Average | None = None
    clip_spares: frozenset[str] = frozenset()
    step: int = 0
    samples_seen: int = 0

    @contextmanager
    def result(self) -> Iterator[nn.Module]:
        """The task as it would be saved now, for evaluation: averaged weights, whole on every rank."""
        with nullcontext() if self.average is None else self.average.applied(), whole(self.module):
            yield self.task

    def weights(self) -> dict[str, Tensor]:
        """Whole CPU copies of the task's state, averaged weights in place of the last; all ranks must ask."""
        with nullcontext() if self.average is None else self.average.applied():
            state = self.task.state_dict()
            return {name: full(value.detach()).to("cpu", copy=True) for name, value in state.items()}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the optimizer's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def spared(self) -> list[nn.Parameter]:
        """Those that clipping leaves alone."""
        return [
            p
            for group in (self.optimizer.param_groups if self.clip_spares else ())
            for name, p in zip(group["names"], group["params"], strict=True)
            if name in self.clip_spares
        ]


def train_step(engine: Engine, batch: Batch) -> dict[str, float]:
    """Takes one optimizer step on this rank's part of the global batch; returns means over the ranks.

    The result has "loss", the task's metrics, "grad_norm" (before clipping) and "lr".

    Raises:
        UserError: a loss or gradient that is not finite on any rank; nothing was updated.
    """
    task, accelerator = cast(Task, engine.task), engine.accelerator
    engine.module.train()
    engine.optimizer.zero_grad(set_to_none=True)
    batch = batch.to(accelerator.device, non_blocking=True)
    start = capture()
    out = _backward(engine, batch)
    average_scalars(accelerator, engine.parameters)
    if engine.per_example_clip:
        average_gradients(accelerator, engine.parameters)
    limit = engine.clip_norm or float("inf")
    out["grad_norm"] = clip(accelerator, engine.parameters, limit, engine.spared)
    values = engine.health.check(engine.step + 1, out, batch, lambda: _suspects(engine, batch, start))
    factor = engine.schedule(engine.step + 1)
    set_rate(engine.optimizer, factor)
    engine.optimizer.step()
    task.after_step()
    if engine.average is not None:
        engine.average.update(engine.step)
    engine.step += 1
    engine.samples_seen += len(batch) * accelerator.num_processes
    values["lr"] = max(group["lr"] for group in engine.optimizer.param_groups)
    return values


def _backward(engine: Engine, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the global batch's loss in `.grad`; detached scalars of this rank."""
    size = engine.micro_batch
    with torch.no_grad():
        batch = _precompute(engine, batch, size if 0 < size < len(batch) else len(batch))
    if limit := engine.per_example_clip:
        out = per_example_backward(engine.accelerator, engine.module, engine.parameters, batch, limit)
    elif 0 < size < len(batch):
        out = _cached_backward(engine, batch, size)
    else:
        out = engine.module(batch)
        engine.accelerator.backward(out["loss"])
    return {name: value.detach() for name, value in out.items()}


def _precompute(engine: Engine, batch: Batch, size: int) -> Batch:
    """`batch` after the task's gradient-free part, run on `size` rows at a time."""
    media = [name for name in ("image", "video", "audio") if getattr(batch, name) is not None]
    if not media:
        return batch
    parts = [engine.module(batch.rows(i, i + size), "precompute") for i in range(0, len(batch), size)]
    embeddings = [part.image_embedding for part in parts]
    if any(e is None for e in embeddings):
        return batch
    whole = batch.rows(0, len(batch))
    whole.image_embedding = torch.cat(cast(list[Tensor], embeddings))
    for name in media:  # what the embeddings stand for is gone
        setattr(whole, name, getattr(whole, name) if getattr(parts[0], name) is not None else None)
    return whole


def _cached_backward(engine: Engine, batch: Batch, size: int) -> dict[str, Tensor]:
    """The whole batch's exact gradient with one micro-batch's activations at a time.

    Pass 1 embeds without gradients, the loss gives each embedding's gradient, pass 2 embeds again with the
    same random numbers and pulls on it; ranks exchange gradients in its last backward only.
    """
    task, accelerator = cast(Task, engine.task), engine.accelerator
    chunks = [batch.rows(i, i + size) for i in range(0, len(batch), size)]
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(capture())
            parts.append(engine.module(chunk, "embed"))
    end = capture()
    whole = tuple(torch.cat(column).requires_grad_() for column in zip(*parts, strict=True))
    with accelerator.autocast():
        out = task.loss(whole, batch)
    out["finite"] = _all_finite(whole)
    inputs = [*whole, *task.loss_parameters()]
    found = torch.autograd.grad(out["loss"], inputs, allow_unused=True)
    pulls = [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]
    last = len(chunks) - 1
    for k, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        restore(state)
        pulled = [pull[k * size : k * size + len(chunk)] for pull in pulls[: len(whole)]]
        pulled += pulls[len(whole) :] if k == last else []
        with accelerator.no_sync(engine.module) if k < last else nullcontext():
            accelerator.backward(engine.module(chunk, "pull", pulled)["loss"])
    restore(end)
    return out


def _suspects(engine: Engine, batch: Batch, start: Any) -> bool:
    """Whether this rank's own gradients, before the mean over ranks, are not finite; replays the step."""
    engine.optimizer.zero_grad(set_to_none=True)
    restore(start)
    with engine.accelerator.no_sync(engine.module):
        _backward(engine, batch)
    return not all(bool(torch.isfinite(p.grad).all()) for p in engine.parameters if p.grad is not None)


def _all_finite(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.isfinite(t).all() for t in tensors]).all()
