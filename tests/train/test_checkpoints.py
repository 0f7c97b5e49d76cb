"""Whole or absent; damaged ones recognised; resumed equals never stopped, to the last bit."""

import copy
import json
import shutil

import pytest
import torch

from mmvit.errors import UserError
from mmvit.train.checkpoint import Checkpoints
from mmvit.train.manifest import damage, newest_step
from mmvit.train.optim import OptimConfig
from mmvit.train.step import train_step

LOCK_LEFT = (("left.*", None), (".*", 1.0))


def steps(engine, batch_of, count):
    return [train_step(engine, batch_of(engine.step))["loss"] for _ in range(count)]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
@pytest.mark.parametrize("micro", [0, 3])
def test_resumed_equals_never_stopped(toy, batch_of, make_engine, tmp_path, name, micro):
    options = {"optim": OptimConfig(name=name, lr=1e-2), "average": 0.9, "micro_batch": micro}
    engine, _ = make_engine(toy(dropout=0.3), **options)
    want = steps(engine, batch_of, 7)
    weights, mean = copy.deepcopy(engine.task.state_dict()), copy.deepcopy(engine.average.state_dict())

    engine, meters = make_engine(toy(dropout=0.3), **options)
    got = steps(engine, batch_of, 4)
    meters.add({"loss": 1.25}, 8)
    meters.total(truncated=3)
    Checkpoints(tmp_path, engine, meters).save()

    torch.manual_seed(999)
    task = toy(dropout=0.3)
    with torch.no_grad():
        for p in task.parameters():
            p.add_(1.0)
    engine, meters = make_engine(task, **options)
    path = Checkpoints(tmp_path, engine, meters).resume("auto")
    assert path.name == "step-00000004"
    assert (engine.step, engine.samples_seen) == (4, 32)
    assert meters.read()["train/loss"] == 1.25
    assert meters.counters == {"truncated": 3}
    got += steps(engine, batch_of, 3)
    assert got == want
    assert all(torch.equal(v, weights[n]) for n, v in task.state_dict().items())
    assert all(torch.equal(v, mean[n]) for n, v in engine.average.state_dict().items())


def saved(toy, batch_of, make_engine, tmp_path, rules=LOCK_LEFT, count=3, keep=2, **options):
    engine, meters = make_engine(toy(), rules, **options)
    checkpoints = Checkpoints(tmp_path, engine, meters, keep, {"left": "towers/a"})
    for _ in range(count):
        steps(engine, batch_of, 1)
        checkpoints.save()
    return engine, meters, checkpoints


def test_the_last_ones_are_kept_and_locked_weights_are_not_in_them(toy, batch_of, make_engine, tmp_path):
    engine, _, _ = saved(toy, batch_of, make_engine, tmp_path)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert newest_step(tmp_path) == 3
    from safetensors.torch import load_file

    names = set(load_file(folder / "step-00000003" / "model.safetensors"))
    assert names == {n for n in engine.task.state_dict() if not n.startswith("left.")}
    manifest = json.loads((folder / "step-00000003" / "manifest.json").read_text())
    assert manifest["locked"]["left"]["from"] == "towers/a"
    assert damage(folder / "step-00000003") is None


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda p: (p / "state.pt").unlink(), "state.pt is missing"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json"),
        (lambda p: cut(p / "model.safetensors"), "bytes instead of"),
        (lambda p: flip(p / "model.safetensors"), "checksum"),
        (shutil.rmtree, ""),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    toy, batch_of, make_engine, tmp_path, caplog, harm, words
):
    saved(toy, batch_of, make_engine, tmp_path)
    harm(tmp_path / "checkpoints" / "step-00000003")
    (tmp_path / "checkpoints" / ".tmp-step-00000004").mkdir()
    (tmp_path / "checkpoints" / ".tmp-step-00000004" / "model.safetensors").write_bytes(b"torn")
    engine, meters = make_engine(toy(), LOCK_LEFT)
    checkpoints = Checkpoints(tmp_path, engine, meters)
    assert checkpoints.resume("auto").name == "step-00000002"
    assert words in caplog.text
    steps(engine, batch_of, 1)
    assert damage(checkpoints.save()) is None
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def test_resume_modes(toy, batch_of, make_engine, tmp_path):
    engine, meters = make_engine(toy(), LOCK_LEFT)
    assert Checkpoints(tmp_path, engine, meters).resume("auto") is None
    _, _, checkpoints = saved(toy, batch_of, make_engine, tmp_path)
    engine, meters = make_engine(toy(), LOCK_LEFT)
    fresh = Checkpoints(tmp_path, engine, meters)
    assert fresh.resume("never") is None
    assert fresh.resume(str(tmp_path / "checkpoints" / "step-00000002")).name == "step-00000002"
    assert engine.step == 2
    with pytest.raises(UserError, match="no such folder"):
        fresh.resume(str(tmp_path / "elsewhere"))


def test_other_locked_weights_other_locks_and_other_models_are_refused(toy, batch_of, make_engine, tmp_path):
    saved(toy, batch_of, make_engine, tmp_path)
    task = toy()
    with torch.no_grad():
        task.left[0].weight[0, 0] += 1e-3
    engine, meters = make_engine(task, LOCK_LEFT)
    with pytest.raises(UserError, match="locked weights 'left' are not those.*towers/a.*towers/b"):
        Checkpoints(tmp_path, engine, meters, references={"left": "towers/b"}).resume("auto")
    engine, meters = make_engine(toy())
    with pytest.raises(UserError, match="locks nothing"):
        Checkpoints(tmp_path, engine, meters).resume("auto")
    engine, meters = make_engine(toy(vocab=13), LOCK_LEFT)
    with pytest.raises(UserError, match="holds another model.*right.0.weight"):
        Checkpoints(tmp_path, engine, meters).resume("auto")


def test_a_new_learning_rate_takes_effect_on_resume(toy, batch_of, make_engine, tmp_path):
    saved(toy, batch_of, make_engine, tmp_path)
    engine, meters = make_engine(toy(), LOCK_LEFT, OptimConfig(lr=0.5))
    Checkpoints(tmp_path, engine, meters).resume("auto")
    assert train_step(engine, batch_of(3))["lr"] == pytest.approx(0.5 * engine.schedule(4))


def test_a_full_disk_leaves_the_earlier_checkpoints_whole(toy, batch_of, make_engine, tmp_path, monkeypatch):
    engine, _, checkpoints = saved(toy, batch_of, make_engine, tmp_path)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmvit.train.checkpoint.torch.save", full)
    steps(engine, batch_of, 1)
    with pytest.raises(
        UserError, match="step-00000004: No space left on device; earlier checkpoints are whole"
    ):
        checkpoints.save()
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert damage(folder / "step-00000003") is None
