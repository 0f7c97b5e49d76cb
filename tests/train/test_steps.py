"""The one step: gradient cache equals the big batch, locked parts stay, bad numbers stop the run."""

import copy
import json
import math

import pytest
import torch

from mmvit.errors import UserError
from mmvit.train.optim import OptimConfig
from mmvit.train.step import train_step

LOCK_LEFT = (("left.*", None), (".*", 1.0))


def gradients(make_engine, task, batch, **options):
    engine, _ = make_engine(task, optim=OptimConfig(lr=1e-2), **options)
    found = {}
    step = engine.optimizer.step
    engine.optimizer.step = lambda: (
        found.update({n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}),
        step(),
    )
    values = train_step(engine, batch)
    return found, values


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_gradient_cache_equals_the_big_batch(toy, batch_of, make_engine, size):
    task = toy(dropout=0.0).double()
    batch = batch_of(0)
    batch.image_embedding = batch.image_embedding.double()
    other = copy.deepcopy(task)
    whole, values = gradients(make_engine, task, batch, clip_norm=0)
    cached, cached_values = gradients(make_engine, other, batch, micro_batch=size, clip_norm=0)
    assert whole.keys() == cached.keys()
    for name in whole:
        torch.testing.assert_close(cached[name], whole[name], rtol=0, atol=1e-12)
    assert cached_values == pytest.approx(values, abs=1e-12)


def test_gradient_cache_replays_dropout(toy, batch_of, make_engine):
    """With dropout, pass 2's embeddings are those of pass 1, so the gradient is that of pass 1's graph."""
    task, batch = toy(dropout=0.4).double(), batch_of(1)
    batch.image_embedding = batch.image_embedding.double()
    other = copy.deepcopy(task)
    engine, _ = make_engine(other, clip_norm=0)  # seeds the generator as the cached run's engine will
    state = torch.get_rng_state()
    cached, _ = gradients(make_engine, task, batch, micro_batch=3, clip_norm=0)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    other.train()
    chunks = [batch.rows(i, min(i + 3, 8)) for i in range(0, 8, 3)]
    parts = [other.embed(chunk) for chunk in chunks]
    assert torch.equal(torch.get_rng_state(), after)
    other.loss(tuple(torch.cat(side) for side in zip(*parts, strict=True)), batch)["loss"].backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(cached[name], parameter.grad, rtol=0, atol=1e-12)


def test_locked_parameters_are_bit_identical_and_not_in_the_optimizer(toy, batch_of, make_engine):
    task = toy(dropout=0.3)
    before = copy.deepcopy(task.state_dict())
    engine, _ = make_engine(task, LOCK_LEFT, OptimConfig(lr=0.1, weight_decay=0.5))
    inside = {id(p) for p in engine.parameters}
    assert not inside & {id(p) for p in task.left.parameters()}
    for step in range(4):
        train_step(engine, batch_of(step))
    after = task.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("left."), name
    assert not task.left.training
    assert all(p.grad is None for p in task.left.parameters())
    assert set(engine.module._ddp_params_and_buffers_to_ignore) == {
        f"task.{n}" for n in before if "left" in n
    }


def test_gradients_of_the_free_tower_do_not_depend_on_the_lock(toy, batch_of, make_engine):
    free, locked = toy(), toy()
    both, _ = gradients(make_engine, free, batch_of(0), clip_norm=0)
    engine, _ = make_engine(locked, LOCK_LEFT, clip_norm=0)
    train_step(engine, batch_of(0))
    for name, parameter in locked.right.named_parameters():
        torch.testing.assert_close(parameter.grad, both[f"right.{name}"], rtol=0, atol=1e-6)


def test_scale_is_clamped_after_the_step_and_clipping_reports_the_norm_before(toy, batch_of, make_engine):
    task = toy()
    with torch.no_grad():
        task.logit_scale.fill_(4.6)
    engine, _ = make_engine(task, optim=OptimConfig(lr=10.0), clip_norm=1e-3, steps=3)
    values = train_step(engine, batch_of(0))
    assert 0 <= task.logit_scale.item() <= 4.6052 + 1e-6
    assert values["grad_norm"] > 1e-2
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in engine.parameters))
    assert total == pytest.approx(1e-3, rel=1e-3)
    assert values["lr"] == pytest.approx(10.0 * engine.schedule(1))


@pytest.mark.parametrize("what", ["embeddings", "gradients"])
def test_bad_numbers_stop_before_the_step(toy, batch_of, make_engine, tmp_path, what):
    task = toy()
    engine, _ = make_engine(task)
    train_step(engine, batch_of(0))
    before = copy.deepcopy(task.state_dict())
    batch = batch_of(1)
    if what == "embeddings":
        batch.image_embedding[3, 2] = math.nan
    else:
        task.right[2].weight.register_hook(lambda g: g * math.inf)
    with pytest.raises(UserError, match=rf"step 2: {what} of rank 0 not finite"):
        train_step(engine, batch)
    assert all(torch.equal(v, before[n]) for n, v in task.state_dict().items())
    record = json.loads((tmp_path / "health" / "bad-step-00000002-rank-0.json").read_text())
    assert record["keys"] == batch.keys
    assert engine.step == 1


def test_a_loss_stuck_at_chance_is_pointed_out(toy, batch_of, make_engine, caplog):
    engine, _ = make_engine(toy(), optim=OptimConfig(lr=1e-9))
    engine.health.chance, engine.health.patience = math.log(8) - 0.3, 3
    for step in range(5):
        train_step(engine, batch_of(step))
    assert [r.message for r in caplog.records if "at chance" in r.message].__len__() == 1


def test_the_mean_of_the_weights(toy, batch_of, make_engine):
    task = toy()
    engine, _ = make_engine(task, LOCK_LEFT, average=0.9)
    shadow = {n: p.detach().clone() for n, p in task.named_parameters() if p.requires_grad}
    assert set(engine.average.state_dict()) == set(shadow)
    for step in range(6):
        train_step(engine, batch_of(step))
        decay = min(0.9, (1 + step) / (10 + step))
        for name, p in task.named_parameters():
            if name in shadow:
                shadow[name] = decay * shadow[name] + (1 - decay) * p.detach()
    live = {n: p.detach().clone() for n, p in task.named_parameters()}
    with engine.average.applied():
        for name, value in shadow.items():
            torch.testing.assert_close(dict(task.named_parameters())[name].detach(), value)
    assert all(torch.equal(p, live[n]) for n, p in task.named_parameters())


def test_memory_of_one_micro_batch(toy, batch_of, make_engine):
    """No more than one micro-batch's rows ever go through a tower with gradients."""
    task, seen = toy(), []
    task.left.register_forward_hook(lambda m, i, o: seen.append((len(o), o.requires_grad)))
    engine, _ = make_engine(task, micro_batch=2)
    train_step(engine, batch_of(0))
    assert seen == [(2, False)] * 4 + [(2, True)] * 4
