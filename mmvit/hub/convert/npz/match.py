"""What an `.npz` file leaves open: the grid of its positions, and whether it is the preset asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from mmvit.models.config import ClassifierConfig, ImageTowerConfig
from mmvit.models.presets import AnyConfig, preset

# Fields of a preset that a file's shapes must agree with, and those that no file tells.
_SIZES = ("width", "depth", "num_heads", "mlp_dim", "tokens", "token_dim", "vocab_size")
_FORM = ("patch_size", "class_token", "pool")
_OPEN = ("image_size", "position_resample", "patch_resample")


def picture_grid(
    rows: int | None, special: Sequence[int], size: tuple[int, int] | None, patch: int
) -> tuple[tuple[int, int], int]:
    """(height, width) in tokens of a position table, and how many rows before the grid's it has.

    Args:
        rows: of the table, None = there is none (fixed positions).
        special: how many rows it may have for special tokens, likelier ones first.
        size: (height, width) in pixels that the caller named, None = unknown.
        patch: side of a patch in pixels.

    Raises:
        ValueError: a table that is no square, and no size that explains it.
    """
    named = None if size is None else (size[0] // patch, size[1] // patch)
    if rows is None:
        return named or (224 // patch, 224 // patch), 0
    for count in special:
        if named is not None and math.prod(named) + count == rows:
            return named, count
    for count in special:
        side = math.isqrt(max(rows - count, 0))
        if side > 0 and side * side + count == rows:
            return (side, side), count
    beside = " or ".join(str(count) for count in special)
    raise ValueError(
        f"has {rows} positions, no square beside {beside} of special tokens: is it of another family? "
        "For pictures that are no squares pass image_size=(height, width) in pixels"
    )


def match_preset(config: AnyConfig, name: str, source: str) -> AnyConfig:
    """`config` with what no file tells taken from a preset.

    Raises:
        ValueError: the file is another model; the message names the field.
    """
    wanted: Any = preset(name)
    found: Any = config
    if isinstance(found, ClassifierConfig):
        return dataclasses.replace(found, tower=_match(found.tower, wanted, name, source))
    return _match(found, wanted, name, source)


def _match(found: Any, wanted: Any, name: str, source: str) -> Any:
    if type(found) is not type(wanted):
        raise ValueError(
            f"'{source}' is of kind {type(found).__name__.removesuffix('Config')}, and '{name}' of kind "
            f"{type(wanted).__name__.removesuffix('Config')}"
        )
    changes: dict[str, Any] = {}
    # A model for many patch sizes is stored at whatever size it was trained with.
    flexible = ("patch_size", "image_size") if getattr(wanted, "patch_resample", None) else ()
    for field in dataclasses.fields(found):
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if field.name in flexible:
            continue
        if dataclasses.is_dataclass(theirs) and dataclasses.is_dataclass(ours):
            changes[field.name] = _match(theirs, ours, name, source)
        elif field.name in _SIZES or (field.name in _FORM and isinstance(found, ImageTowerConfig)):
            if ours != theirs:
                raise ValueError(
                    f"'{source}' has {field.name}={theirs}, and '{name}' has {field.name}={ours}"
                )
        elif field.name in _OPEN:
            changes[field.name] = ours
    return dataclasses.replace(found, **changes)
