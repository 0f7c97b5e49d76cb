"""Runs that are killed, stopped or damaged go on as if nothing had been: the same rows and weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmvit.train.manifest import damage
from mmvit.train.rng import capture_all, restore_all
from tests.recipes.run_folders import assert_equal, keys_of, random_kills

ROOT = Path(__file__).resolve().parents[2]
STEPS = 14


def options(corpus, out, *more):
    """Everything random on: two weighted sources, crops, dropout, a running mean; and evaluation."""
    base = {
        "--preset": "tiny",
        "--data.train": f"{corpus / 'train'}::{corpus / 'more'}",
        "--data.val": corpus / "val",
        "--data.augment": "crop",
        "--data.flip": 0.5,
        "--data.workers": 1,
        "--model.tokenizer": corpus / "tokenizer",
        "--model.text": corpus / "text",
        "--model.lock": "uU",
        "--out": out,
        "--optim.lr": 3e-3,
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--train.steps": STEPS,
        "--train.save-every": 3,
        "--train.eval-every": 5,
        "--train.average": 0.9,
    }
    base |= dict(zip(more[::2], more[1::2], strict=True))
    words = [str(word) for pair in base.items() for word in pair]
    return [*words, "--data.weights", "2", "1"]


MICRO = ("--train.micro-batch", 6, "--data.workers", 2)


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory, forked):
    """Folder of a run never stopped, with one data worker."""
    out = tmp_path_factory.mktemp("plain") / "run"
    status, said = forked(options(corpus, out))
    assert status == [0], said
    return out


@pytest.fixture(scope="module")
def micro(corpus, tmp_path_factory, forked):
    """Folder of a run never stopped, with two data workers and gradient cache."""
    out = tmp_path_factory.mktemp("micro") / "run"
    status, said = forked(options(corpus, out, *MICRO))
    assert status == [0], said
    return out


# Where a run is killed, one attempt after the other, with checkpoints after steps 3, 6, 9, 12 and 14.
MOMENTS = [
    ("in a step, before anything was saved", "call mmvit.train.health:Health.check", 2),
    ("before the first manifest", r"event open /\.tmp-step-00000003/manifest", 1),
    ("between the first checkpoint's files", "call torch:save", 1),
    ("before a checkpoint gets its name", r"event os.rename /\.tmp-step-00000006", 1),
    ("in an evaluation", "call mmvit.evaluators.image_text:embed_samples", 1),
    ("between rename and pruning", r"event os.rename tmp-old", 1),
    (
        "after the optimizer, before the step counts",
        "call mmvit.tasks.contrastive:ContrastiveTask.after_step",
        2,
    ),
    ("in pruning", "event shutil.rmtree tmp-old", 1),
    ("while the rows behind the checkpoint are dropped", "event os.rename metrics", 1),
    ("in writing the model", r"event open /\.model\..*config", 1),
    ("before the model gets its name", r"event os.rename /\.model\.", 1),
]


def test_killed_at_every_exact_moment(plain, corpus, tmp_path, forked):
    words = options(corpus, tmp_path / "run")
    for name, at, count in MOMENTS:
        status, said = forked(words, kill={"at": at, "count": count})
        assert status == [-9], (name, said)
    status, said = forked(words)
    assert status == [0], said
    assert "resumed from" in said
    assert_equal(tmp_path / "run", plain)
    litter = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if not p.name.startswith("step-")]
    assert not litter
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def after_a_step(count, name, **more):
    at = "call mmvit.tasks.contrastive:ContrastiveTask.after_step"
    return {"at": at, "count": count, "signal": name, **more}


def test_stopped_by_signals_that_reach_the_workers_too(micro, corpus, tmp_path, forked):
    """A terminal and torchrun signal the whole group; the step in hand still needs its data."""
    words, out = options(corpus, tmp_path / "run", *MICRO), tmp_path / "run"
    for step, resumed, name in ((5, 0, "SIGTERM"), (8, 6, "SIGINT")):
        kill = after_a_step(step - resumed, name, group=True)
        status, said = forked(words, kill=kill)
        assert status == [0], said
        folder = out / "checkpoints" / f"step-{step + 1:08d}"
        assert f"stopped by {name}, saved {folder}; the same command goes on" in said
        assert ("resumed from" in said) == bool(resumed)
        assert folder.exists()
        assert "Traceback" not in said
    status, said = forked(words)
    assert status == [0], said
    assert_equal(out, micro)


@pytest.mark.parametrize("signal_name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_the_command_itself(plain, corpus, tmp_path, forked, start, signal_name):
    """`python recipes/lit.py`, as a user starts it, ended when its first checkpoint appears."""
    words, out = options(corpus, tmp_path / "run"), tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    line, pipe = [sys.executable, str(ROOT / "recipes" / "lit.py"), *words], subprocess.PIPE
    process = start(line, env=environment, stdout=pipe, stderr=pipe, text=True)
    end = time.monotonic() + 120
    while not (out / "checkpoints" / "step-00000003").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.Signals[signal_name])
    _, said = process.communicate(timeout=120)
    assert process.returncode == (-9 if signal_name == "SIGKILL" else 0), said
    assert ("stopped by SIGTERM, saved" in said) == (signal_name == "SIGTERM")
    status, said = forked(words)
    assert status == [0], said
    assert "resumed from" in said
    assert_equal(out, plain)


def test_killed_at_random_moments(micro, corpus, tmp_path, forked):
    random_kills(lambda out: options(corpus, out, *MICRO), micro, tmp_path, forked, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "micro"])
def test_killed_at_25_random_moments(kind, request, corpus, tmp_path, forked):
    never_stopped, more = request.getfixturevalue(kind), MICRO if kind == "micro" else ()
    random_kills(lambda out: options(corpus, out, *more), never_stopped, tmp_path, forked, kind, 25)


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(bytes(data))


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


DAMAGES = {
    "a byte of the weights": lambda p: flip(p / "model.safetensors"),
    "a byte of the mean": lambda p: flip(p / "average.safetensors", 0.9),
    "a byte of the optimizer": lambda p: flip(p / "state.pt"),
    "a file that was cut": lambda p: (p / "state.pt").write_bytes((p / "state.pt").read_bytes()[:-100]),
    "no weights": lambda p: (p / "model.safetensors").unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "an empty manifest": lambda p: (p / "manifest.json").write_text(""),
    "a manifest of another kind": lambda p: (p / "manifest.json").write_text('{"files": [1], "format": 1}'),
    "a digit of the position": lambda p: change(
        p / "manifest.json", '"samples_seen": 224', '"samples_seen": 225'
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_recognised(plain, tmp_path, kind):
    copy = Path(shutil.copytree(plain / "checkpoints" / f"step-{STEPS:08d}", tmp_path / "copy"))
    assert damage(copy) is None
    DAMAGES[kind](copy)
    assert damage(copy) is not None


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(plain, corpus, tmp_path, forked):
    out = Path(shutil.copytree(plain, tmp_path / "run"))
    shutil.rmtree(out / "model")
    DAMAGES["a digit of the position"](out / "checkpoints" / f"step-{STEPS:08d}")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "tra')  # torn by a kill
    status, said = forked(options(corpus, out))
    assert status == [0], said
    assert "step-00000014 is damaged (the contents of manifest.json do not match" in said
    assert "trying the one before it" in said
    assert f"resumed from {out / 'checkpoints' / 'step-00000012'}: step 12, 192 samples seen" in said
    assert_equal(out, plain)


def test_when_all_are_damaged_the_run_begins_anew(plain, corpus, tmp_path, forked):
    out = Path(shutil.copytree(plain, tmp_path / "run"))
    shutil.rmtree(out / "model")
    for path, kind in zip(
        (out / "checkpoints").iterdir(), ("no manifest", "a byte of the mean"), strict=True
    ):
        DAMAGES[kind](path)
    status, said = forked(options(corpus, out))
    assert status == [0], said
    assert "none is whole, the run begins anew" in said
    assert_equal(out, plain)


def test_other_numbers_of_workers_change_nothing(plain, corpus, tmp_path, forked):
    for workers, kill in ((0, after_a_step(4, "SIGTERM")), (2, after_a_step(3, "SIGKILL")), (1, None)):
        status, said = forked(options(corpus, tmp_path / "run", "--data.workers", workers), kill=kill)
        assert status == [-9 if kill and kill["signal"] == "SIGKILL" else 0], said
    assert_equal(tmp_path / "run", plain)


def test_other_numbers_of_ranks_lose_and_double_no_sample(corpus, tmp_path, forked):
    """12 steps on one rank, against 1, 3 and 2 ranks that are killed and go on."""
    base = ("--train.batch-size", 12, "--train.steps", 12, "--data.val", "", "--data.workers", 0)
    words = options(corpus, tmp_path / "one", *base)
    assert forked(words, keys=tmp_path / "one.keys")[0] == [0]
    words = options(corpus, tmp_path / "many", *base)
    file, status = tmp_path / "many.keys", []
    for world, kill in ((1, after_a_step(5, "SIGKILL")), (3, after_a_step(3, "SIGTERM", rank=2)), (2, None)):
        found, said = forked(words, world=world, kill=kill, keys=file)
        status.append(found)
    assert status == [[-9], [0, 0, 0], [0, 0]], said
    assert "the checkpoint was made by 3 processes, now there are 2" in said
    ranks = {k: 1 if k < 36 else 3 if k < 84 else 2 for k in range(0, 144, 12)}
    want, got = keys_of(tmp_path / "one.keys", lambda k: 1), keys_of(file, ranks.__getitem__)
    assert got == want
    assert sorted(want) == list(range(0, 144, 12))
    assert sum(map(len, want.values())) == 144


def test_a_mean_that_is_asked_for_later_begins_at_the_weights_of_then(corpus, tmp_path, forked):
    words = options(corpus, tmp_path / "run", "--train.average", 0, "--train.steps", 1, "--data.val", "")
    assert forked(words)[0] == [0]
    words = options(corpus, tmp_path / "run", "--train.average", 0.1, "--train.steps", 2, "--data.val", "")
    assert forked(words)[0] == [0]
    files = [tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "model.safetensors" for step in (1, 2)]
    before, after = map(load_file, files)
    mean = load_file(files[1].parent / "average.safetensors")
    for name, value in mean.items():
        torch.testing.assert_close(value, 0.1 * before[name] + 0.9 * after[name])


def test_a_longer_run_that_is_killed_before_its_model_is_not_taken_for_finished(corpus, tmp_path, forked):
    out = tmp_path / "run"
    base = ("--data.val", "", "--data.workers", 0, "--train.steps")
    assert forked(options(corpus, out, *base, 1))[0] == [0]
    before = (out / "model" / "model.safetensors").read_bytes()
    kill = {"at": r"event os.rename /\.model\.", "count": 1}
    assert forked(options(corpus, out, *base, 2), kill=kill)[0] == [-9]
    status, said = forked(options(corpus, out, *base, 2))
    assert status == [0], said
    assert "done: the model is in" in said
    assert (out / "model" / "model.safetensors").read_bytes() != before
    status, said = forked(options(corpus, out, *base, 2))
    assert "is finished: 2 steps" in said


def test_a_checkpoint_from_before_there_were_seals_is_whole(plain, tmp_path):
    copy = Path(shutil.copytree(plain / "checkpoints" / f"step-{STEPS:08d}", tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["seal"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert damage(copy) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_generators_of_a_run_on_a_gpu_go_on_without_one():
    state = {**capture_all(), "cuda": torch.zeros(16, dtype=torch.uint8)}
    want = torch.rand(3)
    restore_all(state)
    assert torch.equal(torch.rand(3), want)
