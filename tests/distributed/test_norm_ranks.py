"""The batch norm of two and three processes is that of one, also with unequal and with no rows on a rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("norm_ranks.py")


@pytest.mark.parametrize("world", [2, 3])
def test_statistics_and_gradients_equal_one_process(world, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    common = [str(world), str(tmp_path / "meet"), str(tmp_path / "out.json")]
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), *common], env=environment)
        for rank in range(world)
    ]
    assert [process.wait(120) for process in ranks] == [0] * world
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["world"] == world
    assert found["worst"] < 1e-10
