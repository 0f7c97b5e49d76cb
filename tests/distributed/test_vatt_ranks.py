"""One, two and three processes at the same batch of video, audio and text: same losses, same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FSDP2 = {  # what `accelerate launch` sets for recipes/accelerate/8gpu_fsdp2.yaml
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """ranks(world, **environment) -> what vatt_ranks.py found on so many gloo processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    script = Path(__file__).with_name("vatt_ranks.py")
    with subprocess.Popen([sys.executable, str(script)], **pipes) as process:

        def run(world, **more):
            out = tmp_path_factory.mktemp("ranks") / "out.json"
            process.stdin.write(json.dumps({"world": world, "out": str(out), "environment": more}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == [0] * world
            return json.loads(out.read_text())

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def alone(ranks):
    return ranks(1)


@pytest.fixture(scope="module", params=[(2, False), (3, False), (2, True)], ids=["2", "3", "2-fsdp2"])
def together(request, ranks):
    world, fsdp2 = request.param
    found = ranks(world, **(FSDP2 if fsdp2 else {}))
    assert (found["world"], found["fsdp2"]) == (world, fsdp2)
    return found


def test_losses_hits_and_gradients_equal_one_process(together):
    """Also where rows with both modalities lie on one rank only, or nowhere."""
    if together["fsdp2"]:
        pytest.skip("the losses do not know how weights are sharded")
    assert len(together["losses"]["rows"]) == 16
    for *case, values, gradients, loss in together["losses"]["rows"]:
        assert values < 1e-10, case
        assert gradients < 1e-10, case
        assert (loss == 0) == ("no row" in case), case


def test_local_normalization_is_each_ranks_own_mean(together):
    if together["fsdp2"]:
        pytest.skip("the losses do not know how weights are sharded")
    found = together["losses"]
    assert found["count"] == 0  # rank 0 wrote this, and the rows that count are the last rank's
    *none, last = found["local"]
    assert not any(none)
    assert last == pytest.approx(found["all"], abs=1e-12)


def test_steps_equal_one_process(together, alone):
    """DropToken, stills, a global batch without sound, ranks without sound or texts, a checkpoint between."""
    assert together["runs"].keys() == alone["runs"].keys()
    for name, one in alone["runs"].items():
        run = together["runs"][name]
        if together["fsdp2"] and "micro" in name:
            assert "--train.micro-batch" in run["error"]
            continue
        for step, (row, want) in enumerate(zip(run["rows"], one["rows"], strict=True)):
            assert row == pytest.approx(want, rel=1e-8, abs=1e-9), (name, step)
        for weight, values in one["weights"].items():
            assert run["weights"][weight] == pytest.approx(values, abs=1e-7), (name, weight)


def test_micro_batches_equal_the_plain_step(alone):
    plain, cached = alone["runs"]["shared fac"], alone["runs"]["shared fac micro"]
    for row, want in zip(cached["rows"], plain["rows"], strict=True):
        assert row == pytest.approx(want, rel=1e-8, abs=1e-9)
    for weight, values in plain["weights"].items():
        assert cached["weights"][weight] == pytest.approx(values, abs=1e-7), weight


def test_the_batches_lack_what_they_should(alone):
    rows = alone["runs"]["shared fac"]["rows"]
    assert [round(row["rows_audio"], 3) for row in rows] == [1, 0.25, 0, 1]
    assert [round(row["rows_text"], 3) for row in rows] == [1, 0.417, 1, 1]
    assert [round(row["rows_video"], 3) for row in rows] == [1, 1, 0.5, 1]
    assert rows[2]["loss_va"] == 0
    assert all(row["loss_vt"] > 0 for row in rows)
