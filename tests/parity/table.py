"""All cases of the parity table, and docs/parity.md as their results fill it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from tests.parity.case import OUTPUTS, Case, Result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
# Beginnings of presets' names that no installable library has, and what stands for a peer.
WITHOUT_PEER = {
    "lit_": "a pair of a vit_* tower and a text_* tower",
    "vatt_": "no library has VATT; tests/models/test_vatt.py counts its parameters",
    "text_": "LiT's text tower; tests/hub/test_npz.py holds it against a slow reference",
}
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def all_cases() -> list[Case]:
    """The cases of every family, by preset."""
    files = sorted(Path(__file__).parent.glob("cases_*.py"))
    cases = [case for f in files for case in importlib.import_module(f"tests.parity.{f.stem}").CASES]
    return sorted(cases, key=lambda case: (case.preset, case.peer, case.slow))


def line_of(result: Result) -> str:
    """A result as a row of the table."""
    case = result.case
    cells = [f"`{case.preset}`", case.peer, f"{result.parameters / 1e6:.2f}", case.blocks]
    for found, shape in ((result.native, case.shape), (result.other, case.other)):
        size = "×".join(map(str, shape[1:] if shape and len(shape) > 1 else shape or ())) or "–"
        cells.append(size)
        cells += [f"{found[name]:.0e}" if name in found else "" for name in OUTPUTS]
    return "| " + " | ".join([*cells, case.note]) + " |"


def rows(page: str) -> list[tuple[str, str, str]]:
    """(preset, peer, blocks) of the rows that the page has."""
    body = page[page.index(BEGIN) : page.index(END)]
    cells = [line.split(" | ") for line in body.splitlines() if line.startswith("| `")]
    return [(c[0].removeprefix("| ").strip("`"), c[1], c[3]) for c in cells]


def write(results: Iterable[Result], facts: str) -> None:
    """The results into docs/parity.md, between its two marks."""
    head = ["preset", "peer", "M params", "blocks"]
    for size in ("native", "other"):
        head += [size, *(f"Δ {name}" for name in OUTPUTS)]
    head.append("note")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *map(line_of, results)]
    page = PAGE.read_text(encoding="utf-8")
    before, after = page[: page.index(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}\n\n{facts}\n\n" + "\n".join(lines) + f"\n\n{after}", encoding="utf-8")
