"""What a fault of one sample is, for the tables of cases beside this file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CAPTION = "a red circle"


@dataclass(frozen=True)
class Case:
    """One odd sample among good ones.

    fault: its row in docs/faults.md.
    members: makes its members by extension.
    reason: the one it is skipped for; "" = it is used.
    became: what it is used as, for the table; `check` holds that to be true.
    check: raises where the decoded sample (picture (3,8,8) | embedding (4,), caption) is another.
    cached: the sample is read for its cached embedding, not for its picture.
    """

    fault: str
    members: Callable[[], dict[str, Any]]
    reason: str = ""
    became: str = ""
    check: Callable[[Any, str], None] | None = None
    cached: bool = False

    @property
    def key(self) -> str:
        return "odd " + self.fault.translate({ord(c): "-" for c in "./\\"})[:100]
