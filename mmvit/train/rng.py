"""The state of every random number generator a step may draw from, to replay a forward or resume a run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and torch (CPU and GPUs)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """State of torch's generators: {"torch": (N,) uint8[, "cuda": (N,) uint8 of the current device]}."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore(state: dict[str, Any]) -> None:
    """Puts torch's generators back to a captured state."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():  # a run may go on where there is no GPU
        torch.cuda.set_rng_state(state["cuda"])


def capture_all() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators as plain data and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        **capture(),
        "python": [version, list(internal), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def restore_all(state: dict[str, Any]) -> None:
    """Puts all generators back to what `capture_all` returned."""
    restore(state)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
