"""Memory that stays, profiles, compiled blocks, counters over ranks."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmvit.errors import UserError
from mmvit.train.compiling import compile_blocks
from mmvit.train.memory import peak_memory
from mmvit.train.meters import Meters
from mmvit.train.profile import profiled

FAULTS = """
import resource, sys, torch
from mmvit.train.memory import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else False
for _ in range(20):  # the C library takes some rounds until its free pieces fit
    torch.ones(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(8 << 20)  # 32 MiB
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_stays_is_not_fetched_again():
    said = {}
    for mode in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
        )
        said[mode] = [int(word) for word in done.stdout.split()]
    assert said["keep"][0] == 1
    assert said["keep"][1] < said["default"][1] / 10, said


def test_peak_memory_sees_a_large_tensor():
    before = peak_memory()
    torch.ones(int((before + 0.1) * 2**28))  # GiB of float32, beyond the peak so far
    assert before < peak_memory() < before + before + 1


def run_of(tmp_path, steps, main=True):
    said = []
    return SimpleNamespace(
        train=SimpleNamespace(profile=steps),
        accelerator=SimpleNamespace(is_main_process=main),
        out=tmp_path,
        log=SimpleNamespace(line=said.append),
        said=said,
    )


@pytest.mark.filterwarnings("ignore:.*events.*")
@pytest.mark.parametrize(("steps", "batches", "seen"), [(2, 9, 2), (4, 5, 2)])
def test_a_profile_holds_the_steps_asked_for(tmp_path, steps, batches, seen):
    run = run_of(tmp_path, steps)
    for k in profiled(range(batches), run):
        with torch.profiler.record_function(f"body {k}"):
            torch.ones(300, 300) @ torch.ones(300, 300)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    bodies = {e["name"] for e in trace["traceEvents"] if str(e.get("name", "")).startswith("body")}
    assert bodies == {f"body {3 + i}" for i in range(seen)}
    table = (tmp_path / "profile" / "top.txt").read_text().splitlines()
    assert len(table) == 11 or len(table) > 3
    assert any("aten::mm" in line for line in table)
    assert f"profile of {seen} steps" in run.said[-1]


def test_no_profile_unless_asked_for(tmp_path):
    for run in (run_of(tmp_path, 0), run_of(tmp_path, 2, main=False)):
        assert list(profiled(range(9), run)) == list(range(9))
    assert not list(tmp_path.iterdir())


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(3))
        self.other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.other(x)


def test_repeated_blocks_are_compiled_in_place():
    torch.manual_seed(0)
    stack, x = Stack(), torch.randn(2, 4)
    before, names = stack(x), list(stack.state_dict())
    assert compile_blocks(stack, torch.device("cpu"), backend="eager") == 3
    torch.testing.assert_close(stack(x), before)
    assert list(stack.state_dict()) == names
    assert all(block._compiled_call_impl is not None for block in stack.blocks)
    with pytest.raises(UserError, match="no repeated blocks"):
        compile_blocks(nn.Linear(2, 2), torch.device("cpu"), backend="eager")


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no 'no-such-compiler'"):
        compile_blocks(Stack(), torch.device("cpu"))


def test_counters_of_all_ranks_are_added_once(monkeypatch):
    meters = Meters()
    meters.load_state_dict({"sums": {}, "count": 0, "counters": {"bad": 10}})
    meters.total(bad=2, cut=1)

    monkeypatch.setattr("mmvit.train.meters.gather_object", lambda own: [*own, {"bad": 5, "empty": 1}])
    row = meters.read()
    assert {k: v for k, v in row.items() if k.startswith("data/")} == {
        "data/bad": 17.0,
        "data/cut": 1.0,
        "data/empty": 1.0,
    }
    monkeypatch.setattr("mmvit.train.meters.gather_object", lambda own: [*own, {}])
    meters.share()
    assert meters.state_dict()["counters"] == {"bad": 17, "cut": 1, "empty": 1}
