"""What people hand over as inputs: one or many, files that may be missing, pictures that may be none.

Place in the path: before the preprocessing of each modality, wherever inputs do not come from shards.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmvit.data.pixels import BadSample
from mmvit.errors import UserError


class ReadPicture:
    """Preprocesses picture number i, and says which one it was when that fails.

    Args:
        preprocess: a picture in any form -> what is wanted of it.
        start: number of the first picture.
        what: what messages call a picture.
    """

    def __init__(self, preprocess: Callable[[Any], Any] | None, start: int, what: str = "image") -> None:
        assert preprocess is not None
        self.preprocess, self.start, self.what = preprocess, start, what

    def __call__(self, i: int, picture: Any) -> Any:
        """What `preprocess` makes of picture start + i.

        Raises:
            FileNotFoundError: a path that is not there.
            ValueError: a picture that cannot be read.
        """
        if isinstance(picture, str | os.PathLike) and not Path(picture).is_file():
            raise FileNotFoundError(f"{self.what} {self.start + i}: no file '{os.fspath(picture)}'")
        try:
            return self.preprocess(picture)
        except (BadSample, UserError) as error:
            where = f" '{os.fspath(picture)}'" if isinstance(picture, str | os.PathLike) else ""
            raise ValueError(f"{self.what} {self.start + i}{where}: {error}") from None


def reader(modality: str, preprocess: Any, start: int, views: int = 1) -> Callable[[int, Any], Tensor]:
    """(number from 0, input) -> its V windows, (V,...) as a tower takes them.

    Args:
        modality: image, video or audio.
        preprocess: the modality's own.
        start: number of the first input, for messages.
        views: windows spread evenly over a clip or a sound; a picture is one.
    """
    if modality == "image":
        return ReadPicture(lambda picture: preprocess(picture)[None], start)
    return ReadPicture(lambda source: preprocess.views(source, views), start, modality)


def as_list(modality: str, value: Any) -> Sequence[Any]:
    """The inputs of a modality as a sequence; a single one becomes a list of one."""
    single = (
        isinstance(value, str | bytes | os.PathLike)
        or (hasattr(value, "resize") and hasattr(value, "mode"))
        or (modality in ("video", "audio") and (_is_pair(value) or isinstance(value, np.ndarray)))
    )
    if single or (modality == "image" and isinstance(value, np.ndarray) and value.ndim < 4):
        return [value]
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise ValueError(f"{modality} is a {type(value).__name__}, expected one input or a list of them")
    return value if hasattr(value, "__getitem__") and hasattr(value, "__len__") else list(value)


def _is_pair(value: Any) -> bool:
    """Whether this is (frames, rate) or (waveform, rate)."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], numbers.Real)
