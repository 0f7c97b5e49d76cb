"""Killed runs of recipes/vatt.py go on as if nothing had been: the same rows and weights, to the bit."""

import functools

import pytest

from tests.recipes.run_folders import assert_equal, keys_of, random_kills, rows
from tests.recipes.vatt_options import THREE, options
from tests.recipes.vatt_shards import build

STEPS, BATCH = 7, 6
# All that is random: sources, starts of clips, crops, flips, colours, noise, dropped tokens; and a mean.
WILD = {
    "--data.workers": 1,
    "--train.batch-size": BATCH,
    "--train.steps": STEPS,
    "--train.save-every": 3,
    "--train.average": 0.9,
}
KINDS = {
    "shared": {"--loss.at": 0.5, "--loss.duplicates": "mask"},
    "three": {**THREE, "--train.micro-batch": 4, "--model.frozen": "model.text.tok_embed.*"},
}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return build(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def vatt(forked):
    return functools.partial(forked, recipe="vatt")


@pytest.fixture(scope="module")
def words(media):
    """words(out, kind, …) -> command line."""
    return lambda out, kind="shared", **changes: options(media, out, WILD | KINDS[kind] | changes)


@pytest.fixture(scope="module")
def whole(words, vatt, tmp_path_factory):
    """whole(kind) -> folder of a run never stopped; what it was given is noted in kind.keys."""
    home = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(kind):
        status, said = vatt(words(home / kind, kind), keys=home / f"{kind}.keys")
        assert status == [0], said
        return home / kind

    return run


# Where a run is killed, one attempt after the other, with checkpoints after steps 3, 6 and 7.
MOMENTS = [
    ("in a step, before anything was saved", "call mmvit.train.health:Health.check", 2),
    ("in a loss, behind a checkpoint", "call mmvit.tasks.vatt:mil_nce_terms", 13),
    ("before a checkpoint gets its name", r"event os.rename /\.tmp-step-00000006", 1),
    ("after the optimizer, before the step counts", "call mmvit.tasks.vatt:VattTask.after_step", 2),
    ("before the model gets its name", r"event os.rename /\.model\.", 1),
]


def test_killed_at_exact_moments(whole, words, vatt, tmp_path):
    for name, at, count in MOMENTS:
        status, said = vatt(words(tmp_path / "run"), kill={"at": at, "count": count})
        assert status == [-9], (name, said)
    status, said = vatt(words(tmp_path / "run"))
    assert status == [0], said
    assert "resumed from" in said
    assert_equal(tmp_path / "run", whole("shared"))


def test_other_numbers_of_workers_and_a_signal_change_nothing(whole, words, vatt, tmp_path):
    out, file = tmp_path / "run", tmp_path / "run.keys"
    after = "call mmvit.tasks.vatt:VattTask.after_step"
    for workers, kill in (
        (0, {"count": 4, "signal": "SIGKILL"}),
        (2, {"count": 2, "signal": "SIGTERM"}),
        (0, None),
    ):
        kill = kill and {"at": after, **kill}
        status, said = vatt(words(out, "three", **{"--data.workers": workers}), kill=kill, keys=file)
        assert status == [-9 if kill and kill["signal"] == "SIGKILL" else 0], said
        assert ("stopped by SIGTERM, saved" in said) == (workers == 2)
    assert_equal(out, whole("three"))
    seen, want = (keys_of(f, lambda k: 1) for f in (file, whole("three").with_suffix(".keys")))
    assert seen == want
    assert sorted(want) == list(range(0, STEPS * BATCH, BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_8_random_moments(kind, whole, words, vatt, tmp_path):
    random_kills(lambda out: words(out, kind), whole(kind), tmp_path, vatt, kind, 8)


def test_ranks_see_the_same_samples_and_reach_the_same_losses(words, vatt, whole, tmp_path):
    """Two ranks, one of which is asked to stop in step 4; three go on behind step 5; against one."""
    file = tmp_path / "many.keys"
    stop = {"at": "call mmvit.tasks.vatt:VattTask.after_step", "count": 4, "signal": "SIGTERM", "rank": 1}
    status, said = vatt(words(tmp_path / "many"), world=2, kill=stop, keys=file)
    assert status == [0, 0], said
    status, said = vatt(words(tmp_path / "many"), world=3, keys=file)
    assert status == [0, 0, 0], said
    assert "the checkpoint was made by 2 processes, now there are 3" in said
    ranks = {k: 2 if k < 5 * BATCH else 3 for k in range(0, STEPS * BATCH, BATCH)}
    assert keys_of(file, ranks.__getitem__) == keys_of(whole("shared").with_suffix(".keys"), lambda k: 1)
    one, many = (losses_of(out) for out in (whole("shared"), tmp_path / "many"))
    assert many[:4] == pytest.approx(one[:4], abs=1e-4)
    assert many == pytest.approx(one, abs=1e-2)  # float32: the optimizer makes much of rounding


def losses_of(out):
    """The loss of every step."""
    return [row["train/loss"] for row in rows(out) if "train/loss" in row]
