"""SearchIndex: embeddings in, your own keys and cosine scores out; exact unless you ask for something else.

Letters: N rows, Q queries, E embedding dim, k neighbours.
Source: Douze et al., "The Faiss library", arXiv:2401.08281; on unit vectors the inner product is the cosine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmvit.errors import need
from mmvit.search import effort, exact, folder, make
from mmvit.search.rows import Rows, two_dimensional, unit_rows

Key = str | int
_GPU_MOST = 2048


class SearchIndex:
    """N embeddings with their keys, searchable by cosine; make one with `build` or `load`.

    Attributes:
        keys: N keys, in the order of the rows.
        factory: FAISS factory string of the index.
        parameters: passed with every query ("nprobe", "efSearch", "k_factor"); `tune` sets them.
        curve: what `tune` measured, None before.
        fingerprint: of the model that made the embeddings, when given.
        device: "cpu" or "gpu".
    """

    def __init__(
        self,
        index: Any,
        keys: list[Key],
        *,
        factory: str,
        parameters: dict[str, int],
        fingerprint: str | None = None,
        curve: list[dict[str, float]] | None = None,
        device: str = "cpu",
    ):
        self.index = make.to_gpu(index) if device == "gpu" else index
        self.keys = keys
        self.factory = factory
        self.parameters = parameters
        self.fingerprint = fingerprint
        self.curve = curve
        self.device = device

    @classmethod
    def build(
        cls,
        embeddings: Rows,
        keys: Sequence[Key],
        index: str = "auto",
        device: str = "cpu",
        fingerprint: str | None = None,
    ) -> SearchIndex:
        """An index over `embeddings`.

        Args:
            embeddings: (N,E) floating, any length but zero: rows are normalised here, in float32.
            keys: N strings or integers that searches return; a key may stand for several rows.
            index: "flat" (exact), "auto" (exact below 200,000 rows, HNSW to a million, then inverted lists of
                8-bit codes), or any FAISS factory string such as "IVF1024,Flat" or "HNSW32".
            device: "cpu", or "gpu" with faiss-gpu installed.
            fingerprint: of the model that made the embeddings; searches with another model are then refused.

        Raises:
            ValueError: shapes or counts that disagree, a NaN, infinite or zero row (with its number), a
                factory string that FAISS cannot read or train on so few rows, or an unknown device.
        """
        if device not in ("cpu", "gpu"):
            raise ValueError(f"device must be 'cpu' or 'gpu', got {device!r}")
        embeddings = two_dimensional(embeddings, "embeddings")
        _check_keys(embeddings, keys)
        rows, dim = embeddings.shape
        factory = make.factory_string(index, rows)
        made = make.empty(factory, dim)
        make.train(made, embeddings, factory)
        make.fill(made, embeddings)
        return cls(
            made,
            list(keys),
            factory=factory,
            parameters=effort.default_effort(made, rows),
            fingerprint=fingerprint,
            device=device,
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dim(self) -> int:
        """E, the length of an embedding."""
        return int(self.index.d)

    @property
    def nbytes(self) -> int:
        """Bytes of the index as FAISS stores it, keys not counted."""
        index = need("faiss").index_gpu_to_cpu(self.index) if self.device == "gpu" else self.index
        return int(need("faiss").serialize_index(index).nbytes)

    def search(
        self, queries: Rows, k: int = 10, fingerprint: str | None = None
    ) -> tuple[list[list[Key]], torch.Tensor]:
        """(keys: Q lists of k, scores (Q,k) float32 cosine, descending); k is cut to the number of rows.

        Equal scores come in the order in which the rows were added. An approximate index that still misses
        places after searching harder fills them with key None and score -inf.

        Args:
            queries: (Q,E) or (E,) floating, any length but zero.
            k: neighbours per query.
            fingerprint: of the model that made the queries; checked when the index knows its own.

        Raises:
            ValueError: wrong dimension, a bad row, k < 1, or embeddings of another model.
        """
        if fingerprint and self.fingerprint and fingerprint != self.fingerprint:
            raise ValueError(
                f"these queries come from model {fingerprint[:12]}, the index holds embeddings of "
                f"{self.fingerprint[:12]}: build the index with this model, or load the one it was built with"
            )
        ids, scores = self.search_ids(queries, k)
        keys = [[self.keys[i] if i >= 0 else None for i in row] for row in ids.tolist()]
        return keys, torch.from_numpy(scores)  # type: ignore[return-value]

    def search_ids(self, queries: Rows, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """(row numbers (Q,k) int64, scores (Q,k) float32): `search` before the look-up; -1 = an empty place.

        Raises:
            ValueError: as `search`.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        unit = unit_rows(queries, "queries")
        if unit.shape[1] != self.dim:
            raise ValueError(f"queries have {unit.shape[1]} dimensions, the index holds {self.dim}")
        k = min(k, len(self))
        if self.device == "gpu" and k > _GPU_MOST:
            raise ValueError(
                f"k = {k}: FAISS finds at most {_GPU_MOST} neighbours on a GPU; use device='cpu'"
            )
        scores, ids = self._neighbours(unit, k, self.parameters)
        tougher = effort.harder(self.index, len(self), self.parameters)
        while tougher and (short := (ids < 0).any(axis=1)).any():
            scores[short], ids[short] = self._neighbours(unit[short], k, tougher)
            tougher = effort.harder(self.index, len(self), tougher)
        # Rounding can put a cosine just above one.
        return ids, np.where(ids < 0, -np.inf, np.clip(scores, -1.0, 1.0)).astype(np.float32)

    def add(self, embeddings: Rows, keys: Sequence[Key]) -> None:
        """Appends rows (None); what was learned from the first rows (lists, codes) stays as it is.

        Raises:
            ValueError: as `build`; nothing is added then.
        """
        embeddings = two_dimensional(embeddings, "embeddings")
        _check_keys(embeddings, keys)
        if embeddings.shape[1] != self.dim:
            raise ValueError(f"embeddings have {embeddings.shape[1]} dimensions, the index holds {self.dim}")
        for start in range(
            0, len(embeddings), make.ADD_BLOCK
        ):  # all rows are checked before the first is added
            unit_rows(embeddings[start : start + make.ADD_BLOCK], offset=start)
        make.fill(self.index, embeddings)
        self.keys.extend(keys)

    def tune(
        self, queries: Rows, recall: float = 0.95, k: int = 10, embeddings: Rows | None = None
    ) -> list[dict[str, float]]:
        """The measured curve, {parameter, "recall", "ms_per_query"} per value tried; the last is now in use.

        Recall is the share of the exact top k that the index finds, over all queries. Use real queries of the
        modality that will be asked: captions lie apart from pictures and are harder than base vectors.

        Args:
            queries: (Q,E), a thousand or so.
            recall: target in 0..1; the smallest value that reaches it is kept (to a fifth), or the largest.
            k: neighbours compared.
            embeddings: (N,E) the original rows, needed unless the index keeps them in order (Flat, HNSW).

        Raises:
            ValueError: `embeddings` is needed and was not given, or has another shape.
        """
        unit = unit_rows(queries, "queries")
        k = min(k, len(self))
        base = self._rows() if embeddings is None else unit_rows(embeddings)
        if base is None:
            raise ValueError(
                f"an index {self.factory!r} does not hold the exact rows: pass them as tune(…, embeddings=…)"
            )
        if base.shape != (len(self), self.dim):
            raise ValueError(f"embeddings have shape {base.shape}, the index holds {(len(self), self.dim)}")
        truth = exact.top_k(unit, base, k)[1]

        def measure(values: dict[str, int]) -> dict[str, float]:
            started = time.perf_counter()
            found = self._neighbours(unit, k, values)[1]
            milliseconds = 1e3 * (time.perf_counter() - started) / len(unit)
            return {"recall": overlap(found, truth), "ms_per_query": round(milliseconds, 4)}

        self.curve = effort.sweep(self.index, len(self), self.parameters, measure, recall)
        chosen = self.curve[-1]
        self.parameters = {**self.parameters, **{n: int(v) for n, v in chosen.items() if n in effort.DIALS}}
        return self.curve

    def save(self, path: str | Path) -> None:
        """Writes the folder `path` (index.faiss, keys.json, index.json) whole or not at all (None).

        Raises:
            FileExistsError: `path` exists and is not an index folder.
        """
        index = need("faiss").index_gpu_to_cpu(self.index) if self.device == "gpu" else self.index
        facts = {
            "factory": self.factory,
            "n": len(self),
            "dim": self.dim,
            "parameters": self.parameters,
            "curve": self.curve,
            "fingerprint": self.fingerprint,
            "training_seed": make.SEED,
        }
        folder.write(path, index, self.keys, facts)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> SearchIndex:
        """The index that `save` wrote to the folder `path`.

        Raises:
            FileNotFoundError: no index there.
            ValueError: a damaged or foreign folder.
        """
        index, keys, facts = folder.read(path)
        return cls(
            index,
            keys,
            factory=facts["factory"],
            parameters=facts["parameters"],
            fingerprint=facts["fingerprint"],
            curve=facts["curve"],
            device=device,
        )

    def _neighbours(self, unit: np.ndarray, k: int, values: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """(scores, ids), both (Q,k), sorted by falling score, then rising id."""
        rows = self._rows() if self.factory == "Flat" else None
        if rows is not None:
            return exact.top_k(unit, rows, k)
        scores, ids = self.index.search(unit, k, params=effort.search_parameters(self.index, values))
        return exact.by_score_then_id(scores, ids)

    def _rows(self) -> np.ndarray | None:
        """(N,E) view of the stored rows where FAISS keeps them as plain float32 in order, else None."""
        faiss = need("faiss")
        index = faiss.downcast_index(self.index)
        if isinstance(index, faiss.IndexHNSW):
            index = faiss.downcast_index(index.storage)
        if not isinstance(index, faiss.IndexFlat):
            return None
        return faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of each row of `truth` (Q,k) that also stands in the same row of `found` (Q,k'), 0..1."""
    hits = (found[:, :, None] == truth[:, None, :]).any(axis=1)
    return float(hits.mean())


def _check_keys(embeddings: Rows, keys: Sequence[Key]) -> None:
    if len(embeddings) == 0:
        raise ValueError("embeddings hold no rows")
    if len(keys) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings but {len(keys)} keys: one key per row is needed")
    for i, key in enumerate(keys):
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise ValueError(f"keys must be strings or integers, key {i} is {type(key).__name__}")
