"""Candidates and queries -> the best (candidate, query) pairs of each picture, without holding every logit.

Shape letters: B pictures, N candidates, Q queries, P prompts a query, E embedding width, K results.
Source: OWL-ViT (arXiv:2205.06230): the best pairs over all tokens and classes, so that one token may answer
several queries; `per_token` is the post-processing of transformers instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmvit.heads.detect import MISSING, query_logits
from mmvit.types import Candidates

_BLOCK = 1 << 24  # logits at once: 64 MB of float32
_GONE = MISSING / 2  # no logit of a real pair is so low


class Found(NamedTuple):
    """K results of each picture, best first.

    Attributes:
        scores: (B,K) float32, 0..1, descending; 0 where there is no result.
        labels: (B,K) int64 query numbers; -1 where there is no result.
        boxes: (B,K,4) float32 cxcywh, fractions of the tensor, as in `Candidates`; 0 where there is none.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


@torch.no_grad()
def find(
    candidates: Candidates,
    queries: Tensor,
    query_mask: Tensor | None = None,
    *,
    top_k: int = 100,
    threshold: float = 0.0,
    per_token: bool = False,
    prompts: int = 1,
    ensemble: Literal["logit", "prob"] = "logit",
    block: int = _BLOCK,
) -> Found:
    """The `top_k` best pairs of a candidate and a query in each picture that score above `threshold`.

    Args:
        candidates: of B pictures.
        queries: (Q*P,E) the same for all pictures, or (B,Q*P,E) each picture's own; any length.
        query_mask: (Q,) or (B,Q) bool, True = real query, None = all real.
        top_k: K at most; there are never more than N*Q pairs.
        threshold: probability, 0..1, 0 = all; missing queries and candidates on padding are never results.
        per_token: keep only each candidate's best query.
        prompts: P, rows of `queries` that ask for the same thing, one after the other.
        ensemble: what is averaged over them: "logit" or "prob".
        block: logits at once; bounds memory only.

    Raises:
        ValueError: `top_k` below 1, a threshold outside 0..1, or rows that `prompts` does not divide.
    """
    if top_k < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"top_k={top_k} must be 1 or more, threshold={threshold} must lie in 0..1")
    if prompts < 1 or queries.shape[-2] % prompts:
        raise ValueError(f"{queries.shape[-2]} query rows are not divisible into {prompts} prompts a query")
    best = _nothing(candidates)
    for first, logits in _blocks(candidates, queries, query_mask, prompts, ensemble, block):
        best = _per_token(best, first, logits) if per_token else _merge(best, first, logits, top_k)
    logits, tokens, labels = best
    if per_token:
        logits, order = logits.topk(min(top_k, logits.shape[1]))
        tokens, labels = tokens.gather(1, order), labels.gather(1, order)
    scores = logits.sigmoid()
    real = logits > _GONE
    if threshold:
        real = real & (scores > threshold)
    boxes = candidates.boxes.gather(1, tokens[..., None].expand(-1, -1, 4))
    return Found(scores * real, labels.where(real, -1), boxes * real[..., None])


def _blocks(
    c: Candidates, queries: Tensor, query_mask: Tensor | None, prompts: int, ensemble: str, block: int
) -> Iterator[tuple[int, Tensor]]:
    """(number of the first query, logits (B,N,q)) of runs of queries."""
    pairs = max(1, c.shift.numel() * prompts)
    step = max(1, block // pairs)
    for first in range(0, queries.shape[-2] // prompts, step):
        rows = queries[..., first * prompts : (first + step) * prompts, :]
        logits = query_logits(c.embeddings, c.shift, c.scale, rows)
        if prompts > 1:
            parts = logits.unflatten(-1, (-1, prompts))
            logits = parts.mean(-1) if ensemble == "logit" else _mean_probability(parts)
        if query_mask is not None:
            mask = query_mask[..., first : first + step].unsqueeze(-2)
            logits = logits.masked_fill(~mask, MISSING)
        if c.mask is not None:
            logits = logits.masked_fill(~c.mask[..., None], MISSING)
        yield first, logits.float()


def _mean_probability(logits: Tensor) -> Tensor:
    """Logits (...) of the mean over the last axis of probabilities (...,P), never as low as a missing one."""
    return logits.double().sigmoid().mean(-1).logit().clamp(min=_GONE / 2)


def _nothing(c: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, candidates and queries of no result at all, each (B,0)."""
    none = c.boxes.new_zeros(len(c.boxes), 0)
    return none.float(), none.long(), none.long()


def _merge(
    best: tuple[Tensor, Tensor, Tensor], first: int, logits: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs so far, (B,K) logits, candidates and queries, after one more block."""
    width = logits.shape[-1]
    flat = logits.flatten(1)
    values, where = flat.topk(min(top_k, flat.shape[1]))
    parts = (values, where // width, first + where % width)
    values, tokens, labels = (torch.cat(pair, dim=1) for pair in zip(best, parts, strict=True))
    values, order = values.topk(min(top_k, values.shape[1]))
    return values, tokens.gather(1, order), labels.gather(1, order)


def _per_token(
    best: tuple[Tensor, Tensor, Tensor], first: int, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each candidate's best query so far, (B,N) logits, candidates and queries, after one more block."""
    values, labels = logits.max(dim=-1)
    if not best[0].shape[1]:
        tokens = torch.arange(values.shape[1], device=values.device).expand_as(values)
        return values, tokens, labels + first
    better = values > best[0]
    return values.where(better, best[0]), best[1], (labels + first).where(better, best[2])
