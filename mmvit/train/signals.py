"""A polite end: SIGTERM and SIGINT ask the run to save and leave after the step in hand."""

from __future__ import annotations

import os
import signal
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
