"""Odd samples among good ones, through every way of reading: skipped and counted, or used."""

from collections import Counter

import numpy as np
import pytest

from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import make_loader, read_all
from mmvit.data.write import ShardWriter
from tests.faults import cases_embeddings, cases_pictures, cases_words
from tests.faults.case import CAPTION

CASES = [*cases_pictures.CASES, *cases_words.CASES, *cases_embeddings.CASES]
GOOD = {"png": cases_words.GOOD, "txt": CAPTION, "npy": np.ones(4, np.float32)}
KEYS = ["good-0", "good-1", "odd", "good-3", "good-4"]
# The test run makes errors of warnings; these cases are to be met as a user meets them.
pytestmark = pytest.mark.filterwarnings("default")


def read(loader, cached):
    """[(key, picture or embedding, caption)] of every batch."""
    with loader:
        return [
            row
            for b in loader
            for row in zip(b.keys, b.image_embedding if cached else b.image, b.captions, strict=True)
        ]


def check(case, rows):
    for key, value, caption in rows:
        if key == "odd":
            case.check(value, caption)
        else:
            assert caption == CAPTION
            cases_embeddings.is_ones(value, "") if case.cached else cases_pictures.is_halves(value, "")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.fault)
def test_a_fault_costs_its_own_sample_and_no_other(case, tmp_path, told, only_indexes, capfd):
    with ShardWriter(tmp_path / "shards" / "s", 5) as writer:
        for key in KEYS:
            writer.write(key, case.members() if key == "odd" else GOOD)
    good = [key for key in KEYS if key != "odd" or not case.reason]
    options = {
        "fields": ("image_embedding" if case.cached else "image", "text"),
        "preprocess": ImagePreprocess(size=(8, 8)),
        "batch_size": 5,
        "embedding_dim": 4 if case.cached else None,
    }
    urls = str(tmp_path / "shards")
    with only_indexes():
        everything = read_all(urls, **options)
        rows = read(everything, case.cached)
        assert [key for key, *_ in rows] == good, "all good ones, in order"
        assert everything.skipped == ({case.reason: 1} if case.reason else {})
        check(case, rows)
        for way in ("index", "stream"):
            loader = make_loader(urls, num_batches=2, max_bad_rate=1.0, read=way, **options)
            rows = read(loader, case.cached)
            check(case, rows)
            for epoch in (rows[:5], rows[5:]):
                counts = Counter(key for key, *_ in epoch)
                assert set(counts) == set(good), "every good one, every epoch"
                assert case.reason or set(counts.values()) == {1}
            assert set(loader.skipped) == ({case.reason} if case.reason else set())
            assert loader.skipped.total() >= (2 if case.reason else 0)
            assert loader.drawn == 10 + loader.skipped.total()
    assert "Traceback" not in capfd.readouterr().err
    happens = "skipped and counted" if case.reason else "used"
    told(case.fault, happens, f"`{case.reason}`" if case.reason else case.became)
