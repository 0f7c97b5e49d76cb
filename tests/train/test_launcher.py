"""A run that `accelerate launch` started ends with its launcher, not as an orphan."""

import os
import signal
import sys
import time

import pytest

CHILD = """
import os, pathlib, signal, sys, time
from mmvit.train.signals import StopRequest, follow_launcher
stop, end = StopRequest().install(), time.monotonic() + 100
pathlib.Path(sys.argv[1], "follows").write_text(f"{follow_launcher()} {os.getpid()} .")
while not stop() and time.monotonic() < end:
    time.sleep(0.01)
pathlib.Path(sys.argv[1], "stopped").write_text(stop.name)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def wait(path):
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, path
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl")
@pytest.mark.parametrize(("name", "follows"), [("accelerate", True), ("shell", False)])
def test_the_end_of_the_launcher_is_a_request_to_stop(tmp_path, name, follows, start):
    program = tmp_path / name
    program.write_text(LAUNCHER)
    environment = {k: v for k, v in os.environ.items() if k != "RANK"}
    launcher = start([sys.executable, program, CHILD, tmp_path], env=environment)
    said, child, _ = wait(tmp_path / "follows").split()
    assert said == str(follows)
    launcher.terminate()
    launcher.wait(timeout=60)
    if follows:
        assert wait(tmp_path / "stopped") == "SIGTERM"
    else:
        time.sleep(0.3)
        assert not (tmp_path / "stopped").exists()
        os.kill(int(child), signal.SIGTERM)
        assert wait(tmp_path / "stopped") == "SIGTERM"
