"""Zero-shot classification metrics: embeddings of anything, one embedding per class, labels -> numbers.

Letters: N samples, C classes, E embedding dim.
Source: Radford et al. 2021 (CLIP), section 3.1; Beyer et al. 2020 (ReaL) for several right labels; names of
the metrics as CLIP_benchmark writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmvit.evaluators.classification import rank_metrics, right_classes
from mmvit.evaluators.ranking import positive_ranks, score_blocks
from mmvit.evaluators.samples import names_in
from mmvit.search import exact
from mmvit.search.rows import unit_rows


def zero_shot_metrics(embeddings: Tensor, class_embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics in 0..1: "acc1", "acc5", "mean_per_class_recall", "chance_acc1", "chance_acc5"; and counts.

    "mean_per_class_recall" is top-1 per class averaged over the classes that occur; it is left out when
    samples have several labels. "without_label" counts samples that were left out because no class is right.

    Args:
        embeddings: (N,E) of pictures, clips, sounds: whatever is to be named.
        class_embeddings: (C,E), one per class.
        labels: (N,) int64 class numbers, -1 = none of the classes; or (N,C) bool, every right class of a
            sample.

    Raises:
        ValueError: shapes that disagree, a label outside 0..C-1, or no sample with a label.
    """
    classes = len(class_embeddings)
    right = right_classes(labels, len(embeddings), classes)
    known = right.any(1)
    if not known.any():
        raise ValueError(f"none of the {len(embeddings)} samples has a label among the {classes} classes")
    right, embeddings = right[known], embeddings[known]
    parts = [
        positive_ranks(scores, right[start : start + len(scores)].to(scores.device))[:, 0].cpu()
        for start, scores in score_blocks(embeddings, class_embeddings)
    ]
    metrics = rank_metrics(torch.cat(parts), right, labels.cpu()[known] if labels.ndim == 1 else None)
    return metrics | {"without_label": int((~known).sum())}


def predictions(embeddings: Tensor, class_embeddings: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """(cosines (N,k) float32 descending, class numbers (N,k) int64); k is cut to the number of classes."""
    rows = unit_rows(class_embeddings, "class embeddings")
    scores, ids = exact.top_k(unit_rows(embeddings), rows, min(k, len(rows)))
    return torch.from_numpy(scores), torch.from_numpy(ids)


def label_numbers(labels: Sequence[str | Sequence[str] | None], classes: Sequence[str]) -> Tensor:
    """(N,) int64 class numbers, -1 = not in the list; (N,C) bool once a sample carries a list of labels.

    Args:
        labels: per sample a label, a list of labels, or None.
        classes: C labels.
    """
    number = {label: i for i, label in enumerate(classes)}
    if all(label is None or isinstance(label, str) for label in labels):
        return torch.tensor([number.get(label, -1) if isinstance(label, str) else -1 for label in labels])
    right = torch.zeros(len(labels), len(classes), dtype=torch.bool)
    for i, label in enumerate(labels):
        for name in names_in(label):
            if name in number:
                right[i, number[name]] = True
    return right
