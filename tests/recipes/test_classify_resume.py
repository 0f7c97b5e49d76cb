"""Killed runs of recipes/classify.py go on as if nothing had been, to the bit; ranks share the work."""

import functools
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.recipes.labelled import options, write
from tests.recipes.run_folders import assert_equal, keys_of, random_kills, rows

STEPS, BATCH = 8, 6
# All that is random: two weighted sources, windows, crops, colours, flips, dropout, mixtures; and a mean.
WILD = {
    "--data.weights": (0.5, 0.5),
    "--data.flip": 0.5,
    "--data.workers": 1,
    "--loss.smoothing": 0.1,
    "--loss.mixup": 5.0,
    "--loss.dropout": 0.3,
    "--train.batch-size": BATCH,
    "--train.steps": STEPS,
    "--train.save-every": 3,
    "--train.eval-every": 5,
    "--train.average": 0.9,
}
KINDS = {
    "video": {},
    "audio": {
        "--loss.smoothing": 0,
        "--loss.balance": "batch",
        "--model.learn": "head",
        "--optim.name": "sgd",
        "--data.workers": 2,
        "--data.views": 2,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def classify(forked):
    return functools.partial(forked, recipe="classify")


@pytest.fixture(scope="module")
def words(data):
    """words(out, kind, …) -> command line."""

    def make(out, kind="video", **changes):
        part = {"video": "clips", "audio": "sounds"}[kind]
        train = "::".join(str(data / split / part) for split in ("train", "more"))
        base = WILD | {"--data.train": train, "--data.val": data / "val" / part}
        return options(data, out, kind, base | KINDS[kind] | changes)

    return make


@pytest.fixture(scope="module")
def whole(words, classify, tmp_path_factory):
    """whole(kind) -> folder of a run never stopped; what it was given is noted in keys.txt."""
    home = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(kind):
        status, said = classify(words(home / kind, kind), keys=home / f"{kind}.keys")
        assert status == [0], said
        return home / kind

    return run


# Where a run is killed, one attempt after the other, with checkpoints after steps 3, 6 and 8.
MOMENTS = [
    ("in a step, before anything was saved", "call mmvit.train.health:Health.check", 2),
    ("behind a checkpoint", "call mmvit.tasks.classify:classification_loss", 5),
    ("after the optimizer, before the step counts", "call mmvit.tasks.classify:ClassifyTask.after_step", 4),
    ("before the model gets its name", r"event os.rename /\.model\.", 1),
]


def test_killed_at_exact_moments(whole, words, classify, tmp_path):
    for name, at, count in MOMENTS:
        status, said = classify(words(tmp_path / "run"), kill={"at": at, "count": count})
        assert status == [-9], (name, said)
    status, said = classify(words(tmp_path / "run"))
    assert status == [0], said
    assert "resumed from" in said
    assert_equal(tmp_path / "run", whole("video"))


def after_a_step(count, name, **more):
    at = "call mmvit.tasks.classify:ClassifyTask.after_step"
    return {"at": at, "count": count, "signal": name, **more}


def test_other_numbers_of_workers_change_nothing(whole, words, classify, tmp_path):
    """A probe of sounds with momentum, killed in the middle of an epoch, then stopped by a signal."""
    out, file = tmp_path / "run", tmp_path / "run.keys"
    for workers, kill in ((0, after_a_step(5, "SIGKILL")), (1, after_a_step(1, "SIGTERM")), (0, None)):
        status, said = classify(words(out, "audio", **{"--data.workers": workers}), kill=kill, keys=file)
        assert status == [-9 if kill and kill["signal"] == "SIGKILL" else 0], said
    assert f"resumed from {out / 'checkpoints'}" in said
    assert_equal(out, whole("audio"))
    assert keys_of(file, lambda k: 1) == keys_of(whole("audio").with_suffix(".keys"), lambda k: 1)


def test_a_finished_run_says_so_and_a_damaged_checkpoint_is_passed_over(whole, words, classify, tmp_path):
    out = shutil.copytree(whole("video"), tmp_path / "run")
    status, said = classify(words(out))
    assert (status, "is finished: 8 steps" in said) == ([0], True)
    shutil.rmtree(out / "model")
    state = out / "checkpoints" / f"step-{STEPS:08d}" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    status, said = classify(words(out))
    assert status == [0], said
    assert f"step-{STEPS:08d} is damaged" in said
    assert_equal(out, whole("video"))


@pytest.mark.parametrize(("kind", "worlds"), [("video", (1, 3)), ("audio", (1, 2))])
def test_two_and_three_ranks_train_the_same_classifier(words, classify, tmp_path, kind, worlds):
    """Without what looks at a rank's own rows: mixtures; and dropout, whose numbers every rank draws."""
    still = {"--loss.mixup": 0, "--loss.dropout": 0, "--data.workers": 0, "--train.eval-every": 4}
    found = {}
    for world in worlds:
        out = tmp_path / f"{world}"
        status, said = classify(words(out, kind, **still), world=world, keys=f"{out}.keys")
        assert status == [0] * world, said
        weights = load_file(out / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
        found[world] = rows(out), weights, keys_of(Path(f"{out}.keys"), lambda k, world=world: world)
    one, many = (found[world] for world in worlds)
    assert many[2] == one[2]
    for row, want in zip(many[0], one[0], strict=True):
        assert row == pytest.approx(want, rel=2e-3, abs=2e-5)
    for name, value in one[1].items():
        assert float((many[1][name] - value).abs().max()) < 2e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_12_random_moments(kind, whole, words, classify, tmp_path):
    random_kills(lambda out: words(out, kind), whole(kind), tmp_path, classify, kind, 12)
