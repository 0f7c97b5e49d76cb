"""A rank that fails ends at once, whatever its frames still hold; the others could not go on without it."""

import os
import time

import pytest

from mmvit.errors import UserError, one_line


class Endless:
    """Like a process group whose threads wait for the lock of an interpreter that waits for them."""

    def __del__(self):
        time.sleep(1000)


def failing(error):
    held = [Endless()]
    raise error
    return held


def status_of(error, said):
    """Exit status of a forked rank that fails with `error`."""
    pid = os.fork()
    if pid == 0:
        try:
            sink = os.open(said, os.O_WRONLY | os.O_CREAT)
            os.dup2(sink, 2)
            os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
            with open(2, "w", closefd=False) as stderr:
                pytest.MonkeyPatch().setattr("sys.stderr", stderr)
                one_line(failing)(error)
        finally:
            os._exit(77)
    end = time.monotonic() + 60
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            pytest.fail("the rank does not end")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a bad day"), 2, "error: a bad day"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("a mistake of ours"), 1, "ValueError: a mistake of ours"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed"),
            1,
            "error: another process of this",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_rank_that_fails_ends_at_once(tmp_path, error, status, line):
    assert status_of(error, tmp_path / "said") == status
    said = (tmp_path / "said").read_text().splitlines()
    assert said[-1].startswith(line)
    assert (len(said) > 1) == isinstance(error, ValueError), "only our own mistakes have a traceback"


def test_a_program_that_is_no_rank_ends_as_programs_do(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)

    def fail(error):
        raise error

    with pytest.raises(SystemExit) as end:
        one_line(fail)(UserError("a bad day"))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a bad day\n"
    with pytest.raises(ValueError, match="a mistake of ours"):
        one_line(fail)(ValueError("a mistake of ours"))
