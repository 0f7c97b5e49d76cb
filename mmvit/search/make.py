"""A FAISS index from a factory string: made, trained on a uniform sample, filled by blocks, moved to a GPU.

Letters: N rows, E embedding dim.
Source: https://github.com/facebookresearch/faiss/wiki/The-index-factory
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmvit.errors import need
from mmvit.search import effort
from mmvit.search.rows import Rows, unit_rows

EXACT_BELOW = 200_000
GRAPH_UP_TO = 1_000_000
ADD_BLOCK = 65_536
SEED = 0


def factory_string(index: str, rows: int) -> str:
    """The FAISS factory string that the words "flat" and "auto" stand for at this size; others pass through.

    Raises:
        ValueError: the string maps ids, which SearchIndex does itself.
    """
    if index == "auto":
        if rows < EXACT_BELOW:
            return "Flat"
        return "HNSW32" if rows <= GRAPH_UP_TO else f"IVF{2 ** round(np.log2(8 * rows**0.5))}_HNSW32,SQ8"
    if "IDMap" in index:
        raise ValueError(f"index {index!r}: leave IDMap out, SearchIndex maps rows to your keys itself")
    return "Flat" if index.lower() == "flat" else index


def empty(factory: str, dim: int) -> Any:
    """An untrained FAISS index for inner products.

    Raises:
        ValueError: FAISS does not know the string, or it does not fit `dim` or inner products.
    """
    faiss = need("faiss")
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"FAISS cannot make {factory!r} for {dim} dimensions: {_reason(error)}") from error
    # Under another name: `index` owns the C++ object, the down-cast view does not.
    if isinstance(view := faiss.downcast_index(index), faiss.IndexHNSW):
        view.hnsw.efConstruction = 200  # FAISS's 40 builds a visibly worse graph
    return index


def train(index: Any, embeddings: Rows, factory: str) -> None:
    """Trains (None) on a uniform sample with a fixed seed: 100 rows per inverted list, at least 50,000.

    Raises:
        ValueError: too few rows for this type.
    """
    if index.is_trained:
        return
    rows = len(embeddings)
    found = effort.dial(index, rows)
    wanted = max(50_000, 100 * found[1] if found and found[0] == "nprobe" else 0)
    sample = embeddings
    if rows > wanted:
        chosen = np.sort(np.random.default_rng(SEED).choice(rows, wanted, replace=False))
        sample = embeddings[torch.from_numpy(chosen) if isinstance(embeddings, torch.Tensor) else chosen]
    try:
        index.train(unit_rows(sample))
    except RuntimeError as error:
        raise ValueError(f"FAISS cannot train {factory!r} on {len(sample)} rows: {_reason(error)}") from error


def fill(index: Any, embeddings: Rows) -> None:
    """Appends all rows (None), block by block, so that no second whole copy is made."""
    for start in range(0, len(embeddings), ADD_BLOCK):
        index.add(unit_rows(embeddings[start : start + ADD_BLOCK], offset=start))


def to_gpu(index: Any) -> Any:
    """The index on this process's GPU.

    Raises:
        ValueError: no faiss-gpu, no GPU, or a type that has no GPU form (HNSW).
    """
    faiss = need("faiss")
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise ValueError(
            "device 'gpu' needs a visible GPU and faiss-gpu in faiss-cpu's place (scripts/setup.sh --gpu); "
            "use device='cpu'"
        )
    options = faiss.GpuClonerOptions()
    options.allowCpuCoarseQuantizer = True
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, index, options)
    except RuntimeError as error:
        raise ValueError(f"no GPU form of this index ({_reason(error)}): use device='cpu'") from error


def _reason(error: RuntimeError) -> str:
    """FAISS's own words without its C++ location."""
    return str(error).strip().splitlines()[-1].rsplit("' failed: ", 1)[-1]
