"""Workers that die, hang and are signalled at chosen moments: one error or the same items, never a wait."""

import itertools
import logging
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset

from mmvit.data import workers
from mmvit.errors import UserError
from mmvit.train.signals import StopRequest


class Squares:
    """Item i is i * i, as a tensor; before item `at`, something happens."""

    def __init__(self, at=None, happens=None):
        self.at, self.happens = at, happens

    def __getitem__(self, i):
        if i == self.at:
            self.happens()
        return torch.tensor(i * i)


def same(item):
    return item


def strike(name):
    return lambda: os.kill(os.getpid(), name)


def ahead(dataset, indices=range(6), count=1, **options):
    options = {"option": "--n", "finish": same, "start_method": "fork", **options}
    return workers.read_ahead(dataset, indices, count, **options)


def numbers(items):
    return [int(item) for item in items]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_items_come_in_order_and_are_finished_where_they_were_made(count):
    found = list(ahead(Squares(), range(7), count, finish=lambda item: (int(item), os.getpid())))
    assert [item for item, _ in found] == [i * i for i in range(7)]
    makers = [pid for _, pid in found]
    assert len(set(makers)) == max(1, count)
    assert (os.getpid() in makers) == (count == 0)
    assert all(makers[i] == makers[i % max(1, count)] for i in range(7)), "workers take turns"


class Copies(IterableDataset):
    """Worker w of n gives w, w + n, … below 5: copies of different lengths."""

    def __iter__(self):
        me = workers.get_worker_info()
        return iter(range(me.id if me else 0, 5, me.count if me else 1))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_iterables_end_when_all_copies_have_ended(count):
    assert list(ahead(Copies(), None, count)) == list(range(5))
    assert workers.get_worker_info() is None


def half_an_answer(pipe, _):
    """What a worker leaves behind that is killed while it writes: a length, and less than that."""
    os.write(pipe.fileno(), struct.pack("!i", 100_000) + b"x" * 50)
    os.kill(os.getpid(), signal.SIGKILL)


def an_answer_but_no_tensor(pipe, answer):
    pipe.send(answer)
    os.kill(os.getpid(), signal.SIGKILL)


def no_answer(pipe, _):
    os._exit(3)


