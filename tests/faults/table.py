"""docs/faults.md: the table of what was tried, read and written by the tests."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
HEAD = "| fault | what happens | seen as |\n| --- | --- | --- |\n"


def cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def rows() -> dict[str, tuple[str, str]]:
    """fault -> (what happens, seen as), as the page says."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").split(HEAD)[-1].splitlines():
        if line.startswith("| "):
            fault, happens, seen = (part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1])
            found[fault] = (happens, seen)
    return found


def write(outcomes: dict[str, tuple[str, str]], order: list[str]) -> None:
    """The page with what was seen now; rows that were not tried this time stay as they are."""
    known = {**rows(), **outcomes}
    lines = [f"| {fault} | {known[fault][0]} | {known[fault][1]} |" for fault in order if fault in known]
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.split(HEAD)[0] + HEAD + "\n".join(lines) + "\n", encoding="utf-8")
