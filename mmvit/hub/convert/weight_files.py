"""Reading a peer's weight files: safetensors, or torch files of plain tensors. Never a pickled object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Names that training scripts put around a state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model_ema", "model")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is cut short or no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at '{path}'")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"'{path}' ({size:,} bytes) is damaged or cut short: {error}; copy or save it again"
        ) from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder with model.safetensors, or with the index of a model in several files.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: a damaged file.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return read_safetensors(folder / "model.safetensors")
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return {name: value for part in names for name, value in read_safetensors(folder / part).items()}


def read_torch(path: Path, wrappers: Sequence[str] = _WRAPPERS) -> dict[str, Tensor]:
    """The state dict in a .pth or .bin file; anything but tensors in plain containers is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds other objects, or no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at '{path}'")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        raise ValueError(
            f"'{path}' is not a file of plain tensors and is not opened: {str(error)[:200]}"
        ) from None
    for wrapper in wrappers:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, expected a state dict of tensors")
    return {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in content.items()}
