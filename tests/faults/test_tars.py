"""Odd tars beside a good one: by index and as a stream."""

import logging
import re

import pytest

from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import make_loader, read_all
from mmvit.data.validate import validate
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from tests.faults.cases_pictures import is_halves
from tests.faults.cases_tars import CASES
from tests.faults.test_samples import GOOD

pytestmark = pytest.mark.filterwarnings("default")
OPTIONS = {"preprocess": ImagePreprocess(size=(8, 8)), "fields": ("image", "text")}
BESIDE = ("good-0", "good-1")


@pytest.fixture
def shards(tmp_path):
    """FOLDER/shards with a good tar and no index."""
    folder = tmp_path / "shards"
    with ShardWriter(folder / "good", 5) as writer:
        for key in BESIDE:
            writer.write(key, GOOD)
    for file in (folder / "index.json", *folder.glob("*.idx")):
        file.unlink()
    return folder


def outcome(read, want, logs):
    """(what happens, seen as) of one way to read, after holding it against what is wanted."""
    if want.error:
        with pytest.raises(UserError, match=want.error) as caught:
            read()
        assert "\n" not in str(caught.value)
        return "one error", f"{caught.value}"
    keys, skipped = read()
    assert keys == sorted([*want.keys, *BESIDE])
    assert skipped == want.skipped
    warnings = [r.getMessage() for r in logs.records if not r.getMessage().startswith("skipped (")]
    assert all("\n" not in r.getMessage() for r in logs.records)
    assert [bool(re.search(want.warning, w)) for w in warnings] == ([True] if want.warning else [])
    counted = [f"`{reason}` {n}" for reason, n in want.skipped.items()]
    words = ["warned of"] * bool(warnings) + ["counted"] * bool(counted)
    happens = f"{' and '.join(words)}, the rest used" if words else "used" if want.keys else "nothing to use"
    used = ", ".join(f"`{ascii(k)[1:-1][:40]}`" for k in want.keys)
    return happens, "; ".join([*counted, *warnings]) or (f"samples {used}" if used else "the other tars")


def plain(key, folder):
    return key.replace(str(folder), "")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.fault)
def test_a_tar_read_by_index(case, shards, tmp_path, told, only_indexes, caplog, capfd):
    case.make(shards / "odd.tar")
    with only_indexes(), caplog.at_level(logging.WARNING):

        def read():
            with read_all(str(shards), batch_size=3, **OPTIONS) as loader:
                rows = [
                    (k, i, c) for b in loader for k, i, c in zip(b.keys, b.image, b.captions, strict=True)
                ]
            for _, picture, caption in rows:
                is_halves(picture, caption)
            return sorted(plain(k, tmp_path) for k, *_ in rows), dict(loader.skipped)

        happens, seen = outcome(read, case.index, caplog)
        problems = validate(str(shards)).problems
    if case.index.error or case.index.warning or case.index.skipped:
        assert problems, "the validator finds it too"
    assert "Traceback" not in capfd.readouterr().err
    told(case.fault, happens, seen)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.fault)
def test_a_tar_read_as_a_stream(case, shards, tmp_path, told, only_writes, caplog, capfd):
    case.make(shards / "odd.tar")
    want = case.stream
    epoch = len(want.keys) + len(BESIDE) + sum(want.skipped.values())
    with only_writes(), caplog.at_level(logging.WARNING):

        def read():
            options = {"batch_size": 1, "num_batches": epoch, "read": "stream", "samples": epoch, **OPTIONS}
            with make_loader(str(shards), max_bad_rate=1.0, **options) as loader:
                batches = list(loader)
            bad = sum(bool(b.skipped) for b in batches)  # each is replaced by a sample that comes again
            assert len(batches) == epoch
            assert bad == sum(want.skipped.values())
            firsts = [plain(b.keys[0], tmp_path) for b in batches if not b.skipped]
            first_reasons = [next(iter(b.skipped)) for b in batches if b.skipped]
            return sorted(firsts), {r: first_reasons.count(r) for r in first_reasons}

        happens, seen = outcome(read, want, caplog)
    assert "Traceback" not in capfd.readouterr().err
    told(f"{case.fault}, as a stream", happens, seen)
