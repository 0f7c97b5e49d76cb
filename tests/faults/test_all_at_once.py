"""Every fault of a sample in one set of shards, through the recipes: what they count is what is there."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from mmvit.data.embedding import read_views
from mmvit.data.loader import make_loader, read_all
from mmvit.data.shards import ShardIndex
from mmvit.data.text import ClipTokenizer, WordPieceTokenizer
from mmvit.data.tokenizer import CHARACTERS
from mmvit.data.write import ShardWriter
from mmvit.hub import folder as hub
from tests.faults import cases_pictures, cases_words
from tests.faults.cases_tars import pair, tar

pytestmark = pytest.mark.filterwarnings("default")
CASES = [*cases_pictures.CASES, *cases_words.CASES]
BAD = Counter(case.reason for case in CASES if case.reason)
GOOD = 60
STEPS, BATCH = 12, 16


def label(i):
    return "red circle" if i % 2 else "blue bar"


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """FOLDER/everything: every case among good samples, and a tar of odd names."""
    out = tmp_path_factory.mktemp("all") / "everything"
    with ShardWriter(out / "s", 25) as writer:
        for i in range(max(GOOD, len(CASES))):
            if i < len(CASES):
                writer.write(f"{i:03d} {CASES[i].key}", CASES[i].members())
            if i < GOOD:
                writer.write(
                    f"good{i:03d}", {"png": cases_words.GOOD, "txt": label(i), "json": {"label": label(i)}}
                )
    names = [
        "../../evil",
        "/evil",
        "x/y",
        "x_y",
        "k" * 300,
        "caf\udce9",
        "line\nbreak",
        ".hidden/z",
        "__z",
        "x/y",
    ]
    (out / "t-000000.tar").write_bytes(tar(*(member for name in names for member in pair(name))))
    (out / "index.json").unlink()
    return out


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_trains_through_all_of_them(everything, corpus, tmp_path, runs, only_writes, workers):
    out = tmp_path / "run"
    words = {"--preset": "tiny", "--data.train": everything, "--data.val": everything,
             "--model.tokenizer": corpus / "tokenizer",
             "--out": out, "--train.precision": "fp32", "--train.threads": 1, "--train.steps": STEPS,
             "--data.max-bad-rate": 0.9, "--data.workers": workers, "--data.augment": "crop"}  # fmt: skip
    with only_writes(out):
        status, said = runs("lit", [word for item in words.items() for word in item])
    assert status == 0, said
    assert "Traceback" not in said
    assert "Warning" not in said
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    counted = {k.removeprefix("data/"): v for k, v in rows[-2].items() if k.startswith("data/")}
    cut = counted.pop("truncated")
    assert counted.keys() == BAD.keys()
    index = ShardIndex.open(str(everything))
    epochs = STEPS * BATCH // index.samples
    assert epochs >= 1
    assert all(counted[reason] >= epochs * count for reason, count in BAD.items())
    assert cut >= 1, "the caption of 30,000 characters"
    with make_loader(str(everything), batch_size=BATCH, num_batches=STEPS, max_bad_rate=0.9) as loader:
        keys = {key for batch in loader for key in batch.keys}
    assert counted == loader.skipped, "the counts of the same stream, read without the recipe"
    assert {f"good{i:03d}" for i in range(GOOD)} <= keys, "no good sample is lost"
    assert np.isfinite([row["train/loss"] for row in rows if "train/loss" in row]).all()
    assert rows[-1]["eval/rsum"] > 0
    hub.load(out / "model")
    assert all(f": {reason}" in said for reason in BAD), "each is told of"


def test_embeddings_are_cached_through_all_of_them(everything, corpus, tmp_path, recipe, only_writes, capfd):
    cache = tmp_path / "cache"
    with only_writes(cache):
        recipe("embed_shards", "--preset", "tiny", "--model", corpus / "tower", "--data", everything,
               "--out", cache,
               "--threads", 1, "--precision", "fp32")  # fmt: skip
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    (line,) = [line for line in said.out.splitlines() if line.startswith("without a picture: ")]
    counts = {
        reason: int(n)
        for reason, n in re.findall(r"([a-z-]+) (\d+)", line.removeprefix("without a picture: "))
    }
    assert counts == {reason: n for reason, n in BAD.items() if reason.startswith("image-")}
    source, twin = ShardIndex.open(str(everything)), ShardIndex.open(str(cache))
    assert [s.samples for s in twin.shards] == [s.samples for s in source.shards]
    assert len({twin.key(i) for i in range(twin.samples)}) == twin.samples, (
        "odd and double keys got names of their own"
    )
    with read_all(str(everything), batch_size=9, fields=("image", "meta")) as loader:
        usable = {meta["__index__"] for batch in loader for meta in batch.meta}
    unread = {i for i in range(source.samples) if "json-unreadable" in _reason(source, i)}
    embedded = {i for i in range(twin.samples) if "npy" in twin.read(i)}
    assert embedded - unread == usable, "every picture that can be read has its embedding, at its own place"
    assert all(read_views(twin.read(i)["npy"]).shape == (1, 32) for i in embedded)


def _reason(index, i):
    for case in CASES:
        if index.key(i).endswith(case.key):
            return case.reason
    return ""


@pytest.mark.parametrize("kind", ["wordpiece", pytest.param("clip", marks=pytest.mark.slow), "sentencepiece"])
def test_no_tokenizer_sees_more_of_a_caption_than_it_can_need(kind, corpus, monkeypatch):
    if kind == "sentencepiece":
        from mmvit.data.text_sentencepiece import SentencePieceTokenizer, train_sentencepiece

        tokenizer = SentencePieceTokenizer(
            train_sentencepiece(["a red fox", "a blue bar"], 300)[0], context_length=8
        )
    elif kind == "clip":
        tokenizer = ClipTokenizer(context_length=8)
    else:
        tokenizer = WordPieceTokenizer(corpus / "vocab.txt", context_length=8)
    seen, inner = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda texts: seen.extend(map(len, texts)) or inner(texts))
    rng = np.random.default_rng(0)
    endless = "".join(rng.choice(list("abcdefgh"), 1_000_000))
    spaced = "a" + " " * 100_000 + "red" + "\n" * 100_000 + "circle"
    text = tokenizer([endless, "a red circle " * 80_000, spaced, "\ud83e half", "a red circle"])
    assert max(seen) <= CHARACTERS * 8
    assert [tokenizer([long]).truncated for long in (endless, "a red circle " * 80_000)] == [1, 1]
    assert text.ids[2].tolist() == text.ids[4].tolist(), "white space is not what is cut"
    assert text.ids[1].tolist() == tokenizer(["a red circle " * 9]).ids[0].tolist()
