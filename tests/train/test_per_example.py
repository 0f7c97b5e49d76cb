"""Clipping by example against a plain loop; one large example cannot decide; what is refused."""

import copy
import math

import pytest
import torch
from accelerate import DistributedType
from torch import nn

from mmvit.errors import UserError
from mmvit.train import per_example
from mmvit.train.optim import OptimConfig
from mmvit.train.step import train_step
from mmvit.types import Batch


class Regression(nn.Module):
    """A separable task: the mean of squared errors of two outputs."""

    separable = True

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 2)).double()
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def precompute(self, batch):
        return batch

    def embed(self, batch):
        return (self.net(batch.image_embedding),)

    def loss(self, embeddings, batch):
        errors = (embeddings[0] - batch.text).square().sum(dim=1)
        return {"loss": errors.mean(), "worst": errors.max()}

    def forward(self, batch):
        return self.loss(self.embed(batch), batch)

    def loss_parameters(self):
        return []

    def after_step(self):
        pass


def batch_of(size=6):
    g = torch.Generator().manual_seed(1)
    return Batch(
        keys=[str(i) for i in range(size)],
        image_embedding=torch.randn(size, 5, generator=g, dtype=torch.float64),
        text=torch.randint(-3, 4, (size, 2), generator=g),
    )


def slow(task, batch, limit):
    """(mean of clipped gradients, norms) from one autograd call for each example."""
    total, norms = [torch.zeros_like(p) for p in task.parameters()], []
    for i in range(len(batch)):
        loss = task(batch.rows(i, i + 1))["loss"]
        grads = torch.autograd.grad(loss, list(task.parameters()), allow_unused=True)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
        norms.append(norm)
        for t, g in zip(total, grads, strict=True):
            if g is not None:
                t += g * min(1.0, limit / norm) / len(batch)
    return total, norms


def gradients(make_engine, task, batch, **options):
    engine, _ = make_engine(task, optim=OptimConfig(lr=1e-2), **options)
    found = []
    step = engine.optimizer.step
    engine.optimizer.step = lambda: (found.extend(p.grad.clone() for p in task.parameters()), step())
    return found, train_step(engine, batch)


@pytest.mark.parametrize("limit", [0.5, 4.0, 1e6])
def test_gradients_equal_the_plain_loop(make_engine, limit):
    task, batch = Regression(), batch_of()
    want, norms = slow(copy.deepcopy(task), batch, limit)
    assert 0.5 < min(norms) < 4.0 < max(norms)
    out = copy.deepcopy(task)(batch)
    found, values = gradients(make_engine, task, batch, per_example_clip=limit, clip_norm=0)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    total = math.sqrt(sum(float(g.square().sum()) for g in want))
    assert values["grad_norm"] == pytest.approx(total, abs=1e-12)
    assert values["grad_norm"] <= limit + 1e-12
    assert values["loss"] == pytest.approx(out["loss"].item(), abs=1e-12)


def test_without_a_limit_that_binds_it_is_the_plain_step(make_engine):
    task, batch = Regression(), batch_of()
    other = copy.deepcopy(task)
    clipped, _ = gradients(make_engine, task, batch, per_example_clip=1e9)
    engine, _ = make_engine(other, optim=OptimConfig(lr=1e-2))
    train_step(engine, batch)
    for a, b in zip(task.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_one_large_example_does_not_decide(make_engine):
    task, batch = Regression(), batch_of()
    batch.text[3] = 10_000
    want, _ = slow(task, batch, 1.0)
    others = [i for i in range(6) if i != 3]
    rest = Batch(keys=["x"] * 5, image_embedding=batch.image_embedding[others], text=batch.text[others])
    without, _ = slow(task, rest, 1.0)
    apart = math.sqrt(sum(float((a - 5 / 6 * b).square().sum()) for a, b in zip(want, without, strict=True)))
    assert apart == pytest.approx(1 / 6, rel=1e-9)
    _, values = gradients(make_engine, task, batch, per_example_clip=1.0)
    assert values["grad_norm"] <= 1


def test_a_bad_example_stops_the_run(make_engine):
    task = Regression()
    engine, _ = make_engine(task, per_example_clip=1.0)
    before = copy.deepcopy(task.state_dict())
    batch = batch_of()
    task.net[0].weight.register_hook(lambda g: g * math.nan)
    with pytest.raises(UserError, match="step 1: gradients of rank 0 not finite"):
        train_step(engine, batch)
    batch.image_embedding[2, 1] = math.inf
    batch.image_embedding[2, 2] = math.nan
    with pytest.raises(UserError, match="step 1: embeddings of rank 0 not finite"):
        train_step(engine, batch)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_what_cannot_be_clipped_by_example_is_refused(make_engine, toy, monkeypatch):
    with pytest.raises(UserError, match="needs a loss that is the mean of the examples' own losses"):
        make_engine(toy(), per_example_clip=1.0)
    with pytest.raises(
        UserError, match="takes one example at a time already: leave out --train.micro-batch 2"
    ):
        make_engine(Regression(), per_example_clip=1.0, micro_batch=2)
    with pytest.raises(UserError, match="is a norm, 0 = off; got -1.0"):
        make_engine(Regression(), per_example_clip=-1.0)
    engine, _ = make_engine(Regression())
    monkeypatch.setattr(engine.accelerator.state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UserError, match="needs whole gradients on every rank, FSDP shards them"):
        per_example.check(engine.accelerator, engine.task, 1.0, 0)
    per_example.check(engine.accelerator, engine.task, 0.0, 0)
