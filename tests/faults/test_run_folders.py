"""Run folders that are damaged or in the way: real runs."""

import json
import re
import shutil

import pytest

from tests.faults.running import assert_equal, rows, the_error


@pytest.fixture(scope="module")
def broken_off(words, whole, runs, tmp_path_factory):
    """A run folder with checkpoints 4 and 8."""
    out = tmp_path_factory.mktemp("broken") / "run"
    status, said = runs("lit", words(out, "--train.keep", 3))
    assert status == 0, said
    for folder in (out / "model", out / "checkpoints" / "step-00000012"):
        shutil.rmtree(folder)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
    assert rows(out) == rows(whole)
    return out


@pytest.fixture
def started(broken_off, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(broken_off, out)
    return out


def is_a_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")


def is_a_folder(path):
    path.mkdir(parents=True)


def slow(fault):
    return pytest.param(fault, marks=pytest.mark.slow)


BLOCKED = {
    "--out is a file": (".", is_a_file, "--out .* is a file"),
    "a file on the way to --out": ("..", is_a_file, "cannot be written: Not a directory"),
    "config.yaml is a folder": ("config.yaml", is_a_folder, "cannot be written: Is a directory"),
    "env.json is a folder": ("env.json", is_a_folder, "cannot be written: Is a directory"),
    "log.txt is a folder": ("log.txt", is_a_folder, r"cannot write .*log\.txt: Is a directory"),
    "metrics.jsonl is a folder": (
        "metrics.jsonl",
        is_a_folder,
        r"cannot write .*metrics\.jsonl: Is a directory",
    ),
    "checkpoints is a file": ("checkpoints", is_a_file, "could not write .*step-00000004: "),
    "model is another program's folder": (
        "model/notes",
        is_a_file,
        "model.* is no saved model: choose another folder",
    ),
}


@pytest.mark.parametrize("fault", BLOCKED)
def test_something_is_in_the_way(fault, words, runs, tmp_path, told, only_writes):
    name, block, message = BLOCKED[fault]
    out = tmp_path / "way" / "run"
    block(out.parent if name == ".." else out / name)
    with only_writes(out):
        error = the_error(*runs("lit", words(out)))
        assert re.search(message, error), error
        if block is is_a_file:
            assert (out.parent if name == ".." else out / name).read_text() == "in the way", (
                "it is still there"
            )
    told(fault, "one error", error)


def test_a_run_folder_that_may_not_be_written(words, runs, tmp_path, told, only_writes):
    (tmp_path / "run").mkdir(mode=0o555)
    with only_writes():
        error = the_error(*runs("lit", words(tmp_path / "run"), setup=[("capabilities", True)]))
    told("--out may not be written", "one error", error)


def half_a_row(path):
    text = path.read_text()
    path.write_text(text[: len(text) - 40])


def garbage(path):
    path.write_bytes(
        path.read_bytes() + b'\xff\xfe\x00garbage\n[1]\n"x"\n{"step": "many"}\n{"step": null}\n' + b"[" * 5000
    )


def more_rows(path):
    path.write_text(path.read_text() + json.dumps({"step": 99, "samples_seen": 1, "train/loss": 7}) + "\n")


TORN = {
    "metrics.jsonl with half a last row": (
        half_a_row,
        "the row is written again where the run comes by, else dropped",
    ),
    "metrics.jsonl with garbage": (garbage, "rows stay, what is no row is dropped"),
    "metrics.jsonl with rows behind the checkpoint": (more_rows, "dropped: the run writes them again"),
}


@pytest.mark.parametrize("fault", [f if "garbage" in f else slow(f) for f in TORN])
def test_rows_that_are_torn(fault, words, whole, started, runs, told, only_writes):
    harm, became = TORN[fault]
    harm(started / "metrics.jsonl")
    with only_writes(started):
        status, said = runs("lit", words(started))
        assert status == 0, said
        assert "Traceback" not in said
        assert_equal(started, whole)
    told(fault, "used", became)


def said_of(line):
    """A line of the log without its time and without sizes, which differ from machine to machine."""
    return re.sub(r"\d{5,} bytes instead of \d{5,}", "fewer bytes", re.sub(r"^[\d:]+ ", "", line))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "checkpoint with a file cut off": lambda c: cut(c / "state.pt"),
    "checkpoint with a flipped bit": lambda c: flip(c / "model.safetensors"),
    "checkpoint without a file": lambda c: (c / "state.pt").unlink(),
    "checkpoint with an empty manifest": lambda c: (c / "manifest.json").write_text(""),
    "checkpoint whose manifest is a list": lambda c: (c / "manifest.json").write_text("[]"),
    "checkpoint whose manifest is 100,000 levels deep": lambda c: (c / "manifest.json").write_text(
        "[" * 100_000
    ),
    "checkpoint that is a file": lambda c: (shutil.rmtree(c), c.write_text("x")),
}


@pytest.mark.parametrize("fault", [f if "is a" in f or "bit" in f else slow(f) for f in DAMAGE])
def test_a_damaged_checkpoint(fault, words, whole, started, runs, told, only_writes):
    DAMAGE[fault](started / "checkpoints" / "step-00000008")
    with only_writes(started):
        status, said = runs("lit", words(started))
        assert status == 0, said
        assert "Traceback" not in said
        assert "resumed from" in said
        assert "step-00000004: step 4" in said
        assert_equal(started, whole)
        assert [p.name for p in (started / "checkpoints").iterdir()] == ["step-00000012"]
    line = next(line for line in said.splitlines() if "is damaged" in line)
    told(fault, "warned of; the one before it is used", said_of(line))


@pytest.mark.slow
def test_no_whole_checkpoint_is_left(words, whole, started, runs, told, only_writes):
    for checkpoint in (started / "checkpoints").iterdir():
        cut(checkpoint / "state.pt")
    with only_writes(started):
        status, said = runs("lit", words(started))
        assert status == 0, said
        assert said.count("is damaged") == 2
        assert_equal(started, whole)
    lines = [said_of(line) for line in said.splitlines() if "is damaged" in line]
    told("all checkpoints damaged", "warned of; the run starts anew", "; ".join(lines))


@pytest.mark.slow
def test_a_run_that_goes_back(words, whole, started, runs, told, only_writes):
    """--resume FOLDER of an older checkpoint: the later ones are of a run that is no more."""
    back = words(started, "--resume", started / "checkpoints" / "step-00000004", "--train.save-every", 3)
    with only_writes(started):
        status, said = runs("lit", back)
        assert status == 0, said
        assert_equal(started, whole)
    line = next(line for line in said.splitlines() if "went back" in line)
    told("--resume names an older checkpoint", "the later ones are dropped", said_of(line))
