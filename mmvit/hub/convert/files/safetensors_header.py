"""What a safetensors file says it holds, checked against its size without reading a tensor.

Format: 8 bytes length of the header, the header as JSON (name -> dtype, shape, two offsets), then the bytes.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

# bits of an element
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
# The format's own limit.
_LONGEST = 100_000_000


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor; all of their bytes lie in the file, side by side and without gaps.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, or its header claims something else than the file holds.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at '{path}'" + (": it is a folder" if path.is_dir() else ""))
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST + 1
            if length > min(_LONGEST, size - 8):
                raise ValueError("no header of safetensors")
            header = json.loads(file.read(length).decode())
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        header.pop("__metadata__", None)
        return _checked(header, size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:
        why = "its header is no JSON" if isinstance(error, UnicodeError | json.JSONDecodeError) else error
        raise ValueError(
            f"'{path}' ({size:,} bytes) is damaged or cut short: {str(why)[:200]}; copy or save it again"
        ) from None


def _checked(header: dict[str, Any], size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a header whose tensors fill `size` bytes exactly."""
    shapes, spans = {}, []
    for name, entry in header.items():
        label = repr(name[:100])
        if not isinstance(entry, dict) or entry.get("dtype") not in _BITS:
            raise ValueError(f"{label} has no dtype that is known")
        shape: Any
        span: Any
        shape, span = entry.get("shape"), entry.get("data_offsets")
        if not _counts(shape) or not _counts(span) or len(span) != 2:
            raise ValueError(f"{label} has no shape or no place")
        if math.prod(shape) * _BITS[entry["dtype"]] // 8 != span[1] - span[0]:
            raise ValueError(f"{label} {tuple(shape[:8])} does not fill its {span[1] - span[0]:,} bytes")
        shapes[name] = tuple(shape)
        spans.append((span[0], span[1], label))
    end = 0
    for first, last, label in sorted(spans):
        if first != end:
            raise ValueError(f"{label} begins at byte {first:,}, expected {end:,}")
        end = last
    if end != size:
        raise ValueError(f"its tensors need {end:,} bytes, the file has {size:,}")
    return shapes


def _counts(value: Any) -> bool:
    sane = isinstance(value, list) and len(value) <= 64
    return sane and all(type(v) is int and 0 <= v < 1 << 63 for v in value)
