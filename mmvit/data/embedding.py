"""A `.npy` member -> cached image features: (D,), or (V,D) for V views of the picture."""

from __future__ import annotations

import ast
import functools
import io
import random

import numpy as np
import torch
from torch import Tensor

from mmvit.data.pixels import BadSample

EXTENSION = "npy"


def read_views(data: bytes, dim: int | None = None) -> np.ndarray:
    """(V,D) cached features in the float type they were written in.

    Args:
        data: content of a .npy file.
        dim: D where it is known.

    Raises:
        BadSample: embedding-unreadable, embedding-shape or embedding-dtype.
    """
    try:
        array = _read_npy(data)
    except Exception as error:  # numpy raises many kinds on damaged files
        raise BadSample("embedding-unreadable", str(error)[:80]) from None
    if array.ndim not in (1, 2) or array.size == 0:
        raise BadSample("embedding-shape", f"{array.shape}, expected (D,) or (V,D)")
    if array.dtype.kind != "f":
        raise BadSample("embedding-dtype", f"{array.dtype}, expected a float type")
    if dim is not None and array.shape[-1] != dim:
        raise BadSample("embedding-shape", f"{array.shape}, expected D = {dim}")
    return array.reshape(-1, array.shape[-1])


def pick_view(data: bytes, dim: int | None, rng: random.Random | None) -> Tensor:
    """(D,) float32: a view drawn by `rng`, the first one without.

    Raises:
        BadSample: as `read_views`, or embedding-not-finite.
    """
    views = read_views(data, dim)
    view = views[rng.randrange(len(views)) if rng is not None and len(views) > 1 else 0]
    with np.errstate(over="ignore"):  # a float64 beyond float32 is found on the next line
        view = view.astype(np.float32)
    if not np.isfinite(view).all():
        raise BadSample("embedding-not-finite")
    return torch.from_numpy(view)


def _read_npy(data: bytes) -> np.ndarray:
    """The array; the header, equal in all samples of a cache, is parsed once instead of a million times."""
    if data[:8] != b"\x93NUMPY\x01\x00":
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError(f"{type(found).__name__}, expected one array")
        return found
    end = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _header(data[10:end])
    return np.frombuffer(data, dtype, count=int(np.prod(shape)), offset=end).reshape(shape)


@functools.lru_cache(maxsize=64)
def _header(text: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    fields = ast.literal_eval(text.decode("latin1"))
    dtype = np.dtype(fields["descr"])
    if fields["fortran_order"] or dtype.hasobject:
        raise ValueError(f"{dtype} in {'Fortran' if fields['fortran_order'] else 'C'} order is not supported")
    return dtype, fields["shape"]
