"""A test or fixture that hangs fails by name, at once and at the end, and the session goes on."""

import os
import subprocess
import sys

HANGING = """
import threading
import pytest

@pytest.fixture
def stuck():
    threading.Event().wait()

def test_in_the_fixture(stuck):
    pass

def test_itself():
    threading.Event().wait()

def test_that_is_fine():
    pass
"""


def test_what_hangs_is_named(root, tmp_path):
    (tmp_path / "test_hanging.py").write_text(HANGING)
    line = [sys.executable, "-m", "pytest", "-c", root / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    line += ["-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "1", "--timeout", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [str(word) for word in line], cwd=root, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1, done.stdout + done.stderr
    now, _, summary = done.stdout.partition("short test summary")
    for name, when in (("in_the_fixture", "setup"), ("itself", "call")):
        assert f"FAILED NOW test_hanging.py::test_{name} ({when}): Failed: Timeout" in now
        assert f"test_{name}" in summary
    assert now.index("FAILED NOW") < now.index("Stack of"), "before the reports of the end"
    assert "1 failed, 1 passed, 1 error" in summary


def test_limits_leave_room_for_each_other(pytestconfig):
    """What is too slow fails by name; only what cannot be interrupted costs its process."""
    limit = float(pytestconfig.getini("timeout"))
    assert 0 < limit < float(pytestconfig.getini("faulthandler_timeout"))
    assert pytestconfig.getini("faulthandler_exit_on_timeout")
