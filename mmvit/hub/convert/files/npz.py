"""Reading `.npz` archives of plain arrays as float32 tensors; never a pickled object.

Each member's header is compared with the member's size in the archive before an array is made: a few bytes
can claim terabytes, and a small archive can unfold to any size.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mmvit.errors import refusal

# Weights hardly compress. An archive may still unfold to this many times its size, as zeros do, plus a bit.
_UNFOLDS = 20
_FREE = 1 << 26


def read_npz(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], list[str]]:
    """Name -> float32 tensor (whole numbers stay whole) of the members wanted, and the names of all others.

    bfloat16, which numpy stores as two bytes without a type, is understood.

    Args:
        path: the archive.
        wanted: whether a name is to be read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no archive of plain arrays, damaged, or claiming more than it holds.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at '{path}'" + (": it is a folder" if path.is_dir() else ""))
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            read = {name: _array(archive, info) for name, info in members.items() if wanted(name)}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        size = path.stat().st_size
        why = refusal(error)
        raise ValueError(f"'{path}' ({size:,} bytes) is damaged or no .npz: {why}; copy it again") from None
    except ValueError as error:
        raise ValueError(f"'{path}' is not a file of plain arrays and is not opened: {error}") from None
    return read, [name for name in members if name not in read]


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Array name -> its place; the whole is of a size that the archive can hold."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in members:
            raise ValueError(f"it has a member '{info.filename[:100]}', expected arrays with a name each")
        members[name] = info
    if not members:
        raise ValueError("it is empty")
    total, size = sum(info.file_size for info in members.values()), path.stat().st_size
    if total > _UNFOLDS * size + _FREE:
        raise ValueError(f"its {size:,} bytes would unfold to {total:,}")
    return members


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """One member as a tensor, its header checked first."""
    with archive.open(info) as file:
        shape, dtype, offset = _header(file, info)
    bare = dtype.kind == "V" and dtype.itemsize == 2 and dtype.fields is None and dtype.subdtype is None
    if not bare and dtype.kind not in "fiub":
        what = "Python objects" if dtype.hasobject else f"'{dtype.str}'"
        raise ValueError(f"'{info.filename[:100]}' holds {what}, expected numbers")
    need = math.prod(shape) * dtype.itemsize
    has = info.file_size - offset
    if need != has:
        raise ValueError(f"'{info.filename[:100]}' claims {need:,} bytes of {shape[:8]} and has {has:,}")
    with archive.open(info) as file:
        value = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # the end, where the checksum is compared
    return _tensor(value)


def _header(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and length of the header of an .npy stream."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("a shape that is none")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        why = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(f"'{info.filename[:100]}' is no array: {why}") from None
    return shape, dtype, file.tell()


def _tensor(value: np.ndarray) -> Tensor:
    if value.dtype.kind == "V":
        return torch.from_numpy(np.ascontiguousarray(value).view(np.int16)).view(torch.bfloat16).float()
    if value.dtype.kind == "f":
        # longdouble and big-endian arrays come out as plain float32 as well
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    native = value.astype(value.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(native))
