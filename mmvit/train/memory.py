"""Memory that a CPU run keeps from step to step, and the most it ever held.

By default the C library gives every large tensor back to the system as soon as it is freed, and each new one
costs a page fault per 4 KiB, tens of thousands a step (`scripts/bench.py --only micro`).
"""

from __future__ import annotations

import ctypes
import resource
import sys

import torch

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Whether freed memory now stays in this process (and those it forks) for the next step's tensors.

    The peak does not grow, but what a run once held it holds until its end. False where the C library is not
    glibc; nothing is lost but speed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in wanted])


def peak_memory() -> float:
    """Peak memory of this process in GiB: of the GPU when one is in use, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    scale = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
