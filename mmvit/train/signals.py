"""A polite end: SIGTERM and SIGINT ask the run to save and leave after the step in hand."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any


class StopRequest:
    """Remembers that the run was asked to end; a second SIGINT interrupts at once.

    Call it for the answer. Child processes that inherit the handlers ignore SIGINT, since the terminal sends
    it to them too, and die of SIGTERM as they would without us (data workers set their own).
    """

    def __init__(self) -> None:
        self.name = ""
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return bool(self.name)

    def install(self) -> StopRequest:
        """Starts listening; only the main thread may."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def remove(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def follow_launcher() -> bool:
    """Whether SIGTERM now comes when `accelerate launch`, this process's parent, ends (Linux).

    Its launcher of one process dies of SIGTERM without telling the run, which would go on as an orphan.
    Launchers of several processes (torchrun) end theirs themselves.
    """
    if "RANK" in os.environ or not sys.platform.startswith("linux"):
        return False
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    if not any(os.path.basename(word).startswith(b"accelerate") for word in parent[:3]):
        return False
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    return ctypes.CDLL(None).prctl(set_death_signal, int(signal.SIGTERM), 0, 0, 0) == 0
