"""Real runs of the recipes in processes of their own, disks that fill up: the tests' side of nursery.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmvit.hub import folder as hub
from tests.conftest import kill_all

SCRIPT = Path(__file__).with_name("nursery.py")
LIMIT = 100


class Runs:
    """start(recipe, words) -> a run; finish(run) -> (exit status, what it said)."""

    def __init__(self, logs: Path):
        self.logs, self.count = logs, 0
        prefix = next((p for p in ([], ["unshare", "-m"], ["unshare", "-rm"]) if _can_mount(p)), None)
        self.can_mount = prefix is not None
        self.line = [*(prefix or []), sys.executable, str(SCRIPT)]
        self.process = None

    def open(self):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHONUNBUFFERED": "1",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self.line, env=environment, **pipes)

    def ask(self, **job):
        if self.process is None:
            self.open()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()  # it ends runs that take too long
            assert answer, "the process that forks has died"
        except BaseException:  # its answer would come to the next one who asks
            self.close()
            raise
        return json.loads(answer)

    def start(self, recipe, words, setup=()):
        self.count += 1
        said = self.logs / f"{self.count}.txt"
        said.touch()
        job = {"recipe": recipe, "words": [str(w) for w in words], "said": str(said), "setup": list(setup)}
        return self.ask(do="run", **job)["pid"], said

    def finish(self, run):
        status = self.ask(do="wait", pid=run[0], seconds=LIMIT)["status"]
        assert status is not None, f"still running after {LIMIT} s: {run[1].read_text()[-2000:]}"
        return status, run[1].read_text()

    def __call__(self, recipe, words, setup=()):
        return self.finish(self.start(recipe, words, setup))

    def until(self, run, condition):
        """Waits for a condition while the run is alive."""
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, run[1].read_text()[-2000:]
            assert Path(f"/proc/{run[0]}/stat").read_text().split()[2] != "Z", run[1].read_text()[-2000:]
            time.sleep(0.005)

    def disk(self, at, size):
        """A file system of `size` at a folder that the runs see; returns the path under which we see it."""
        if not self.can_mount:
            pytest.skip("this needs the right to mount a tmpfs (root, or user namespaces)")
        at.mkdir(parents=True, exist_ok=True)
        answer = self.ask(do="mount", at=str(at), options=f"size={size}")
        assert answer["error"] == 0, os.strerror(answer["error"])
        return Path(f"/proc/{self.process.pid}/root{at}")

    def make_read_only(self, at):
        answer = self.ask(do="read-only", at=str(at), options="")
        assert answer["error"] == 0, os.strerror(answer["error"])

    def umount(self, at):
        assert self.ask(do="umount", at=str(at))["error"] == 0

    def close(self):
        if self.process is not None:
            kill_all(self.process)
        self.process = None


def _can_mount(prefix):
    """Whether the kernel lets a process started with this prefix mount a tmpfs for itself alone."""
    if not prefix:
        return False  # never on the file systems of everyone
    try:
        command = [*prefix, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    except FileNotFoundError:
        return False


def fill(disk, leave=0):
    """Takes all room of a disk but `leave` bytes; returns the file that takes it."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(bytes(max(0, room.f_bavail * room.f_frsize - leave)))
    return filler


def rows(out):
    """metrics.jsonl without the clock's numbers."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in found]


def assert_equal(out, whole):
    """Two runs: the same rows, the same model."""
    assert rows(out) == rows(whole)
    assert hub.load(out / "model").fingerprint == hub.load(whole / "model").fingerprint


def the_error(status, said):
    """The one line that a run ended with."""
    assert status == 2, said
    assert "Traceback" not in said, said
    assert said.splitlines()[-1].startswith("error: "), said
    assert said.count("error: ") == 1, said
    return said.splitlines()[-1].removeprefix("error: ")
