"""How the project talks to a user who made a mistake: one clear line, no traceback from inside a library."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NoReturn

# How gloo and NCCL say that the process at the other end is gone.
_PEER_GONE = re.compile(r"gloo.*pair\.cc.*(reset|closed|Broken pipe)|ncclRemoteError", re.DOTALL)


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; the message names value, expectation and remedy."""


def need(module: str, extra: str | None = None) -> ModuleType:
    """The imported `module`, for the one file that needs a heavy or optional library.

    Raises:
        UserError: it is not installed; the message names the pip extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        target = f"mmvit[{extra}]" if extra else module.split(".")[0]
        raise UserError(f"this needs the package '{module}': pip install '{target}'") from error


def refusal(error: Exception) -> str:
    """Why the system refused a file, in its own words, on one line; safetensors hides them in its text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r"os error (\d+)", str(error))
    return os.strerror(int(found[1])) if found else (str(error) or type(error).__name__).splitlines()[0][:200]


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint for an unknown name: the closest valid ones, or all of them when none is close."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"valid: {', '.join(options)}"


def one_line(main: Callable[..., Any]) -> Callable[..., Any]:
    """`main`, with a user's error printed as `error: …` on stderr and exit code 2 instead of a traceback.

    A rank whose peer has ended says so in one line too and ends with 1: read the peer's line. Whatever a rank
    fails of, it ends at once, so that the others can notice.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            if _is_rank():
                _end_at_once(2)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            if _is_rank():
                _end_at_once(130)
            raise SystemExit(130) from None
        except Exception as error:
            if isinstance(error, RuntimeError) and _PEER_GONE.search(str(error)):
                said = str(error).strip().splitlines()[0].split("] ", 1)[-1]
                print(
                    f"error: another process of this run ended; its message says why ({said})",
                    file=sys.stderr,
                )
                _end_at_once(1)
            if _is_rank():
                traceback.print_exc()
                _end_at_once(1)
            raise

    return wrapped


def _is_rank() -> bool:
    """Whether a launcher has started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _end_at_once(status: int) -> NoReturn:
    """Nothing; ends the process while the frames that failed are still there.

    With the last of them would go the process group. Gloo's threads can then need the interpreter's lock, to
    let go of their tensors, while the interpreter waits for them to end, or for a peer for half an hour: this
    rank would never end, and the others wait for it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
