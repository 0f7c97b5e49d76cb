"""Retrieval over 100,000 embeddings: exact search, approximate indexes at 0.95 recall, the whole evaluator.

The embeddings are drawn, cross-modal and seeded: topics of uneven size (weights 1/(10 + t)), a heavy-tailed
spread around them (Student, 6 degrees of freedom), directions whose spread falls as 1/sqrt(i). That gives a
participation ratio near 32 and cosines of about 0.8 / 0.7 / 0.5 at places 1 / 10 / 100; embeddings of trained
towers on the default corpus have 35 to 42 and 0.8 / 0.6 / 0.4. The other modality is the same point with
noise, moved to the far side of a gap.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Options, Row, compare
from mmvit.evaluators.retrieval import retrieval_metrics
from mmvit.search import SearchIndex
from mmvit.search.index import overlap

WIDTH, K, RECALL = 512, 10, 0.95
MARGIN = 0.005  # tuned on other queries than are timed, an index must aim a little higher
SPREAD, DEGREES, NOISE, GAP = 0.6, 6, 0.5, 0.5
CHUNK = 1024  # queries of one product in the peer's search
INDEXES = ("HNSW32", "IVF1024,Flat")


def run(options: Options) -> Iterator[Row]:
    """Rows of exact search, of approximate indexes, and of the evaluator over all pairs."""
    import faiss

    faiss.omp_set_num_threads(options.threads)
    rows, asked, pairs = (3000, 200, 600) if options.small else (100_000, 2000, 5000)
    base, other = embeddings(rows)
    chosen = torch.from_numpy(np.random.default_rng(1).choice(rows, 2 * asked, replace=False))
    queries, held = other[chosen[:asked]], other[chosen[asked:]]
    yield exact(base, queries, options)
    for factory in ("HNSW8", "IVF32,Flat") if options.small else INDEXES:
        yield from approximate(factory, base, queries, held, options)
    yield from evaluator(base[:pairs], other[:pairs], options)


def exact(base: Tensor, queries: Tensor, options: Options) -> Row:
    """The row of exact search; both answers are compared first."""
    index = SearchIndex.build(base, range(len(base)), "flat")
    same = overlap(index.search_ids(queries, K)[0], brute_force(queries, base).numpy())
    return compare(
        f"exact search, {len(queries):,} queries, {len(base):,} x {WIDTH}, k = {K}",
        lambda: index.search_ids(queries, K),
        lambda: brute_force(queries, base),
        options,
        peer_name=f"torch, product and topk of {CHUNK:,} queries at a time",
        aim=1.0,
        note=f"{same:.2%} of the answers are the same",
    )


def approximate(factory: str, base: Tensor, queries: Tensor, held: Tensor, options: Options) -> Iterator[Row]:
    """Rows of one index against exact search and brute force, tuned on other queries than are timed."""
    flat = SearchIndex.build(base, range(len(base)), "flat")
    begun = time.process_time()
    index = SearchIndex.build(base, range(len(base)), factory)
    built = time.process_time() - begun
    begun = time.process_time()
    index.tune(held, RECALL + MARGIN, K, embeddings=base)
    tuned = time.process_time() - begun
    recall = overlap(index.search_ids(queries, K)[0], flat.search_ids(queries, K)[0])
    effort = ", ".join(f"{name} {value}" for name, value in index.parameters.items())
    for peer_name, peer in (
        ("our exact search", lambda: flat.search_ids(queries, K)),
        ("torch, product and topk", lambda: brute_force(queries, base)),
    ):
        yield compare(
            f"{factory} at {RECALL:g} recall@{K}, {len(queries):,} queries, {len(base):,} x {WIDTH}",
            lambda: index.search_ids(queries, K),
            peer,
            options,
            peer_name=peer_name,
            aim=5.0,
            note=f"recall {recall:.3f} at {effort}; built in {built:.0f} CPU s, tuned in {tuned:.0f}",
        )


def evaluator(a: Tensor, b: Tensor, options: Options) -> Iterator[Row]:
    """Rows of recall@1, 5, 10 in both directions: against open_clip's way, and the leanest in torch."""
    groups = torch.arange(len(a))
    found = retrieval_metrics(a, b, groups, groups)
    ours = [found[f"{side}_retrieval_recall@{k}"] for side in ("text", "image") for k in (1, 5, 10)]
    calls = {
        "open_clip get_clip_metrics": clip_metrics,
        "torch, recalls alone, float32 products and topk": recalls,
    }
    for name, call in calls.items():
        theirs = call(a, b)
        gap = max(abs(p - q) for p, q in zip(ours, theirs, strict=True))
        yield compare(
            f"retrieval evaluation, both ways, {len(a):,} pairs x {WIDTH}",
            lambda: retrieval_metrics(a, b, groups, groups),
            lambda call=call: call(a, b),  # type: ignore[misc]
            options,
            peer_name=name,
            aim=1.0,
            note=f"recalls differ by at most {gap:.1g}; ours adds map, mrr, ties and float64 scores",
            warm_up=0,
        )


def clip_metrics(a: Tensor, b: Tensor) -> list[float]:
    """[R@1, R@5, R@10 of a to b, then of b to a] by open_clip's function, which sorts the whole matrix."""
    from open_clip_train.train import get_clip_metrics

    found = get_clip_metrics(a, b, 1.0)
    return [float(found[f"{way}_R@{k}"]) for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def recalls(a: Tensor, b: Tensor) -> list[float]:
    """[R@1, R@5, R@10 of a to b, then of b to a]: which of the ten best is the own one, nothing else."""
    out: list[float] = []
    for queries, base in ((a, b), (b, a)):
        hits = brute_force(queries, base) == torch.arange(len(queries))[:, None]
        out += [hits[:, :k].any(1).double().mean().item() for k in (1, 5, 10)]
    return out


def brute_force(queries: Tensor, base: Tensor) -> Tensor:
    """(Q,10) row numbers of the largest products."""
    return torch.cat([(part @ base.T).topk(K).indices for part in queries.split(CHUNK)])


def embeddings(rows: int) -> tuple[Tensor, Tensor]:
    """Two (rows,512) float32 unit matrices whose equal rows belong together, as the file's head says."""
    draw = np.random.default_rng(0)
    scale = (1 / np.sqrt(1 + np.arange(WIDTH))).astype(np.float32)
    scale /= np.linalg.norm(scale)

    def normal(count: int) -> np.ndarray:
        return draw.standard_normal((count, WIDTH), dtype=np.float32) * scale

    topics = max(1, rows // 50)
    weights = 1 / (10.0 + np.arange(topics))
    topic = draw.choice(topics, rows, p=weights / weights.sum())
    tail = np.sqrt(DEGREES / draw.chisquare(DEGREES, (rows, 1))).astype(np.float32)
    point = normal(topics)[topic] + SPREAD * tail * normal(rows)
    away = draw.standard_normal(WIDTH).astype(np.float32)
    away *= GAP / np.linalg.norm(away)
    sides = (point + away, point + NOISE * normal(rows) - away)
    one, other = (torch.from_numpy(side / np.linalg.norm(side, axis=1, keepdims=True)) for side in sides)
    return one, other
