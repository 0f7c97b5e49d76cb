"""recipes/owl.py on one, two and three gloo processes: the same batches, losses, weights, evaluation.

Float32. Sums over other numbers of rows round differently; in float64 the same steps agree to 1e-9
(tests/distributed).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.recipes.owl_options import options
from tests.recipes.run_folders import keys_of, rows

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH = 4, 6
BASE = {
    "--data.mosaics": (0.8, 0.2),
    "--model.box-bias": "center",
    "--train.batch-size": BATCH,
    "--train.steps": STEPS,
    "--train.save-every": 0,
}
KINDS = {
    "global": {"--model.class-init": "projection"},
    "published start": {},
    "micro": {"--model.class-init": "projection", "--train.micro-batch": 2},
    "per_example": {
        "--loss.normalization": "per_example",
        "--train.per-example-clip": 1,
        "--train.clip-norm": 0,
        "--model.class-init": "projection",
        "--model.objectness": True,
        "--model.frozen": "model.text.*",
    },
}


@pytest.fixture(scope="module")
def once(scenes, tmp_path_factory, forked):
    """once(kind, world) -> (rows, weights, keys of each global batch) of a run on so many processes."""
    home, known = tmp_path_factory.mktemp("ranks"), {}

    def run(kind, world):
        if (kind, world) not in known:
            out = home / f"{kind}-{world}"
            changes = BASE | KINDS[kind] | {"--data.val": scenes / "train", "--train.world-size": world}
            status, said = forked(
                options(scenes, out, changes), world=world, keys=f"{out}.keys", recipe="owl"
            )
            assert status == [0] * world, said
            assert world_of(out) == world
            weights = load_file(out / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
            known[kind, world] = rows(out), weights, keys_of(Path(f"{out}.keys"), lambda k: world)
        return known[kind, world]

    return run


def world_of(out):
    return json.loads((out / "env.json").read_text())["world_size"]


CASES = [("global", 2), ("per_example", 2), ("micro", 3)]
MORE = [("global", 3), ("per_example", 3), ("micro", 2), ("published start", 2)]


@pytest.mark.parametrize(
    ("kind", "world"), CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in MORE]
)
def test_several_processes_equal_one(once, kind, world):
    found, weights, keys = once(kind, world)
    want_rows, want_weights, want_keys = once("global" if kind == "micro" else kind, 1)
    assert keys == want_keys
    assert sorted(keys) == list(range(0, STEPS * BATCH, BATCH))
    assert len(found) == len(want_rows) == STEPS + 1
    for row, want in zip(found, want_rows, strict=True):
        evaluated = "eval/AP" in want  # scores so close to each other may change places
        assert row == pytest.approx(want, rel=2e-5, abs=2e-3 if evaluated else 5e-6)
    assert found[-1]["eval/AR100"] > 0, "otherwise its equality would say little"
    assert weights.keys() == want_weights.keys()
    worst = {name: _distance(name, weights[name], value) for name, value in want_weights.items()}
    assert max(worst.values()) < 2e-5, max(worst, key=worst.get)


def _distance(name, one, two):
    """Largest difference; not of the keys' biases, which have no gradient: Adam makes steps of its noise."""
    gap = (one - two).abs()
    if name.endswith("qkv.bias"):
        gap = gap.unflatten(0, (3, -1))[[0, 2]]
    return gap.max().item()


@pytest.mark.slow
def test_torchrun_itself(scenes, once, tmp_path):
    """The line of the recipe's header, with real processes."""
    changes = BASE | KINDS["global"] | {"--data.val": scenes / "train", "--train.world-size": 2}
    line = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", 2, "recipes/owl.py"]
    done = subprocess.run(
        [str(word) for word in [*line, *options(scenes, tmp_path / "run", changes)]],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert world_of(tmp_path / "run") == 2
    assert rows(tmp_path / "run") == once("global", 2)[0]
