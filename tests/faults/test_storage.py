"""Disks that fill up, folders that go away, workers that die: real runs, real refusals by the kernel."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from mmvit.data.write import ShardWriter
from mmvit.train.manifest import damage
from tests.faults.cases_words import GOOD
from tests.faults.running import assert_equal, fill, rows, the_error

MEGABYTES = "4m"
SHARDS = 200


def embedding(corpus):
    model = ("--model", corpus / "tower", "--precision", "fp32")
    return ("--preset", "tiny", *model, "--data", corpus / "train")


def use(disk):
    """Bytes in use on a disk."""
    room = os.statvfs(disk)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
def test_a_full_disk_during_a_save(file, words, whole, runs, tmp_path, told, only_writes):
    last = whole / "checkpoints" / "step-00000012"
    sizes = {f.name: f.stat().st_size for f in last.iterdir()}
    before = 0 if file == "model.safetensors" else sizes["model.safetensors"]
    small = sum(f.stat().st_size + 8192 for f in whole.iterdir() if f.is_file())
    assert sizes[file] > 2 * small, "the other files must not decide where it is full"
    disk = runs.disk(tmp_path / "disk", MEGABYTES)
    filler = fill(disk, leave=small + sum(sizes.values()) + before + sizes[file] // 2)
    with only_writes():
        error = the_error(*runs("lit", words(tmp_path / "disk" / "run")))
        assert re.search(
            "could not write .*step-00000008: No space left on device; earlier checkpoints are whole", error
        )
        kept = disk / "run" / "checkpoints"
        assert [p.name for p in kept.iterdir()] == ["step-00000004"]
        assert damage(kept / "step-00000004") is None
        filler.unlink()
        status, said = runs("lit", words(tmp_path / "disk" / "run"))
        assert status == 0
        assert "resumed from" in said
        assert_equal(disk / "run", whole)
    told(
        f"full disk while a checkpoint's {file} is written",
        "one error; with room again the command goes on",
        error,
    )


def test_a_full_disk_while_the_model_is_written(words, whole, runs, tmp_path, told, only_writes):
    disk = runs.disk(tmp_path / "disk", MEGABYTES)
    model = (whole / "model" / "model.safetensors").stat().st_size
    out = tmp_path / "disk" / "run"
    with only_writes():
        assert runs("lit", words(out))[0] == 0
        shutil.rmtree(disk / "run" / "model")
        filler = fill(disk, leave=model // 2)
        error = the_error(*runs("lit", words(out)))
        assert "could not write the model" in error
        assert sorted(p.name for p in (disk / "run").iterdir() if "model" in p.name) == []
        filler.unlink()
        assert runs("lit", words(out))[0] == 0
        assert_equal(disk / "run", whole)
    told("full disk while the model is written", "one error; with room again the command goes on", error)


def test_a_full_disk_while_rows_and_lines_are_written(words, runs, tmp_path, told, only_writes):
    disk, out = runs.disk(tmp_path / "disk", MEGABYTES), tmp_path / "disk" / "run"
    more = ("--train.steps", 150, "--train.save-every", 0)
    with only_writes():
        run = runs.start("lit", words(out, *more))
        runs.until(run, lambda: (disk / "run" / "metrics.jsonl").exists())
        filler = fill(disk)
        while use(disk) < os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize:  # the run writes meanwhile
            with filler.open("ab") as file:
                file.write(b"0")
        runs.until(run, lambda: "rows are kept" in run[1].read_text() and "log.txt" in run[1].read_text())
        filler.unlink()
        status, said = runs.finish(run)
        assert status == 0, said
        assert "Traceback" not in said
        assert said.count("rows are kept until there is room") == said.count("the run goes on") == 1
        assert [row["step"] for row in rows(disk / "run")] == list(range(1, 151)), "no row is lost"
    lines = [re.sub(r"^[\d:]+ ", "", line) for line in said.splitlines() if line.count("cannot write")]
    told(
        "full disk while metrics.jsonl and log.txt are written",
        "warned of, the run goes on; no row is lost",
        "; ".join(lines),
    )


def test_a_full_disk_at_the_start(words, runs, tmp_path, told, only_writes):
    disk = runs.disk(tmp_path / "disk", MEGABYTES)
    fill(disk)
    with only_writes():
        error = the_error(*runs("lit", words(tmp_path / "disk" / "run")))
    told("full disk when a run starts", "one error", error)


def test_a_disk_that_is_read_only(words, runs, tmp_path, told, only_writes):
    runs.disk(tmp_path / "disk", MEGABYTES)
    runs.make_read_only(tmp_path / "disk")
    with only_writes():
        error = the_error(*runs("lit", words(tmp_path / "disk" / "run")))
    told("run folder on a read-only disk", "one error", error)


def test_a_full_or_read_only_disk_under_shards_without_an_index(
    words, whole, corpus, runs, tmp_path, told, only_writes
):
    disk = runs.disk(tmp_path / "disk", MEGABYTES)
    for tar in (corpus / "train").glob("*.tar"):
        shutil.copy(tar, disk)
    filler = fill(disk)
    with only_writes(tmp_path / "full", tmp_path / "read-only"):
        for out in ("full", "read-only"):
            status, said = runs("lit", words(tmp_path / out, "--data.train", tmp_path / "disk"))
            assert status == 0, said
            assert "Traceback" not in said
            assert rows(tmp_path / out) == rows(whole)
            assert not [p.name for p in disk.iterdir() if p.suffix != ".tar" and p != filler]
            runs.make_read_only(tmp_path / "disk")
    told("full or read-only disk under shards without index.json", "used", "the index stays in memory")


def test_a_full_disk_while_embeddings_are_cached(corpus, runs, tmp_path, told, only_writes):
    flags = embedding(corpus)
    status, said = runs("embed_shards", (*flags, "--out", tmp_path / "whole", "--threads", 1))
    assert status == 0, said
    taken = sum(-(-f.stat().st_size // 4096) * 4096 for f in (tmp_path / "whole").iterdir())
    errors = []
    for part in (0.3, 0.97):
        at = tmp_path / f"disk{part}"
        disk = runs.disk(at, MEGABYTES)
        filler = fill(disk, leave=int(taken * part))
        with only_writes():
            command = (*flags, "--out", at, "--threads", 1)
            errors.append(the_error(*runs("embed_shards", command)))
            filler.unlink()
            status, said = runs("embed_shards", command)
            assert status == 0, said
            for file in (tmp_path / "whole").iterdir():
                assert file.read_bytes() == (disk / file.name).read_bytes(), file.name
            assert sorted(os.listdir(disk)) == sorted(os.listdir(tmp_path / "whole")), (
                "nothing half done is left"
            )
    assert all("No space left on device" in e for e in errors), errors
    told("full disk while embeddings are cached", "one error; with room again the command goes on", errors[0])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More shards than a reader keeps open, so that reading needs the folder all the time."""
    out = tmp_path_factory.mktemp("many") / "shards"
    with ShardWriter(out / "s", 1) as writer:
        for i in range(SHARDS):
            writer.write(f"k{i:03d}", {"png": GOOD, "txt": ("a red circle", "a blue bar")[i % 2]})
    return out


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_data_folder_that_vanishes_and_comes_back(workers, words, many, runs, tmp_path, told, only_writes):
    here, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(many, here)
    more = ("--data.train", here, "--train.steps", 20, "--data.workers", workers, "--train.save-every", 0)
    with only_writes(tmp_path / "calm", tmp_path / "run"):
        assert runs("lit", words(tmp_path / "calm", *more))[0] == 0
        run = runs.start("lit", words(tmp_path / "run", *more))
        runs.until(run, lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        here.rename(away)
        runs.until(run, lambda: "trying again" in run[1].read_text())
        away.rename(here)
        status, said = runs.finish(run)
        assert status == 0, said
        assert "Traceback" not in said
        assert rows(tmp_path / "run") == rows(tmp_path / "calm"), "the same samples in the same order"
    line = next(line for line in said.splitlines() if "trying again" in line)
    line = re.sub(r"^[\d:]+ |s-\d+\.tar", lambda m: "s-000000.tar" if "tar" in m[0] else "", line)
    line = re.sub(r" in [\d.]+ s", " in … s", line)
    told("data folder that vanishes and comes back", "waited for, up to a minute; the same losses", line)


@pytest.mark.slow
def test_a_data_folder_that_vanishes_for_good(words, many, runs, tmp_path, told, only_writes):
    here, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(many, here)
    more = words(tmp_path / "run", "--data.train", here, "--train.steps", 20)
    with only_writes(tmp_path / "run"):
        run = runs.start("lit", more, setup=[("patience", 0.6)])
        runs.until(run, lambda: (tmp_path / "run" / "checkpoints" / "step-00000004").exists())
        here.rename(away)
        error = the_error(*runs.finish(run))
        away.rename(here)
        status, said = runs("lit", more)
        assert status == 0
        assert "resumed from" in said
    told("data folder that vanishes for good",
         "one error after a minute; when it is back the command goes on",
         re.sub(r"s-\d+\.tar", "s-000000.tar", error))  # fmt: skip


def test_shards_that_may_not_be_read(words, many, runs, tmp_path, told, only_writes):
    shutil.copytree(many, tmp_path / "data")
    for tar in (tmp_path / "data").glob("*.tar"):
        tar.chmod(0)
    command = words(tmp_path / "run", "--data.train", tmp_path / "data")
    with only_writes(tmp_path / "run"):
        error = the_error(*runs("lit", command, setup=[("capabilities", True), ("patience", 0.1)]))
    told(
        "shards that may not be read",
        "one error after a minute",
        re.sub(r"s-\d+\.tar", "s-000000.tar", error),
    )


@pytest.mark.parametrize("room", ["100k", "200k"])
def test_shared_memory_that_is_full(room, words, whole, runs, tmp_path, told, only_writes):
    """A batch takes 49 kB: 100 kB hold one, 200 kB hold what is in use but not all that workers prefetch."""
    shared = Path("/dev/shm")
    command = words(tmp_path / "run", "--data.workers", 1)
    runs.disk(shared, room)
    try:
        with only_writes(tmp_path / "run"):
            run = runs.start("lit", command, setup=[("patience", 0.4 if room == "100k" else 30.0)])
            status, said = runs.finish(run)
    finally:
        runs.umount(shared)
    if room == "200k":
        assert status == 0, said
        assert rows(tmp_path / "run") == rows(whole)
        told("/dev/shm with room for few batches", "used", "workers wait for batches to be used up")
        return
    error = the_error(status, said)
    assert "no room for a batch" in error
    assert not workers_of(run[0])
    told("/dev/shm full", "one error after half a minute", re.sub(r"[\d.]+ MB", "N MB", error))


def died(error):
    """The error without PyTorch's words, which depend on the moment."""
    assert error.startswith("a data worker died ("), error
    return re.sub(r"\(.*\)", "(…)", error)


def workers_of(pid):
    """Processes whose parent is `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_data_worker_that_is_killed(words, runs, tmp_path, told, only_writes):
    more = ("--train.steps", 24, "--data.workers", 2, "--train.save-every", 6)
    with only_writes(tmp_path / "calm", tmp_path / "run"):
        assert runs("lit", words(tmp_path / "calm", *more))[0] == 0
        run = runs.start("lit", words(tmp_path / "run", *more))
        runs.until(run, lambda: (tmp_path / "run" / "checkpoints" / "step-00000006").exists())
        victims = workers_of(run[0])
        assert len(victims) == 2
        os.kill(victims[0], signal.SIGKILL)
        error = the_error(*runs.finish(run))
        assert not workers_of(run[0])
        status, said = runs("lit", words(tmp_path / "run", *more))
        assert status == 0
        assert "resumed from" in said
        assert_equal(tmp_path / "run", tmp_path / "calm")
    told("data worker killed in a run", "one error; the same command goes on, the same losses", died(error))


@pytest.mark.slow
def test_a_worker_that_is_killed_while_embeddings_are_cached(corpus, runs, tmp_path, told, only_writes):
    flags = (*embedding(corpus), "--threads", 1)
    command = (*flags, "--out", tmp_path / "cache", "--workers", 1)
    with only_writes(tmp_path / "cache", tmp_path / "calm"):
        run = runs.start("embed_shards", command)
        while True:
            runs.until(run, lambda: workers_of(run[0]))
            try:
                os.kill(workers_of(run[0])[0], signal.SIGKILL)
                break
            except (ProcessLookupError, IndexError):
                continue  # it was done already; the next shard gets a new one
        error = the_error(*runs.finish(run))
        assert runs("embed_shards", command)[0] == 0
        assert runs("embed_shards", (*flags, "--out", tmp_path / "calm"))[0] == 0
        for file in (tmp_path / "calm").iterdir():
            assert file.read_bytes() == (tmp_path / "cache" / file.name).read_bytes(), file.name
    told("worker killed while embeddings are cached", "one error; the same command goes on", died(error))
