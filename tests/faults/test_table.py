"""The page lists what is tried, and nothing else."""

from collections import Counter

from tests.faults import conftest, table
from tests.faults.every import every_fault


def test_the_page_has_a_row_for_every_fault_in_their_order():
    tried = every_fault()
    assert not [fault for fault, n in Counter(tried).items() if n > 1]
    if not conftest.WRITING:
        assert list(table.rows()) == tried


def test_no_row_is_empty_or_names_a_place_of_one_machine():
    for fault, row in table.rows().items():
        assert all(row), fault
        assert "/tmp" not in " ".join(row), fault
        assert "Traceback" not in " ".join(row), fault
