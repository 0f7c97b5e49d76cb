"""Reading CTranslate2's `model.bin` as float32 tensors, without trusting what it says about its sizes.

Format, little-endian: version; name of the architecture; its revision; the variables, each with name, shape,
type and bytes; the names that stand for a variable of another name. Strings carry their length and end in a
zero byte.
Source: CTranslate2 (github.com/OpenNMT/CTranslate2), python/ctranslate2/specs/model_spec.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mmvit.errors import refusal

VERSION = 6
# By the number that stands for them in the file.
_TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_RANK = 8
_SCALE = "_scale"


@dataclass
class Variables:
    """What a file held.

    Attributes:
        architecture: its name, e.g. "WhisperSpec".
        tensors: name -> tensor of the variables wanted: float32, or whole numbers as they were.
        others: names of all other variables.
    """

    architecture: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_ctranslate2(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Variables:
    """The variables wanted; weights in 8 or 16 bit integers are multiplied out by their scales.

    Args:
        path: the file; little but the variables wanted is held in memory.
        wanted: whether a name is to be read; a weight's scale goes with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format or version, a file that is cut short or claims more than it holds.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at '{path}'" + (": it is a folder" if path.is_dir() else ""))
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            found = _read(_Reader(file, size), wanted)
        return _multiplied(found, wanted)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"'{path}' ({size:,} bytes) is damaged or not CTranslate2's: {refusal(error)}; copy it again"
        ) from None


class _Reader:
    """Numbers, strings and bytes from a file, never beyond its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, which are `what`."""
        self._spend(count, what)
        return self.file.read(count)

    def skip(self, count: int, what: str) -> None:
        """Nothing; goes on behind the next `count` bytes."""
        self._spend(count, what)
        self.file.seek(count, 1)

    def number(self, form: str, what: str) -> int:
        """The next unsigned number: "B", "H" or "I" as `struct` names them."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))[0]

    def name(self, what: str) -> str:
        """The next string."""
        raw = self.take(self.number("H", what), what)
        if not raw.endswith(b"\0") or b"\0" in raw[:-1]:
            raise ValueError(f"{what} is no string that ends in a zero byte")
        if not (text := raw[:-1].decode("utf-8", "backslashreplace")).isprintable():
            raise ValueError(f"{what} is no printable string")
        return text

    def _spend(self, count: int, what: str) -> None:
        if count > self.left:
            raise ValueError(f"{what} takes {count:,} bytes, and {self.left:,} are left")
        self.left -= count


def _read(reader: _Reader, wanted: Callable[[str], bool]) -> Variables:
    """All variables as they are stored."""
    if (version := reader.number("I", "the version")) != VERSION:
        raise ValueError(f"its version is {version}, expected {VERSION}")
    found = Variables(reader.name("the architecture"))
    reader.number("I", "the revision")
    seen: set[str] = set()
    for i in range(reader.number("I", "the number of variables")):
        name = reader.name(f"the name of variable {i}")
        if name in seen:
            raise ValueError(f"'{name[:100]}' is there twice")
        seen.add(name)
        shape, kind, count = _described(reader, f"'{name[:100]}'")
        if not wanted(name.removesuffix(_SCALE)):
            reader.skip(count, f"'{name[:100]}'")
            found.others.append(name)
            continue
        raw = bytearray(reader.take(count, f"'{name[:100]}'"))
        value = torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)
        found.tensors[name] = value.reshape(shape)
    for i in range(reader.number("I", "the number of aliases")):
        alias, target = (reader.name(f"alias {i}") for _ in range(2))
        if wanted(alias) and target in found.tensors:
            found.tensors[alias] = found.tensors[target]
    if reader.left:
        raise ValueError(f"{reader.left:,} bytes follow its end")
    return found


def _described(reader: _Reader, what: str) -> tuple[tuple[int, ...], torch.dtype, int]:
    """(shape, type, bytes) of the next variable; they agree with each other."""
    rank = reader.number("B", what)
    if rank > _RANK:
        raise ValueError(f"{what} has {rank} axes, expected at most {_RANK}")
    shape = tuple(reader.number("I", what) for _ in range(rank))
    kind = reader.number("B", what)
    if kind >= len(_TYPES):
        raise ValueError(f"{what} is of type {kind}, expected 0..{len(_TYPES) - 1}")
    count, has = math.prod(shape) * _TYPES[kind].itemsize, reader.number("I", what)
    if count != has:
        raise ValueError(f"{what} claims {count:,} bytes of {shape} and has {has:,}")
    return shape, _TYPES[kind], count


def _multiplied(found: Variables, wanted: Callable[[str], bool]) -> Variables:
    """Floating variables as float32, quantised ones divided by their scales, which are no variables then."""
    scales = {
        n: v
        for n, v in found.tensors.items()
        if n.removesuffix(_SCALE) in found.tensors and n.endswith(_SCALE)
    }
    tensors = {}
    for name, value in found.tensors.items():
        if name in scales:
            continue
        scale = scales.get(f"{name}{_SCALE}")
        if scale is not None:
            # One scale for all, or one for each row of the second axis, over which the greatest was sought.
            scale = scale.float() if scale.ndim == 0 else scale.float().unsqueeze(1)
            if scale.ndim not in (0, value.ndim) or any(
                s not in (1, n) for s, n in zip(scale.shape, value.shape, strict=scale.ndim > 0)
            ):
                raise ValueError(f"the scale of '{name[:100]}' {tuple(value.shape)} is {tuple(scale.shape)}")
            if not scale.isfinite().all() or (scale <= 0).any():
                raise ValueError(f"the scale of '{name[:100]}' is not positive")
            value = value.float() / scale
        elif name.endswith("weight") and not value.is_floating_point():
            raise ValueError(f"'{name[:100]}' is of whole numbers and has no scale")
        tensors[name] = value.float() if value.is_floating_point() else value
    return Variables(found.architecture, tensors, found.others)
