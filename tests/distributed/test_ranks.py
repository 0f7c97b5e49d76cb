"""One, two and three processes at the same global batch: same losses, same gradients, same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


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
    """ranks(world, **environment) -> what step_ranks.py found on so many gloo processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, str(HERE / "step_ranks.py")], **pipes) as process:

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


def test_losses_and_gradients_equal_one_process(together):
    if together["fsdp2"]:
        pytest.skip("the losses do not know how weights are sharded")
    assert len(together["losses"]["rows"]) == 24
    for *case, loss, gradient, hits in together["losses"]["rows"]:
        assert loss < 1e-10, case
        assert gradient < 1e-10, case
        assert hits, case
    assert all(together["losses"]["flags"])


def test_a_bad_number_names_its_rank_before_the_step(together):
    if "bad" in together:
        error, step = together["bad"]
        assert "step 1: embeddings of rank 1 not finite; nothing was updated" in error
        assert "bad-step-00000001-rank-1.json" in error
        assert step == 0


def test_gradient_cache_and_live_features_equal_the_plain_step(alone):
    for name in [n for n in alone if "micro=2" in n]:
        plain = alone[name.replace("micro=2", "micro=0")]
        assert alone[name]["losses"] == pytest.approx(plain["losses"], abs=1e-10)
        for weight, values in plain["weights"].items():
            assert alone[name]["weights"][weight] == pytest.approx(values, abs=1e-8), (name, weight)


def test_ten_steps_equal_one_process(together, alone):
    names = [n for n in together if "micro=" in n]
    assert len(names) == (8 if together["fsdp2"] else 12)
    for name in names:
        run = together[name]
        assert run["losses"] == pytest.approx(alone[name]["losses"], abs=1e-9), name
        assert run["norms"] == pytest.approx(alone[name]["norms"], abs=1e-9), name
        assert run["hits"] == pytest.approx(alone[name]["hits"], abs=1e-6), name
        assert run["averaged"] == pytest.approx(alone[name]["averaged"], abs=1e-8), name
        assert run["samples"] == alone[name]["samples"] == 120
        for weight, values in alone[name]["weights"].items():
            assert run["weights"][weight] == pytest.approx(values, abs=1e-8), (name, weight)


def test_detection_losses_and_gradients_equal_one_process(together):
    if together["fsdp2"]:
        pytest.skip("the losses do not know how weights are sharded")
    assert len(together["detection losses"]) == 6
    for *case, loss, gradient in together["detection losses"]:
        assert loss < 1e-10, case
        assert gradient < 1e-10, case


def test_steps_of_a_detector_equal_one_process(together, alone):
    """Also where some ranks have no box, and with gradients clipped by example."""
    names = list(together["detection"])
    assert len(names) == (3 if together["fsdp2"] else 4)
    for name in names:
        run, one = together["detection"][name], alone["detection"][name]
        for step, (row, want) in enumerate(zip(run["rows"], one["rows"], strict=True)):
            assert row.keys() == want.keys()
            for key in row:
                # Overlaps of single examples are means over different pictures on other numbers of ranks.
                if not (key.startswith("match_") and "clip=0.5" in name):
                    assert row[key] == pytest.approx(want[key], abs=1e-9), (name, step, key)
        for weight, values in one["weights"].items():
            assert run["weights"][weight] == pytest.approx(values, abs=1e-8), (name, weight)


def test_the_ways_through_a_detection_step_differ_as_they_should(alone):
    runs = alone["detection"]
    plain, cached = (runs[f"global micro={micro} clip=0"] for micro in (0, 2))
    for row, want in zip(cached["rows"], plain["rows"], strict=True):
        assert row == pytest.approx(want, abs=1e-10)
    clipped, free = (runs[f"per_example micro=0 clip={clip}"]["rows"] for clip in (0.5, 0))
    assert clipped[0]["loss"] == pytest.approx(free[0]["loss"], abs=1e-10)
    assert all(row["grad_norm"] <= 0.5 + 1e-12 for row in clipped)
    assert max(row["grad_norm"] for row in free) > 0.5
    assert plain["rows"][0]["loss"] != pytest.approx(free[0]["loss"], abs=1e-3)
    assert plain["rows"][2]["loss_box"] == 0  # the batch without boxes
