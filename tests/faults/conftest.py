"""What every fault is held against: its row in docs/faults.md, and the files that were there before."""

import contextlib
import os
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.every import every_fault
from tests.faults.running import Runs
from tests.recipes.conftest import *  # noqa: F403 - the fixtures of recipes

WRITING = os.environ.get("MMVIT_WRITE_FAULTS") == "1"
SEEN: dict[str, tuple[str, str]] = {}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs of the recipes in processes of their own."""
    found = Runs(tmp_path_factory.mktemp("said"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def words(corpus):
    """words(out, option, value, …) -> a command line of 12 steps with checkpoints after 4, 8 and 12."""
    base = {
        "--preset": "tiny",
        "--data.train": corpus / "train",
        "--model.tokenizer": corpus / "tokenizer",
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--train.steps": 12,
        "--train.save-every": 4,
        "--train.keep": 1,
        "--data.max-bad-rate": 1.0,
    }

    def make(out, *more):
        pairs = {**base, "--out": out, **dict(zip(more[::2], more[1::2], strict=True))}
        return [str(word) for pair in pairs.items() for word in pair]

    return make


@pytest.fixture(scope="session")
def whole(words, runs, tmp_path_factory):
    """The run folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    status, said = runs("lit", words(out))
    assert status == 0, said
    return out


@pytest.fixture
def told(tmp_path):
    """told(fault, what happens, seen as): held against docs/faults.md, or kept (MMVIT_WRITE_FAULTS)."""

    def tell(fault, happens, seen, **folders):
        for word, path in {**folders, "FOLDER": tmp_path}.items():
            seen = seen.replace(str(path), word)
        assert "/tmp" not in seen, seen
        row = (table.cell(happens), table.cell(seen))
        if WRITING:
            SEEN[fault] = row
            return
        assert table.rows().get(fault) == row, (
            "MMVIT_WRITE_FAULTS=1 bash scripts/test.sh tests/faults -n 0 writes it"
        )

    return tell


def pytest_sessionfinish(session):
    if SEEN:
        table.write(SEEN, every_fault())


def files(top):
    """path -> what would show a change, of everything below a folder."""
    found = {}
    for path in sorted(Path(top).rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            found[path] = (
                path.read_bytes() if path.is_file() and not path.is_symlink() else os.lstat(path).st_mode
            )
    return found


@pytest.fixture
def only_writes(tmp_path):
    """`with only_writes(folder, …):` nothing else changes, here or in the working folder."""

    @contextlib.contextmanager
    def guard(*allowed):
        before, here = files(tmp_path), sorted(os.listdir())
        yield
        after = files(tmp_path)
        changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        wrong = [p for p in changed if not any(p == a or a in p.parents for a in allowed)]
        assert not wrong, f"written or lost: {wrong}"
        assert sorted(os.listdir()) == here

    return guard


@pytest.fixture
def only_indexes(tmp_path, only_writes):
    """`with only_indexes():` nothing changes but index.json and the tables of offsets."""

    @contextlib.contextmanager
    def guard():
        folders = [top for top in tmp_path.rglob("*") if top.is_dir() and not top.is_symlink()]
        tables = [top / f"{tar.name}.idx" for top in folders for tar in top.glob("*.tar*")]
        with only_writes(*tables, *(top / "index.json" for top in folders)):
            yield

    return guard
