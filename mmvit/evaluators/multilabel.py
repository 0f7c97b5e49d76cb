"""Multi-label metrics: scores and right classes -> average precision, ROC AUC and d', class by class.

Letters: N samples, C classes, P positives of a class.
Source: AudioSet (Gemmeke et al. 2017) for the protocol; VATT (arXiv:2104.11178) for d' as the mean over
classes, AST (arXiv:2104.01778) for d' of the mean AUC. All depend on each class's order alone, so logits,
probabilities and cosines give the same numbers. Equal scores are one threshold, as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MultiLabel:
    """What `multilabel_metrics` counted.

    Attributes:
        metrics: name -> value.
        classes: class -> {"AP", "AUC", "d_prime", "positives"}, for those that have a positive.
    """

    metrics: dict[str, float]
    classes: dict[str, dict[str, float]]


def multilabel_metrics(scores: Tensor, labels: Tensor, names: Sequence[str] | None = None) -> MultiLabel:
    """Metrics: "map", "auc", "d_prime", "d_prime_of_mean_auc", "chance_map"; and counts.

    "map" and "auc" are means over classes, 0..1. "d_prime" is the mean over classes of sqrt(2) z(AUC),
    "d_prime_of_mean_auc" is sqrt(2) z(mean AUC); z is the inverse of the normal distribution function. A
    class without a positive is left out of everything ("without_positive" counts them); one without a
    negative has no AUC and is left out of "auc" and "d_prime" alone ("without_negative"). "d_prime_limited"
    counts classes whose AUC is 0 or 1, see `d_prime`. "chance_map" is what random orders reach on average.

    Args:
        scores: (N,C), larger = likelier.
        labels: (N,C) bool, every right class of a sample.
        names: C class names, None = their numbers.

    Raises:
        ValueError: shapes that disagree, scores that are NaN, or no positive at all.
    """
    if scores.ndim != 2 or labels.shape != scores.shape or labels.dtype != torch.bool:
        raise ValueError(
            f"labels must be bool and shaped as the scores {tuple(scores.shape)} (N,C), "
            f"got {tuple(labels.shape)} {labels.dtype}"
        )
    if scores.isnan().any():
        sample, column = scores.isnan().nonzero()[0].tolist()
        raise ValueError(f"scores: sample {sample} has NaN for class {column}")
    if names is not None and len(names) != scores.shape[1]:
        raise ValueError(f"{len(names)} names for {scores.shape[1]} classes: one for each")
    if not labels.any():
        raise ValueError(f"none of the {len(scores)} samples has a label among the {scores.shape[1]} classes")
    samples = len(scores)
    classes: dict[str, dict[str, float]] = {}
    areas, pairs = [], []
    for i in range(scores.shape[1]):
        score, right = scores[:, i].cpu(), labels[:, i].cpu()
        if not (positives := int(right.sum())):
            continue
        row: dict[str, float] = {"AP": average_precision(score, right), "positives": positives}
        if positives < samples:
            areas.append(roc_auc(score, right))
            pairs.append(positives * (samples - positives))
            row |= {"AUC": areas[-1], "d_prime": d_prime(areas[-1], pairs[-1])}
        classes[str(i) if names is None else names[i]] = row
    metrics: dict[str, float] = {"map": _mean([row["AP"] for row in classes.values()])}
    if areas:
        metrics["auc"] = _mean(areas)
        metrics["d_prime"] = _mean([row["d_prime"] for row in classes.values() if "d_prime" in row])
        metrics["d_prime_of_mean_auc"] = d_prime(metrics["auc"], sum(pairs))
        metrics["d_prime_limited"] = sum(area in (0.0, 1.0) for area in areas)
    metrics["chance_map"] = _mean([chance_ap(int(row["positives"]), samples) for row in classes.values()])
    metrics |= {
        "n": samples,
        "classes": len(classes),
        "without_positive": scores.shape[1] - len(classes),
        "without_negative": len(classes) - len(areas),
    }
    return MultiLabel(metrics, classes)


def average_precision(scores: Tensor, right: Tensor) -> float:
    """Sum over thresholds of (recall gained) x precision, 0..1; the area under the stepped curve.

    Args:
        scores: (N,); equal ones are one threshold.
        right: (N,) bool, at least one True.

    Raises:
        ValueError: nothing is right.
    """
    if not right.any():
        raise ValueError("average precision needs at least one positive")
    found, taken = _at_thresholds(scores, right)
    gained = found.diff(prepend=found.new_zeros(1)) / found[-1]
    return float((gained * found / taken).sum())


def roc_auc(scores: Tensor, right: Tensor) -> float:
    """Share of the (positive, negative) pairs in which the positive scores higher, a tie counts half; 0..1.

    Args:
        scores: (N,).
        right: (N,) bool with both values.

    Raises:
        ValueError: all are right, or none.
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        raise ValueError(
            f"AUC needs a positive and a negative, got {positives} positives and {negatives} negatives"
        )
    found, taken = _at_thresholds(scores, right)
    false = taken - found
    above = torch.cat([found.new_zeros(1), found[:-1]])
    # Each threshold's negatives lie below all positives found before, and tie with those found with them.
    area = (false.diff(prepend=false.new_zeros(1)) * (above + found) / 2).sum()
    return float(area / (positives * negatives))


def d_prime(auc: float, pairs: int | None = None) -> float:
    """sqrt(2) z(auc): how far two unit normal distributions with this AUC lie apart.

    At 0 and 1 this is infinite. With `pairs`, an AUC is taken as at least half a pair from 0 and from 1, the
    usual correction; without, infinity is what comes.

    Args:
        auc: 0..1.
        pairs: (positive, negative) pairs that the AUC was counted from.

    Raises:
        ValueError: an AUC outside 0..1.
    """
    if not 0 <= auc <= 1:
        raise ValueError(f"auc={auc} must lie in 0..1")
    if pairs is not None:
        auc = min(max(auc, 0.5 / pairs), 1 - 0.5 / pairs)
    z = torch.special.ndtri(torch.tensor(auc, dtype=torch.float64))
    return float(2**0.5 * z)


def chance_ap(positives: int, samples: int) -> float:
    """Average precision that random orders reach on average: above the share of positives, most where few.

    Args:
        positives: P.
        samples: N.
    """
    if samples == 1:
        return 1.0
    harmonic = float((1 / torch.arange(1, samples + 1, dtype=torch.float64)).sum()) / samples
    return harmonic + (positives - 1) / (samples - 1) * (1 - harmonic)


def _at_thresholds(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(positives, samples) float64 that score at least as high as each distinct score, falling."""
    values, order = scores.sort(descending=True, stable=True)
    last = torch.ones_like(values, dtype=torch.bool)
    last[:-1] = values[1:] != values[:-1]
    taken = torch.arange(1, len(values) + 1, dtype=torch.float64)
    return right[order].double().cumsum(0)[last], taken[last]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
