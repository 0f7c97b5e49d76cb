"""What a folder of shards says about its cached embeddings: which tower made them, how wide, and their mean.

`recipes/embed_shards.py` writes index.json's meta["embedding"] and embedding_mean.npy; training reads them
here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmvit.data.shards import ShardIndex
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
        UserError: some sources are cached and others are not, or different towers made them.
    """
    found: dict[str, tuple[str, int]] = {}
    plain: list[str] = []
    means, counts, cached = [], [], 0
    for pattern in urls.split("::"):
        index = ShardIndex.open(pattern.strip())
        folders = dict.fromkeys(os.path.dirname(shard.path) for shard in index.shards)
        for folder, meta in zip(folders, index.metas, strict=True):
            entry = meta.get("embedding")
            if entry is None:
                plain.append(folder)
                continue
            cached += 1
            found[folder] = (entry["fingerprint"], entry["dim"])
            path = os.path.join(folder, MEAN)
            if os.path.exists(path):
                means.append(np.load(path, allow_pickle=False).astype(np.float64))
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


def read_mean(path: str) -> Tensor:
    """(D,) float32 mean features from an .npy file.

    Raises:
        UserError: no such file, or not one vector of numbers.
    """
    try:
        mean = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the mean features {path}: {error}") from None
    if mean.ndim != 1 or mean.dtype.kind != "f":
        raise UserError(f"{path} holds {mean.dtype} {mean.shape}: expected a float vector (D,)")
    return torch.from_numpy(mean.astype(np.float32))
