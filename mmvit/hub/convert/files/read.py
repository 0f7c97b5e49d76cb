"""Reading a peer's weight files: safetensors, or torch files of plain tensors. Never a pickled object.

What a file says about itself is compared with what it holds before anything is allocated, so that a damaged
or hostile file ends in one line and neither runs code nor fills the memory.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmvit.errors import refusal
from mmvit.hub.convert.files.safetensors_header import read_header

# Names that training scripts put around a state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model_ema", "model")
# And before each of its names: DistributedDataParallel's and torch.compile's.
_PREFIXES = ("module.", "_orig_mod.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is cut short or no safetensors file.
    """
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"'{path}' ({size:,} bytes) is damaged or cut short: {refusal(error)}; copy or save it again"
        ) from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder with model.safetensors, or with the index of a model in several files.

    Raises:
        FileNotFoundError: neither is there, or a file that the index names is missing.
        ValueError: a damaged file, or an index that names files elsewhere.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return read_safetensors(folder / "model.safetensors")
    places = _read_index(index)
    state: dict[str, Tensor] = {}
    for part in sorted(set(places.values())):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"'{folder / part}' is missing, '{index}' names it: copy the model again")
        found = read_safetensors(folder / part)
        strays = [name for name in found if places.get(name) != part]
        if strays:
            raise ValueError(f"'{folder / part}' holds '{strays[0]}', which '{index}' does not place there")
        state |= found
    lost = [name for name in places if name not in state]
    if lost:
        raise ValueError(f"'{index}' names '{lost[0]}', which no file holds: copy the model again")
    return state


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name out of an index; only plain names of files beside it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        fits = all(isinstance(part, str) for part in places.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise ValueError(f"'{index}' is no index of safetensors files: expected a 'weight_map' of names")
    for part in places.values():
        if part != Path(part).name or "\\" in part or not part.endswith(".safetensors"):
            raise ValueError(f"'{index}' names '{part[:100]}': expected .safetensors files of its own folder")
    return places


def read_torch(path: Path, wrappers: Sequence[str] = _WRAPPERS) -> dict[str, Tensor]:
    """The state dict in a .pth or .bin file; anything but tensors in plain containers is refused.

    Args:
        path: the file.
        wrappers: names around the state dict, taken off in this order where they are found.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds other objects, or no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at '{path}'" + (": it is a folder" if path.is_dir() else ""))
    _check_archive(path)
    try:
        # Many training scripts keep their command line beside the weights; a Namespace only stores it.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        raise ValueError(
            f"'{path}' is not a file of plain tensors and is not opened: {_reason(error)}"
        ) from None
    for wrapper in wrappers:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not content or not all(isinstance(v, Tensor) for v in content.values()):
        holds = f"names {', '.join(sorted(map(str, content))[:8])}" if isinstance(content, dict) else "none"
        raise ValueError(
            f"'{path}' holds a {type(content).__name__} ({holds}), expected a state dict of tensors"
        )
    return {_bare(name): _plain(name, value, path) for name, value in content.items()}


def _check_archive(path: Path) -> None:
    """Raises ValueError for an archive that torch did not write: its members are never compressed."""
    if not zipfile.is_zipfile(path):
        return  # the older format; it is read number by number
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
            total = sum(i.file_size for i in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"'{path}' is damaged or cut short: {refusal(error)}; copy it again") from None
    if packed or total > path.stat().st_size:
        why = f"'{packed[0][:60]}' is compressed" if packed else "its members overlap"
        raise ValueError(f"'{path}' was not written by torch ({why}) and is not opened: get another copy")


def _plain(name: str, value: Tensor, path: Path) -> Tensor:
    """`value`, if all of its elements are in the file: a view of a few bytes can claim any size."""
    ordinary = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not ordinary or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        shape = tuple(value.shape)
        raise ValueError(f"'{path}': '{name}' {shape} is no plain tensor on the CPU: save a contiguous copy")
    return value.detach()


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _reason(error: Exception) -> str:
    """What torch did not want, or its first words; its own advice is to open the file after all."""
    text = " ".join(str(error).split())
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it contains {found[1][:80]}"
    unpickler = text.partition("WeightsUnpickler error: ")[2]
    return (unpickler or text or type(error).__name__)[:160]
