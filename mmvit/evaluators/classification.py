"""Classification metrics from scores: top-1, top-5, balanced accuracy, class by class, with intervals.

Letters: N samples, V views of a sample, C classes.
Source: VATT (arXiv:2104.11178) for logits averaged over views, VideoMAE (arXiv:2203.12602) for probabilities;
percentile bootstrap over groups, Efron & Tibshirani 1993, chapters 8 and 13. Ties count against the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmvit.evaluators.ranking import chance_at, positive_ranks
from mmvit.evaluators.retrieval import group_numbers

Aggregate = Literal["logits", "probs"]


def average_views(logits: Tensor, agg: Aggregate = "logits") -> Tensor:
    """(N,C) scores of samples from (N,V,C) of their views: the mean of the logits, or of their softmax.

    A sample counts once, whatever its views; its views are never counted one by one.

    Raises:
        ValueError: another shape, or an unknown aggregate.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits of views must be (N,V,C), got {tuple(logits.shape)}")
    if agg not in ("logits", "probs"):
        raise ValueError(f"agg={agg!r} must be logits or probs")
    return (logits if agg == "logits" else logits.softmax(2)).mean(1)


def class_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of `rank_metrics` from scores (N,C), larger = likelier, and "without_label".

    Args:
        scores: of samples, their views already averaged.
        labels: (N,) int64 class numbers, -1 = none of the classes; or (N,C) bool, every right class.

    Raises:
        ValueError: shapes that disagree, NaN, a label outside 0..C-1, or no sample with a label.
    """
    best, right, known = best_ranks(scores, labels)
    metrics = rank_metrics(best[known], right[known], labels.cpu()[known] if labels.ndim == 1 else None)
    return metrics | {"without_label": int((~known).sum())}


def best_ranks(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rank (N,) of each sample's best right class from 1, right (N,C) bool, has a label (N,) bool).

    Args:
        scores: (N,C).
        labels: as `class_metrics` takes them.

    Raises:
        ValueError: as `class_metrics`.
    """
    if scores.isnan().any():
        raise ValueError(f"scores: sample {int(scores.isnan().any(1).nonzero()[0])} has NaN")
    right = right_classes(labels, len(scores), scores.shape[1])
    known = right.any(1)
    if not known.any():
        raise ValueError(f"none of the {len(scores)} samples has a label among the {scores.shape[1]} classes")
    return positive_ranks(scores.double().cpu(), right)[:, 0], right, known


def rank_metrics(best: Tensor, right: Tensor, labels: Tensor | None) -> dict[str, float]:
    """Metrics in 0..1: "acc1", "acc5", "mean_per_class_recall", "chance_acc1", "chance_acc5"; and counts.

    Args:
        best: (N,) rank of the best right class.
        right: (N,C) bool, at least one in every row.
        labels: (N,) class numbers, None where samples have several.
    """
    classes = right.shape[1]
    metrics: dict[str, float] = {}
    for k in (1, 5):
        metrics[f"acc{k}"] = (best <= k).double().mean().item()
        metrics[f"chance_acc{k}"] = chance_at(k, right.sum(1), classes).mean().item()
    if labels is not None:
        # Balanced accuracy: the mean over the classes that occur.
        seen = torch.bincount(labels, minlength=classes)
        hits = torch.bincount(labels[best == 1], minlength=classes).double()
        metrics["mean_per_class_recall"] = (hits[seen > 0] / seen[seen > 0]).mean().item()
    return metrics | {"n": len(best), "classes": classes}


def by_class(scores: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Class -> {"n", "recall", "most_taken_for"}: its samples, the share named right, the commonest mistake.

    Classes without a sample are left out; "most_taken_for" is left out where nothing was mistaken.

    Args:
        scores: (N,C).
        labels: (N,) int64 class numbers, -1 = none of the classes.
        names: C.

    Raises:
        ValueError: as `class_metrics`.
    """
    best, _, known = best_ranks(scores, labels)
    named, labels = scores.cpu().argmax(1), labels.cpu()
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        rows = known & (labels == number)
        if not rows.any():
            continue
        found[name] = {"n": int(rows.sum()), "recall": (best[rows] == 1).double().mean().item()}
        wrong = named[rows & (named != number)]
        if len(wrong):
            found[name]["most_taken_for"] = names[int(wrong.bincount().argmax())]
    return found


def interval(
    values: Tensor, groups: Sequence[Hashable], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The interval in which the mean of `values` lies when whole groups are drawn again, with replacement.

    Clips of one object, or pictures of one concept, say nearly the same thing: as a group they count once.

    Args:
        values: (N,) a number for each sample, such as right or wrong.
        groups: N values; equal ones are drawn together.
        level: share of the draws inside.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: no sample, or lengths that differ.
    """
    if not len(values) or len(values) != len(groups):
        raise ValueError(f"{len(values)} values in {len(groups)} groups: one group for each, at least one")
    (numbers,) = group_numbers(groups)
    count = numbers.bincount().double()
    total = torch.zeros_like(count).index_add_(0, numbers, values.double().cpu())
    draw = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(draws):
        rows = torch.randint(len(count), (len(count),), generator=draw)
        means.append(total[rows].sum() / count[rows].sum())
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.stack(means).quantile(edges).tolist()
    return low, high


def right_classes(labels: Tensor, samples: int, classes: int) -> Tensor:
    """(N,C) bool from either form of labels.

    Raises:
        ValueError: neither form, or a label outside -1..C-1.
    """
    if labels.shape == (samples, classes) and labels.dtype == torch.bool:
        return labels.cpu()
    if labels.shape != (samples,):
        raise ValueError(
            f"labels must be ({samples},) class numbers or ({samples},{classes}) bool, "
            f"got {tuple(labels.shape)} {labels.dtype}"
        )
    labels = labels.cpu().long()
    if labels.max() >= classes or labels.min() < -1:
        raise ValueError(
            f"labels must lie in -1..{classes - 1}, got {int(labels.min())}..{int(labels.max())}"
        )
    right = torch.zeros(samples, classes + 1, dtype=torch.bool)
    right[torch.arange(samples), labels] = True  # -1 falls into the extra column
    return right[:, :classes]
