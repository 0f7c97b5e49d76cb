"""How well a linear probe names held-out samples: by folds of one set, or from a training to a test set.

Letters: N samples, V views of a sample, D features, C classes.
Every view of a training sample is an example; a test sample is named once, from the mean over its views.
Source: ESC-50's protocol for folds (the mean of the folds, nothing chosen on the test fold).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmvit.evaluators.classification import Aggregate, average_views, class_metrics
from mmvit.evaluators.multilabel import multilabel_metrics
from mmvit.evaluators.probe import Linear, choose_strength, fit_logistic, fit_low_rank

HeadKind = Literal["logistic", "low_rank"]


@dataclass
class Probed:
    """What a probe said of held-out samples.

    Attributes:
        metrics: of `class_metrics`, and of `multilabel_metrics` where samples have several labels; of folds
            the mean, and "acc1_std", their deviation. "majority_acc1" is what the commonest class of the
            training samples reaches.
        scores: (N,C) float64, of each sample by the probe that did not see it.
        strengths: C of each fit, 0 for heads of low rank.
    """

    metrics: dict[str, float]
    scores: Tensor
    strengths: list[float]


def cross_validate(
    features: Tensor,
    labels: Tensor,
    classes: int,
    fold: Tensor,
    *,
    groups: Sequence[Hashable],
    head: HeadKind = "logistic",
    agg: Aggregate = "logits",
    seed: int = 0,
) -> Probed:
    """Each fold named by a probe of the others; the metrics are means over folds.

    Args:
        features: (N,V,D).
        labels: (N,) int64 class numbers, or (N,C) bool.
        classes: C.
        fold: (N,) int64.
        groups: N values that stay together where the strength is chosen.
        head: logistic regression, or VATT's head of low rank.
        agg: what is averaged over views.
        seed: of the choice, or of the head of low rank.

    Raises:
        ValueError: shapes that disagree, or a class that no other fold has.
    """
    _check_views(features, labels)
    scores = features.new_zeros(len(features), classes, dtype=torch.float64)
    parts: list[dict[str, float]] = []
    strengths = []
    for number in fold.unique().tolist():
        held = fold == number
        rows = (~held).nonzero()[:, 0]
        own = [groups[i] for i in rows.tolist()]
        probe = fit(features[rows], labels[rows], classes, groups=own, head=head, seed=seed)
        scores[held] = average_views(probe(features[held]), agg)
        _seen(labels[rows], labels[held])
        parts.append(_metrics(scores[held], labels[held], labels[rows]))
        strengths.append(probe.strength)
    shared = [key for key in parts[0] if all(key in part for part in parts)]
    metrics = {key: sum(part[key] for part in parts) / len(parts) for key in shared}
    metrics["acc1_std"] = float(torch.tensor([part["acc1"] for part in parts]).std(correction=0))
    # Counts are of all samples, not means of the folds.
    metrics |= {"n": len(features), "classes": classes, "folds": len(parts)}
    return Probed(metrics, scores, strengths)


def hold_out(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    groups: Sequence[Hashable],
    head: HeadKind = "logistic",
    agg: Aggregate = "logits",
    seed: int = 0,
) -> Probed:
    """The test samples named by a probe of the training samples; arguments as `cross_validate` takes them.

    Raises:
        ValueError: shapes that disagree, or a test class that training lacks.
    """
    _check_views(features, labels)
    _check_views(test_features, test_labels)
    _seen(labels, test_labels)
    probe = fit(features, labels, classes, groups=groups, head=head, seed=seed)
    scores = average_views(probe(test_features), agg)
    return Probed(_metrics(scores, test_labels, labels), scores, [probe.strength])


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    groups: Sequence[Hashable],
    head: HeadKind = "logistic",
    seed: int = 0,
) -> Linear:
    """A probe of features (N,V,D), every view an example with its sample's label.

    Raises:
        ValueError: an unknown head, or as `fit_logistic`.
    """
    views = features.shape[1]
    x, y = features.flatten(0, 1), labels.repeat_interleave(views, 0)
    if head == "low_rank":
        return fit_low_rank(x, y, classes, seed=seed)
    if head != "logistic":
        raise ValueError(f"head={head!r} must be logistic or low_rank")
    own = [group for group in groups for _ in range(views)]
    return fit_logistic(x, y, classes, choose_strength(x, y, classes, own, seed=seed))


def _metrics(scores: Tensor, labels: Tensor, trained: Tensor) -> dict[str, float]:
    """Of the held-out samples; `trained` are the labels that the probe was fitted to."""
    metrics = class_metrics(scores, labels)
    if labels.ndim == 1:
        metrics["majority_acc1"] = (labels == trained.bincount().argmax()).double().mean().item()
        return metrics
    return metrics | multilabel_metrics(scores, labels).metrics


def _seen(trained: Tensor, tested: Tensor) -> None:
    """Raises ValueError for a class that is asked and was never shown."""
    if tested.ndim == 1:
        missing = sorted(set(tested.tolist()) - set(trained.tolist()))
    else:
        missing = (tested.any(0) & ~trained.any(0)).nonzero()[:, 0].tolist()
    if missing:
        raise ValueError(
            f"{len(missing)} classes are held out but never in training, the first is number {missing[0]}: "
            "a probe cannot name them; group by another field or by sample, or leave out rare labels"
        )


def _check_views(features: Tensor, labels: Tensor) -> None:
    if features.ndim != 3 or len(features) != len(labels):
        raise ValueError(
            f"features must be (N,V,D) with N labels, got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
