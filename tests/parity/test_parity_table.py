"""docs/parity.md: every preset with a peer computes what the peer computes.

The default form runs one case of each preset family and kind of peer; `python scripts/parity.py` runs them
all, the slow form here too.
"""

import pytest

from mmvit.models.presets import list_models
from tests.parity import table
from tests.parity.case import LIMIT, Case, parameters_of, run

CASES = table.all_cases()


def family(case: Case) -> tuple[str, str]:
    """What a case stands for: the first word of the preset and the peer's library."""
    return case.preset.split("_")[0], case.peer.split()[0]


def smallest() -> list[Case]:
    """The case with the fewest parameters of every family and library."""
    found: dict[tuple[str, str], Case] = {}
    for case in sorted((c for c in CASES if not c.slow), key=lambda c: parameters_of(c.preset)):
        found.setdefault(family(case), case)
    return list(found.values())


@pytest.mark.parametrize("case", smallest(), ids=lambda c: f"{c.preset}-{c.peer.split()[0]}")
def test_the_smallest_of_every_family(case):
    result = run(case)
    assert result.native
    assert max(result.native.values()) <= LIMIT


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.preset}-{c.peer}-{c.blocks}")
def test_every_case(case):
    run(case)


def test_the_page_has_a_row_for_every_case():
    """scripts/parity.py --write was run after the last change of the cases."""
    wanted = [(c.preset, c.peer, c.blocks) for c in CASES if not c.slow]
    page = table.rows(table.PAGE.read_text(encoding="utf-8"))
    assert [row for row in page if row in wanted] == wanted
    slow = {(c.preset, c.peer, c.blocks) for c in CASES if c.slow}
    assert set(page) - set(wanted) <= slow


def test_presets_without_a_case_have_no_peer():
    """What no library here can build is named, so that a new preset is not forgotten."""
    without = {name for name in list_models() if name not in {c.preset for c in CASES}}
    known = table.WITHOUT_PEER
    unknown = {n for n in without if not any(n.startswith(start) for start in known)}
    assert not unknown, f"neither a case nor a reason in table.WITHOUT_PEER: {sorted(unknown)}"
