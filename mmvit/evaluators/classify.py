"""A classifier on the samples of shards: the logits of several views of each, as one score a class.

Letters: N samples, V views of a sample, C classes.
Source: VATT (arXiv:2104.11178) section 4.2.1: 4 clips x 3 crops, logits averaged before the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mmvit.data.classes import ClassList, labels_in
from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import read_all
from mmvit.evaluators.classification import Aggregate, average_views, class_metrics
from mmvit.evaluators.embed import Embedded, autocast, evaluating, gather
from mmvit.evaluators.media import FEATURES, embed_media, having, name_of
from mmvit.evaluators.multilabel import multilabel_metrics
from mmvit.evaluators.samples import drawn_rows
from mmvit.evaluators.zero_shot import label_numbers
from mmvit.models.classifier import Classifier
from mmvit.types import Batch

Modality = Literal["image", "video", "audio"]


@dataclass
class Classified:
    """N samples as a classifier sees them.

    Attributes:
        scores: (N,C) float32, larger = likelier; views averaged.
        labels: (N,) int64 class numbers, -1 = not stated or not in the list; or (N,C) bool, every right one.
        found: keys, JSON and what was skipped, in the order of the rows.
    """

    scores: Tensor
    labels: Tensor
    found: Embedded


def classify_split(
    model: Classifier,
    urls: str,
    preprocess: ImagePreprocess | ClipPreprocess,
    modality: Modality,
    classes: ClassList,
    *,
    views: int = 1,
    crops: int = 1,
    agg: Aggregate = "logits",
    precision: str = "fp32",
    at_once: int = 64,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Classified:
    """The samples of shards, each named from evenly spaced windows and, of clips, several crops of each.

    Args:
        model: on the device that is to compute.
        urls: shard pattern(s).
        preprocess: what the model is fed through.
        modality: what is classified; pictures have one view.
        classes: as `classify_samples` takes them, and all behind.
        views: windows of a clip or a sound.
        crops: of every window of a clip.
        agg: see there.
        precision: see there.
        at_once: see there.
        workers: processes that read ahead, for this rank.
        rank: this process, 0..world_size-1.
        world_size: processes that share the samples.
        progress: see there.

    Raises:
        ValueError, UserError: as `classify_samples` and `read_all`.
    """
    several: dict[str, Any] = {} if modality == "image" else {"views": views}
    several |= {"crops": crops} if modality == "video" else {}
    count = math.prod(several.values())
    fed: dict[str, Any] = {"preprocess" if isinstance(preprocess, ImagePreprocess) else "clip": preprocess}
    with read_all(
        urls,
        batch_size=max(1, at_once // max(1, count)),
        rank=rank,
        world_size=world_size,
        workers=workers,
        fields=(modality, "meta"),
        **fed,
        **several,
    ) as batches:
        return classify_samples(
            model,
            batches,
            modality,
            classes,
            views=count,
            agg=agg,
            precision=precision,
            at_once=at_once,
            progress=progress,
        )


def classify_samples(
    model: Classifier,
    batches: Iterable[Batch],
    modality: Modality,
    classes: ClassList,
    *,
    views: int = 1,
    agg: Aggregate = "logits",
    precision: str = "fp32",
    at_once: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Classified:
    """Every sample of all ranks once, named from the mean over its views.

    Args:
        model: on the device that is to compute.
        batches: of `read_all` with the modality and "meta" among its fields.
        modality: the field that is classified; samples that lack it are left out.
        classes: names of the logits and where the right ones stand.
        views: of each sample in the batches, windows times crops; 1 = none stacked.
        agg: what is averaged: logits, or probs (softmax, sigmoids with several labels a sample).
        precision: fp32, bf16 or fp16 (autocast).
        at_once: views that go through the tower together.
        progress: called with the number of samples after each batch.

    Raises:
        ValueError: another number of classes than the model has.
        UserError: no sample has the modality.
    """
    if len(classes.names) != model.config.num_classes:
        raise ValueError(f"{len(classes.names)} class names for {model.config.num_classes} logits")
    device = model.head.weight.device

    def encode(x: Tensor) -> dict[str, Tensor]:
        field: dict[str, Any] = {modality: x.to(device)}
        with evaluating(model), autocast(device, precision):
            return {FEATURES: model(model.inputs(Batch(keys=[], **field), modality))}

    part = embed_media(batches, {modality: encode}, stacked=views > 1, at_once=at_once, progress=progress)
    found = gather(part)
    found = drawn_rows(found, having(found, modality).nonzero()[:, 0].tolist())
    logits = found.embeddings[name_of(modality, FEATURES)]
    if agg == "probs" and classes.multi:
        logits, agg = logits.sigmoid(), "logits"
    return Classified(average_views(logits, agg), _labels(found.meta, classes), found)


def classification_metrics(scores: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Metrics of `class_metrics`, and of `multilabel_metrics` where samples may have several labels.

    Args:
        scores: (N,C).
        labels: (N,) or (N,C) bool, see `Classified`.
        names: C.

    Raises:
        ValueError: no sample with a label.
    """
    metrics = class_metrics(scores, labels)
    if labels.ndim == 2:
        metrics |= multilabel_metrics(scores, labels, names).metrics
    return metrics


def _labels(metas: Sequence[dict[str, Any]], classes: ClassList) -> Tensor:
    if classes.multi:
        return classes.targets(metas)[0] > 0
    stated = [labels_in(meta, classes.field) for meta in metas]
    single = [labels[0] if labels and len(labels) == 1 else None for labels in stated]
    return label_numbers(single, classes.names)
