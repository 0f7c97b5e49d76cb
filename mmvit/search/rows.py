"""The one way embeddings enter an index or a metric: finite, non-zero, float32, C-contiguous, of length one.

Letters: N rows, E embedding dim.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

Rows: TypeAlias = torch.Tensor | np.ndarray


def two_dimensional(x: Rows, what: str) -> Rows:
    """`x` as (N,E); a single (E,) vector becomes one row.

    Raises:
        ValueError: neither one nor two dimensions, or E = 0.
    """
    if x.ndim == 1:
        x = x[None]
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{what} must have shape (rows, dim), got {tuple(x.shape)}")
    return x


def unit_rows(x: Rows, what: str = "embeddings", offset: int = 0) -> np.ndarray:
    """(N,E) float32 C-contiguous rows of length one, normalised in float32.

    FAISS would store a NaN row and silently never return it, a zero row has no direction: both are refused.

    Args:
        x: (N,E), any floating type, torch (any device) or numpy.
        what: how the message names `x`.
        offset: added to row numbers in messages, for callers that work in blocks.

    Raises:
        ValueError: a row that is not finite or is zero (its number is named), or a wrong shape.
    """
    x = two_dimensional(x, what)
    array = (
        x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float32)
    )
    # The largest component first: a plain sum of squares under- or overflows for extreme rows.
    peak = np.abs(array).max(axis=1, keepdims=True)
    bad = ~np.isfinite(peak[:, 0])
    if bad.any():
        raise ValueError(
            f"{what}: row {offset + int(bad.argmax())} holds NaN or infinity ({int(bad.sum())} such rows)"
        )
    if (zero := peak[:, 0] == 0).any():
        raise ValueError(
            f"{what}: row {offset + int(zero.argmax())} is zero: it has no direction ({int(zero.sum())} such)"
        )
    array = array / peak
    array /= np.linalg.norm(array, axis=1, keepdims=True)
    return np.ascontiguousarray(array)
