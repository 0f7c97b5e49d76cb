"""Killed runs of recipes/owl.py go on as if nothing had been: the same rows and weights, to the bit."""

import functools
import json
import shutil

import pytest

from tests.recipes.owl_options import options
from tests.recipes.run_folders import assert_equal, keys_of, random_kills

STEPS, BATCH = 8, 4
# All that is random: two weighted sources, mosaics, crops, flips, colours, prompts, drop path; and a mean.
WILD = {
    "--data.weights": (0.5, 0.5),
    "--data.mosaics": (0.7, 0.2, 0.1),
    "--data.color": 0.3,
    "--data.workers": 1,
    "--model.drop-path": (0.3, 0.3),
    "--train.batch-size": BATCH,
    "--train.steps": STEPS,
    "--train.save-every": 3,
    "--train.eval-every": 5,
    "--train.average": 0.9,
}
KINDS = {
    "global": {},
    "per_example": {
        "--loss.normalization": "per_example",
        "--train.per-example-clip": 1,
        "--train.clip-norm": 0,
        "--model.frozen": "model.text.*",
        "--data.workers": 2,
    },
}


@pytest.fixture(scope="module")
def owl(forked):
    return functools.partial(forked, recipe="owl")


@pytest.fixture(scope="module")
def words(scenes):
    """words(out, kind, …) -> command line."""

    def make(out, kind="global", **changes):
        base = WILD | {"--data.train": f"{scenes / 'train'}::{scenes / 'more'}", "--data.val": scenes / "val"}
        return options(scenes, out, base | KINDS[kind] | changes)

    return make


@pytest.fixture(scope="module")
def whole(words, owl, tmp_path_factory):
    """whole(kind) -> folder of a run never stopped; what it was given is noted in keys.txt."""
    home = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(kind):
        status, said = owl(words(home / kind, kind), keys=home / f"{kind}.keys")
        assert status == [0], said
        return home / kind

    return run


# Where a run is killed, one attempt after the other, with checkpoints after steps 3, 6 and 8.
MOMENTS = [
    ("in a step, before anything was saved", "call mmvit.train.health:Health.check", 2),
    ("in the middle of an epoch, behind a checkpoint", "call mmvit.tasks.detection:detection_terms", 5),
    ("before a checkpoint gets its name", r"event os.rename /\.tmp-step-00000006", 1),
    ("in an evaluation", "call mmvit.evaluators.detection_split:find", 1),
    ("after the optimizer, before the step counts", "call mmvit.tasks.detection:DetectionTask.after_step", 4),
    ("before the model gets its name", r"event os.rename /\.model\.", 1),
]


def test_killed_at_exact_moments(whole, words, owl, tmp_path):
    for name, at, count in MOMENTS:
        status, said = owl(words(tmp_path / "run"), kill={"at": at, "count": count})
        assert status == [-9], (name, said)
    status, said = owl(words(tmp_path / "run"))
    assert status == [0], said
    assert "resumed from" in said
    assert_equal(tmp_path / "run", whole("global"))


def after_a_step(count, name, **more):
    at = "call mmvit.tasks.detection:DetectionTask.after_step"
    return {"at": at, "count": count, "signal": name, **more}


def test_other_numbers_of_workers_change_nothing(whole, words, owl, tmp_path):
    """Killed in the middle of an epoch, then stopped by a signal; clipped by example, text tower locked."""
    out, file = tmp_path / "run", tmp_path / "run.keys"
    for workers, kill in ((0, after_a_step(5, "SIGKILL")), (1, after_a_step(1, "SIGTERM")), (0, None)):
        status, said = owl(words(out, "per_example", **{"--data.workers": workers}), kill=kill, keys=file)
        assert status == [-9 if kill and kill["signal"] == "SIGKILL" else 0], said
        assert ("stopped by SIGTERM, saved" in said) == (workers == 1)
    assert f"resumed from {out / 'checkpoints' / 'step-00000005'}: step 5, 20 samples seen" in said
    assert_equal(out, whole("per_example"))
    seen, want = (keys_of(f, lambda k: 1) for f in (file, whole("per_example").with_suffix(".keys")))
    assert seen == want
    assert sorted(want) == list(range(0, STEPS * BATCH, BATCH))
    assert sum(key.startswith("more") for keys in want.values() for key in keys) > 11, "over its epoch's end"


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(whole, words, owl, tmp_path):
    out = shutil.copytree(whole("global"), tmp_path / "run")
    shutil.rmtree(out / "model")
    state = out / "checkpoints" / f"step-{STEPS:08d}" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    status, said = owl(words(out))
    assert status == [0], said
    assert f"step-{STEPS:08d} is damaged" in said
    assert f"resumed from {out / 'checkpoints' / 'step-00000006'}: step 6, 24 samples seen" in said
    assert_equal(out, whole("global"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_12_random_moments(kind, whole, words, owl, tmp_path):
    random_kills(lambda out: words(out, kind), whole(kind), tmp_path, owl, kind, 12)


@pytest.mark.slow
def test_other_numbers_of_ranks_lose_and_double_no_picture(words, owl, tmp_path):
    """Eight steps on one rank, against 1, 3 and 2 ranks that are killed and go on."""
    base = {"--train.batch-size": 6, "--data.val": "", "--data.workers": 0, "--train.average": 0}
    assert owl(words(tmp_path / "one", **base), keys=tmp_path / "one.keys")[0] == [0]
    file, status = tmp_path / "many.keys", []
    for world, kill in ((1, after_a_step(4, "SIGKILL")), (3, after_a_step(2, "SIGTERM", rank=2)), (2, None)):
        found, said = owl(words(tmp_path / "many", **base), world=world, kill=kill, keys=file)
        status.append(found)
    assert status == [[-9], [0, 0, 0], [0, 0]], said
    assert "the checkpoint was made by 3 processes, now there are 2" in said
    ranks = {k: 1 if k < 18 else 3 if k < 36 else 2 for k in range(0, 48, 6)}
    want, got = keys_of(tmp_path / "one.keys", lambda k: 1), keys_of(file, ranks.__getitem__)
    assert got == want
    assert sum(map(len, want.values())) == 48
    rows = [json.loads(line) for line in (tmp_path / "many" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