@pytest.mark.parametrize(
    ("name", "moment", "died"),
    [
        ("_set_up", strike(signal.SIGKILL), "killed by SIGKILL"),
        ("_send", half_an_answer, "killed by SIGKILL"),
        ("_send", an_answer_but_no_tensor, "killed by SIGKILL"),
        ("_send", no_answer, "exit status 3"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_dies_at_any_moment_is_one_error(monkeypatch, count, name, moment, died):
    monkeypatch.setattr(workers, name, moment)
    items = ahead(Squares(), count=count)
    with pytest.raises(
        UserError, match=rf"a data worker died \({died}\): .* fewer --n, or 0 to see the cause"
    ):
        list(items)
    assert not any(process.is_alive() for process in items.processes)


def test_a_worker_that_dies_between_two_items_is_noticed_at_its_turn():
    items = ahead(Squares(at=3, happens=strike(signal.SIGKILL)), count=2, prefetch=1)
    assert numbers(itertools.islice(items, 3)) == [0, 1, 4]
    with pytest.raises(UserError, match="died"):
        next(items)
    items.close()  # once more does nothing
    assert list(items) == []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_hangs_is_killed_when_it_is_closed(monkeypatch, caplog):
    monkeypatch.setattr(workers, "END_PATIENCE", 0.3)
    monkeypatch.setattr(workers, "SILENCE", 0.05)
    items = ahead(Squares(at=1, happens=lambda: time.sleep(0.5)))
    with caplog.at_level(logging.WARNING):
        assert numbers(itertools.islice(items, 3)) == [0, 1, 4]
    assert f"no answer from data worker 0 (process {items.processes[0].pid})" in caplog.text, (
        "slow is no error"
    )
    deaf = ahead(Squares(at=0, happens=lambda: time.sleep(1000)))
    deaf.close()
    assert [process.exitcode for process in deaf.processes] == [-signal.SIGKILL]


def test_the_first_workers_end_by_themselves_though_later_ones_live():
    """A forked worker inherits the connections of those before it and must not hold them open."""
    first, second = ahead(Squares(), itertools.count(), 2), ahead(Squares(), itertools.count(), 1)
    assert (next(first), next(second)) == (0, 0)
    first.close()
    assert [process.exitcode for process in first.processes] == [0, 0]
    assert next(second) == 1
    second.close()
    assert [process.exitcode for process in second.processes] == [0]


def test_a_sigterm_at_any_moment_costs_nothing(monkeypatch):
    """To the group of a run that listens: as a worker starts, computes, and sends."""
    set_up, send = workers._set_up, workers._send
    for name, moment in [
        ("_set_up", lambda: (os.kill(os.getpid(), signal.SIGTERM), set_up())),  # before its own handlers
        ("_send", lambda *words: (os.kill(os.getpid(), signal.SIGTERM), send(*words))),
        (None, None),
    ]:
        with monkeypatch.context() as patch:
            dataset = Squares()
            if name == "_send":
                calls = iter([moment])
                patch.setattr(workers, name, lambda *words, calls=calls: next(calls, send)(*words))
            elif name:
                patch.setattr(workers, name, moment)
            else:
                dataset = Squares(at=2, happens=strike(signal.SIGTERM))
            stop = StopRequest().install()
            try:
                assert numbers(ahead(dataset)) == [0, 1, 4, 9, 16, 25], name
            finally:
                stop.remove()
            assert not stop()


def test_a_second_sigterm_ends_a_worker():
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(UserError, match="killed by SIGTERM"):
        list(ahead(Squares(at=2, happens=twice)))


def test_signals_come_through_again_after_the_start():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    items = ahead(Squares())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    items.close()


class Unsendable:
    def __getitem__(self, i):
        return lambda: i


class Faulty:
    def __getitem__(self, i):
        raise {0: UserError("a bad day"), 1: KeyError("no such thing")}[i]


def test_what_a_worker_cannot_do_comes_back_as_an_error(monkeypatch):
    with pytest.raises(RuntimeError, match=r"a data worker failed:\n(.|\n)*pickle"):
        list(ahead(Unsendable()))
    with pytest.raises(UserError, match="^a bad day$"):
        list(ahead(Faulty()))
    with pytest.raises(RuntimeError, match=r"worker failed:\n(.|\n)*in __getitem__(.|\n)*KeyError: 'no such"):
        list(ahead(Faulty(), [1]))
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: "/tmp/" + 100 * "x")
    with pytest.raises(UserError, match="cannot hand over what it made: AF_UNIX path too long; .*TMPDIR"):
        list(ahead(Squares()))


def test_a_system_without_room_for_workers_is_one_error(monkeypatch):
    def full(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("multiprocessing.context.BaseContext.Pipe", full)
    with pytest.raises(UserError, match="cannot start: Too many open files; .* or use --n 0"):
        ahead(Squares())


PROGRAM = """
import torch
from mmvit.data.workers import read_ahead
def same(item): return item
class Ones:
    def __getitem__(self, i): return torch.ones(1)
def main():
    items = read_ahead(Ones(), range(9), 1, option="--n", finish=same, start_method="fork")
    next(items)
    print(items.processes[0].pid, flush=True)
    raise ValueError("an end")
main()
"""


def gone(pid):
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_that_fails_ends_with_its_workers(root):
    """The traceback keeps the iterator; Python waits for child processes, which do not heed its signal."""
    line, environment = [sys.executable, "-c", PROGRAM], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: an end")
    gone(int(done.stdout))


def test_workers_notice_that_their_program_was_killed(tmp_path):
    pid = os.fork()
    if pid == 0:
        try:
            items = ahead(Squares(), itertools.count(), 2)
            next(items)
            (tmp_path / "pids").write_text(" ".join(str(process.pid) for process in items.processes))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found = (tmp_path / "pids").read_text().split()
    assert len(found) == 2
    for worker in found:
        gone(int(worker))
