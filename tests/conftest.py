"""What every test file shares: few threads, no network for model libraries, failures named as they happen."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's top folder."""
    return Path(__file__).resolve().parents[1]


class NamesAtOnce:
    """Writes a line as soon as something fails: a session that is cut off later has named it."""

    def __init__(self, terminal: pytest.TerminalReporter):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else report.longreprtext).strip().split("\n")[0]
            self.terminal.ensure_newline()
            self.terminal.write_line(f"FAILED NOW {report.nodeid} ({report.when}): {reason[:300]}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:  # the process that prints
        config.pluginmanager.register(NamesAtOnce(terminal))


@pytest.fixture
def start():
    """start(line, **options of Popen) -> a process, killed with all it has started when the test ends."""
    processes = []

    def run(line, **options):
        processes.append(subprocess.Popen([str(word) for word in line], **options))
        return processes[-1]

    yield run
    for process in processes:
        kill_all(process)


def kill_all(process: subprocess.Popen) -> None:
    """Ends a process with its descendants, those in sessions of their own too, and closes its pipes."""
    for pid in [process.pid, *descendants(process.pid)] if process.poll() is None else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait(timeout=60)


def descendants(pid: int) -> list[int]:
    """The processes that one has started, those that they have started, and so on (Linux)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, level = [], {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += level
    return found
