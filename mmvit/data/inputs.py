"""What people hand over as inputs: one or many, files that may be missing, pictures that may be none.

Place in the path: before `ImagePreprocess`, wherever inputs do not come from shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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


def as_list(modality: str, value: Any) -> Sequence[Any]:
    """The inputs of a modality as a sequence; a single one becomes a list of one."""
    single = (
        isinstance(value, str | bytes | os.PathLike) or hasattr(value, "resize") and hasattr(value, "mode")
    )
    if single or (modality == "image" and isinstance(value, np.ndarray) and value.ndim < 4):
        return [value]
    return value if hasattr(value, "__getitem__") and hasattr(value, "__len__") else list(value)
