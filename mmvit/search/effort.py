"""How hard an approximate index searches: the parameter of each FAISS type, its default, and its tuning.

FAISS's own defaults (nprobe 1, efSearch 16) favour speed far too much, and a value set on an index travels
with its file; so every search here passes its parameters explicitly, per call.
Source: https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmvit.errors import need

REFINE_FACTOR = 8
DIALS = ("nprobe", "efSearch", "k_factor")


def dial(index: Any, rows: int) -> tuple[str, int] | None:
    """(parameter name, largest useful value) that trades speed for recall, or None when the type has none."""
    faiss = need("faiss")
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return dial(index.index, rows)
    if isinstance(index, faiss.IndexRefine):
        return dial(index.base_index, rows) or ("k_factor", max(1, rows))
    if isinstance(index, faiss.IndexIVF) or _on_gpu(index, "GpuIndexIVF"):
        return "nprobe", index.nlist
    if isinstance(index, faiss.IndexHNSW):
        return "efSearch", max(1, rows)
    return None


def default_effort(index: Any, rows: int) -> dict[str, int]:
    """Search parameters of an untuned index: an eighth of the lists but at least 16, or efSearch 128."""
    faiss = need("faiss")
    found = dial(index, rows)
    values = {"k_factor": REFINE_FACTOR} if isinstance(faiss.downcast_index(index), faiss.IndexRefine) else {}
    if found and found[0] == "nprobe":
        values["nprobe"] = min(found[1], max(16, found[1] // 8))
    elif found and found[0] == "efSearch":
        values["efSearch"] = 128
    return values


def search_parameters(index: Any, values: dict[str, int]) -> Any:
    """FAISS's per-call parameter object for this index type, or None when it takes none."""
    faiss = need("faiss")
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return search_parameters(index.index, values)
    if isinstance(index, faiss.IndexRefine):
        inner = search_parameters(index.base_index, values)
        chosen: dict[str, Any] = {"k_factor": float(values.get("k_factor", REFINE_FACTOR))}
        return faiss.IndexRefineSearchParameters(**chosen, **({"base_index_params": inner} if inner else {}))
    if isinstance(index, faiss.IndexIVF) or _on_gpu(index, "GpuIndexIVF"):
        nprobe = int(values["nprobe"])
        if isinstance(faiss.downcast_index(index.quantizer), faiss.IndexHNSW):
            # The coarse graph must find nprobe centroids, so it searches wider than that.
            quantizer = faiss.SearchParametersHNSW(efSearch=max(64, 2 * nprobe))
            return faiss.SearchParametersIVF(nprobe=nprobe, quantizer_params=quantizer)
        return faiss.SearchParametersIVF(nprobe=nprobe)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=int(values["efSearch"]))
    return None


def harder(index: Any, rows: int, values: dict[str, int]) -> dict[str, int] | None:
    """The same parameters with the dial turned four times as far, or None at its end."""
    found = dial(index, rows)
    if found is None or values[found[0]] >= found[1]:
        return None
    return {**values, found[0]: min(found[1], 4 * values[found[0]])}


def sweep(
    index: Any,
    rows: int,
    values: dict[str, int],
    measure: Callable[[dict[str, int]], dict[str, float]],
    recall: float,
) -> list[dict[str, float]]:
    """One row per tried value, in rising order; the last is the smallest found that reaches the target.

    Powers of two up to the first that reaches it, then two halvings of the last gap; larger values that turn
    out not to be needed are left out. Without success the last row is the largest value.

    Args:
        index: the FAISS index.
        rows: how many rows it holds.
        values: its present parameters; those besides the dial are kept.
        measure: parameters -> {"recall": …, "ms_per_query": …}.
        recall: target, 0..1.
    """
    found = dial(index, rows)
    if found is None:
        return [measure(values)]
    name, largest = found

    def tried(value: int) -> dict[str, float]:
        return {name: value, **measure({**values, name: value})}

    value = min(largest, 1 if name != "efSearch" else 8)
    curve = [tried(value)]
    while curve[-1]["recall"] < recall and value < largest:
        value = min(2 * value, largest)
        curve.append(tried(value))
    for _ in range(2 if len(curve) > 1 and curve[-1]["recall"] >= recall else 0):
        middle = int(curve[-2][name] + curve[-1][name]) // 2
        if middle == curve[-2][name]:
            break
        row = tried(middle)
        curve[-1:] = [row] if row["recall"] >= recall else [row, curve[-1]]
    return curve


def _on_gpu(index: Any, name: str) -> bool:
    kind = getattr(need("faiss"), name, None)
    return kind is not None and isinstance(index, kind)
