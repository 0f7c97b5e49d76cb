"""The recipe on one, two and three gloo processes: the same batches, losses, weights; nobody waits for ever.

Float32. Losses and gradient norms agree to 2e-5, weights to 5e-5 after ten steps of lr 1e-3: sums over other
numbers of rows round differently. In float64 the same steps agree to 1e-9 (tests/distributed).
"""

import itertools
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mmvit.data.shards import ShardIndex
from mmvit.data.write import ShardWriter

STEPS = 10
FEATURES = ("cached", "live", "both")  # locked tower from its cache, locked tower on pictures, both learn


def options(corpus, out, *more):
    base = {
        "--preset": "tiny",
        "--data.train": corpus / "train",
        "--model.tokenizer": corpus / "tokenizer",
        "--out": out,
        "--optim.lr": 1e-3,
        "--train.batch-size": 12,
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--train.steps": STEPS,
        "--train.save-every": 0,
    }
    base |= dict(zip(more[::2], more[1::2], strict=True))
    return [str(word) for pair in base.items() for word in pair]


@pytest.fixture(scope="module")
def cache(corpus, tmp_path_factory, recipe_module):
    out = tmp_path_factory.mktemp("cache")
    flags = (
        "--model",
        corpus / "tower",
        "--data",
        corpus / "train",
        "--dtype",
        "float32",
        "--precision",
        "fp32",
    )
    recipe_module("embed_shards", "--preset", "tiny", *flags, "--out", out, "--threads", 1)
    return out


@pytest.fixture(scope="module")
def once(corpus, cache, tmp_path_factory, forked):
    """once(kind, features, micro, world) -> (losses and norms, weights, keys of each global batch)."""
    folder, known = tmp_path_factory.mktemp("ranks"), {}

    def run(*case):
        if case not in known:
            kind, features, micro, world = case
            more = ["--loss.kind", kind, "--train.micro-batch", micro, "--loss.duplicates", "positive"]
            if features == "both":
                more += ["--data.augment", "crop"]
            else:
                more += ["--model.image", corpus / "tower", "--model.lock", "Lu"]
                more += ["--model.image-center", cache / "embedding_mean.npy"]
            if features == "cached":
                more += ["--data.train", cache]
            out = folder / "-".join(map(str, case))
            status, said = forked(options(corpus, out, *more), world=world, keys=f"{out}.keys")
            assert status == [0] * world, said
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            losses = [(row["train/loss"], row["train/grad_norm"]) for row in lines]
            parts = [json.loads(line) for line in Path(f"{out}.keys").read_text().splitlines()]
            parts.sort(key=lambda part: (part["position"], part["rank"]))
            keys = {p: sum((part["keys"] for part in group), []) for p, group in by_position(parts)}
            weights = load_file(out / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
            known[case] = losses, weights, keys
        return known[case]

    return run


def by_position(parts):
    return itertools.groupby(parts, key=lambda part: part["position"])


# Every value of kind, features, gradient cache (micro-batch 2) and ranks meets every value of the others.
PAIRS = [
    ("softmax", "cached", 0, 2),
    ("sigmoid", "live", 2, 2),
    ("softmax", "both", 2, 2),
    ("sigmoid", "cached", 2, 3),
    ("softmax", "live", 0, 3),
    ("sigmoid", "both", 0, 3),
]
ALL = list(itertools.product(("softmax", "sigmoid"), FEATURES, (0, 2), (1, 2, 3)))


def test_the_six_cases_cover_every_pair_of_values():
    for one, two in itertools.combinations(range(4), 2):
        wanted = {(case[one], case[two]) for case in ALL if case[3] > 1}
        assert {(case[one], case[two]) for case in PAIRS} == wanted


@pytest.mark.parametrize(
    "case", PAIRS + [pytest.param(case, marks=pytest.mark.slow) for case in ALL if case not in PAIRS], ids=str
)
def test_ten_steps_equal_one_process(once, case):
    losses, weights, keys = once(*case)
    want_losses, want_weights, want_keys = once(*case[:2], 0, 1)
    assert keys == want_keys
    assert len(keys) == STEPS
    assert all(len(batch) == 12 for batch in keys.values())
    assert len(losses) == STEPS
    for found, want in zip(losses, want_losses, strict=True):
        assert found == pytest.approx(want, abs=2e-5)
    assert weights.keys() == want_weights.keys()
    worst = max((weights[name] - value).abs().max().item() for name, value in want_weights.items())
    assert worst < 5e-5


def test_an_evaluation_with_fewer_samples_than_ranks(corpus, tmp_path, forked):
    source, val = ShardIndex.open(str(corpus / "val")), tmp_path / "val"
    with ShardWriter(val / "few", 10) as writer:
        for i in range(2):
            raw = source.read(i)
            writer.write(raw.pop("__key__").decode(), raw)
    rows = []
    for world in (1, 3):
        out = tmp_path / f"run{world}"
        words = options(corpus, out, "--data.val", val, "--train.steps", 1)
        status, said = forked(words, world=world)
        assert status == [0] * world, said
        rows.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[-1]))
    assert rows[0]["eval/rsum"] == pytest.approx(rows[1]["eval/rsum"])


def test_data_that_fail_on_one_rank_end_the_others(corpus, tmp_path, forked):
    kill = {"at": "call mmvit.data.draws:Draws.sample", "count": 20, "rank": 1, "error": "a bad day"}
    status, said = forked(options(corpus, tmp_path / "run", "--data.workers", 0), world=2, kill=kill)
    assert status == [1, 2], said
    assert "error: a bad day" in said
    assert "error: another process of this run ended" in said
    assert "Traceback" not in said


def test_bad_samples_on_one_rank_do_not_hold_up_the_others(corpus, tmp_path, forked):
    """The broken picture lies in the slice of one rank at a time; the other takes as many steps."""
    out = tmp_path / "run"
    words = options(corpus, out, "--train.steps", 6)
    status, said = forked(words, world=2, keys=tmp_path / "keys")
    assert status == [0, 0], said
    assert said.count("skipped (") == 1
    steps = [json.loads(line)["rank"] for line in (tmp_path / "keys").read_text().splitlines()]
    assert (steps.count(0), steps.count(1)) == (6, 6)


DEATHS = [
    (1, "call mmvit.train.health:Health.check", 3),  # in a step
    (0, "call torch:save", 1),  # the others wait for the save of the first
    (2, "call mmvit.evaluators.image_text:embed_samples", 1),
    (0, "call mmvit.train.prepare:seed_all", 1),
    (2, "call mmvit.train.health:Health.check", 1),
    (0, r"event os.rename /\.model\.", 1),
]


@pytest.mark.parametrize(
    "death", DEATHS[:2] + [pytest.param(death, marks=pytest.mark.slow) for death in DEATHS[2:]], ids=str
)
def test_a_rank_that_dies_ends_the_others(corpus, tmp_path, forked, death):
    """Even without a launcher that would end them: what is too late for `forked` fails here."""
    rank, at, count = death
    words = options(corpus, tmp_path / "run", "--data.val", corpus / "val", "--train.save-every", 4)
    status, said = forked(words, world=3, kill={"at": at, "count": count, "rank": rank})
    assert status[rank] == -9, said
    assert all(status[r] == 1 for r in range(3) if r != rank), (status, said)
    assert said.count("error: another process of this run ended") == 2
    assert "Traceback" not in said
