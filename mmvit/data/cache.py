"""What a folder of shards says about its cached embeddings: which tower made them, how wide, and their mean.

`recipes/embed_shards.py` writes index.json's meta["embedding"] and embedding_mean.npy; training reads them
here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvit.data.shards import ShardIndex, is_remote
from mmvit.errors import UserError

MEAN = "embedding_mean.npy"


@dataclass(frozen=True)
class Cache:
    """Cached embeddings of one or several sources, all made alike.

    Attributes:
        fingerprint: of the tower without head, and its preprocessing.
        dim: D of the features.
        mean: (D,) float32 mean of the features over all samples, None when a folder lacks it.
    """

    fingerprint: str
    dim: int
    mean: Tensor | None


def read_cache(urls: str) -> Cache | None:
    """What `urls` (sources separated by "::") say about cached embeddings; None when they hold none.

    Raises:
        UserError: some sources are cached and others are not, different towers made them, or what the folder
            says of them is damaged.
    """
    found: dict[str, tuple[str, int]] = {}
    plain: list[str] = []
    means, counts, cached = [], [], 0
    for pattern in urls.split("::"):
        if is_remote(pattern.strip()):  # cached embeddings are read by index, so there can be none
            plain.append(pattern)
            continue
        index = ShardIndex.open(pattern.strip())
        folders = dict.fromkeys(os.path.dirname(shard.path) for shard in index.shards)
        for folder, meta in zip(folders, index.metas, strict=True):
            entry = meta.get("embedding")
            if entry is None:
                plain.append(folder)
                continue
            cached += 1
            found[folder] = _checked(entry, folder)
            path = os.path.join(folder, MEAN)
            if os.path.exists(path):
                means.append(read_mean(path, found[folder][1]).double().numpy())
                counts.append(sum(s.samples for s in index.shards if os.path.dirname(s.path) == folder))
    if not found:
        return None
    if plain:
        raise UserError(
            f"{next(iter(found))} holds cached embeddings and {plain[0]} does not: cache all sources or none"
        )
    if len(set(found.values())) > 1:
        first = next(iter(found))
        other = next(folder for folder in found if found[folder] != found[first])
        raise UserError(
            f"the embeddings in {first} and {other} were made by different towers or preprocessing"
        )
    fingerprint, dim = next(iter(found.values()))
    mean = None
    if len(means) == cached:
        mean = torch.from_numpy(np.average(means, axis=0, weights=counts).astype(np.float32))
    return Cache(fingerprint, dim, mean)


def _checked(entry: Any, folder: str) -> tuple[str, int]:
    """(fingerprint, D) of meta["embedding"]."""
    try:
        fingerprint, dim = entry["fingerprint"], entry["dim"]
        if isinstance(fingerprint, str) and type(dim) is int and dim > 0:
            return fingerprint, dim
    except (KeyError, TypeError):
        pass
    raise UserError(
        f"index.json in {folder} names no tower and width for its cached embeddings: embed them again with "
        "recipes/embed_shards.py"
    )


def read_mean(path: str, dim: int | None = None) -> Tensor:
    """(D,) float32 mean features from an .npy file.

    Args:
        path: the file.
        dim: D where it is known.

    Raises:
        UserError: no such file, or not one vector of D finite numbers.
    """
    try:
        with open(path, "rb") as file:
            mean = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy raises many kinds on damaged files
        reason = getattr(error, "strerror", None) or "it is no .npy file of numbers"
        raise UserError(f"cannot read the mean features {path}: {reason}") from None
    if not isinstance(mean, np.ndarray) or mean.ndim != 1 or mean.dtype.kind != "f":
        what = f"{mean.dtype} {mean.shape}" if isinstance(mean, np.ndarray) else "several arrays"
        raise UserError(f"{path} holds {what}: expected a float vector (D,)")
    if dim is not None and len(mean) != dim:
        raise UserError(f"{path} holds {len(mean)} numbers: expected D = {dim}")
    if not np.isfinite(mean).all():
        raise UserError(f"{path} holds numbers that are not finite")
    return torch.from_numpy(mean.astype(np.float32))
