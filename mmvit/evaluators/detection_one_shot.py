"""One-shot detection: a box in one picture asks, its like is searched in all others.

Protocol: a category takes part if two pictures show it. Its query is one of its boxes, drawn with a seed; the
picture it was drawn from does not count for this category, neither what is found in it nor what is there. All
queries are asked of all pictures at once. Several draws are measured apart and averaged.
Source: OWL-ViT (arXiv:2205.06230) section 4.4 and appendix A1.7.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvit.data.detection import read_detection
from mmvit.data.image import ImagePreprocess
from mmvit.errors import UserError
from mmvit.evaluators.detection import Protocol, evaluate
from mmvit.evaluators.detection_split import Picture, Searched, encode, gathered, pictures
from mmvit.evaluators.detection_truth import Truth, label_counts, read_truth
from mmvit.evaluators.image_text import read_facts
from mmvit.models.find import find
from mmvit.models.image_query import Choice, choose
from mmvit.models.owl import OwlDetector
from mmvit.types import Batch, Candidates, Detections


@dataclass(frozen=True)
class Reference:
    """The box that asks for a category.

    Attributes:
        picture: number of the sample over all shards.
        box: which of the picture's boxes of this category, from 0.
    """

    picture: int
    box: int


def draw_references(truths: Mapping[int, Truth], names: Sequence[str], seed: int) -> dict[str, Reference]:
    """Category -> its query, for those that at least two pictures show; drawn by seed and category alone.

    Args:
        truths: number of a picture -> its annotations.
        names: of the categories that the truths number.
        seed: another one draws other boxes.
    """
    there: dict[int, list[Reference]] = {}
    for picture in sorted(truths):
        for label in sorted(set(truths[picture].labels.tolist())):
            boxes = _boxes_of(truths[picture], label)
            there.setdefault(label, []).extend(Reference(picture, i) for i in range(len(boxes)))
    return {
        names[label]: random.Random(f"{seed}/{names[label]}").choice(references)
        for label, references in sorted(there.items())
        if len({reference.picture for reference in references}) > 1
    }


def one_shot(
    model: OwlDetector,
    urls: str,
    *,
    preprocess: ImagePreprocess,
    draws: int = 1,
    seed: int = 0,
    choice: Choice = "background-unlike",
    top_k: int = 300,
    batch_size: int = 16,
    precision: str = "fp32",
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Searched]:
    """What every draw's queries found in all pictures but their own; every rank gets all.

    Args:
        model: bare, on the device that is to compute.
        urls: shard pattern(s).
        preprocess: the model's own.
        draws: how many times queries are drawn, with seeds `seed`, `seed` + 1, …
        seed: of the first draw.
        choice: which token stands for a box, see `models.image_query.choose`.
        top_k: pairs of a token and a category that are kept of each picture.
        batch_size: pictures at once on this rank.
        precision: of the towers: fp32, bf16 or fp16.
        workers: processes that decode ahead.
        rank: of this process.
        world_size: processes; their group must be initialised when there are several.
        progress: called with the number of pictures after each batch; they pass twice.

    Raises:
        UserError: no shards, or no category that two pictures show.
    """
    reading: dict[str, Any] = {
        "preprocess": preprocess,
        "batch_size": batch_size,
        "rank": rank,
        "world_size": world_size,
        "workers": workers,
    }
    asked = _references(urls, draws, seed)
    queries: dict[tuple[int, str], Tensor] = {}
    with read_detection(urls, **reading) as loader:
        for batch in loader:
            queries |= _embed(model, batch, asked, preprocess, choice, precision)
            if progress is not None:
                progress(len(batch))
    queries = _shared(queries)
    names = [[name for name in there if (d, name) in queries] for d, there in enumerate(asked)]
    rows = [torch.stack([queries[d, name] for name in there]) for d, there in enumerate(names)]
    found: list[list[Picture]] = [[] for _ in asked]
    with read_detection(urls, **reading) as loader:
        for batch, candidates in encode(model, loader, precision):
            for d, there in enumerate(names):
                best = find(candidates, rows[d].to(candidates.boxes.device), top_k=top_k)
                numbered = {name: i for i, name in enumerate(there)}
                for picture in pictures(batch, best, preprocess, there, numbered):
                    own = [i for i, name in enumerate(there) if asked[d][name].picture == picture[0]]
                    found[d].append(_without(picture, own))
            if progress is not None:
                progress(len(batch))
        skipped = dict(loader.skipped)
    return [gathered(part, skipped, there, urls) for part, there in zip(found, names, strict=True)]


def one_shot_metrics(
    searched: Sequence[Searched], protocol: Protocol = "coco", seen: Collection[str] | None = None
) -> dict[str, float]:
    """Metrics of `evaluate` as means over the draws, with their standard deviation "AP50_std"; and counts.

    Args:
        searched: of `one_shot`.
        protocol: whose rules.
        seen: as `evaluate` takes it.
    """
    measured = [
        evaluate(s.predictions, s.truths, s.categories, protocol=protocol, seen=seen).metrics
        for s in searched
    ]
    common = set(measured[0]).intersection(*measured)
    means = {name: float(np.mean([m[name] for m in measured])) for name in measured[0] if name in common}
    if len(measured) > 1:
        means["AP50_std"] = float(np.std([m["AP50"] for m in measured], ddof=1))
    return means | {"draws": len(measured)}


def _references(urls: str, draws: int, seed: int) -> list[dict[str, Reference]]:
    """The queries of every draw, from the JSON of all pictures."""
    facts = read_facts(urls, captions=None)
    names = list(label_counts(facts.meta))
    numbered = {name: i for i, name in enumerate(names)}
    truths = {
        number: read_truth(meta, numbered)
        for number, meta in zip(facts.index.tolist(), facts.meta, strict=True)
    }
    asked = [draw_references(truths, names, seed + d) for d in range(draws)]
    if not asked or not asked[0]:
        raise UserError(f"{urls}: no label has boxes in two pictures: nothing to ask for with a box")
    return asked


def _embed(
    model: OwlDetector,
    batch: Batch,
    asked: Sequence[Mapping[str, Reference]],
    preprocess: ImagePreprocess,
    choice: Choice,
    precision: str,
) -> dict[tuple[int, str], Tensor]:
    """(draw, category) -> embedding (E,) of the queries whose boxes lie in pictures of this batch."""
    assert batch.meta is not None
    assert batch.image is not None
    rows = {int(meta["__index__"]): i for i, meta in enumerate(batch.meta)}
    wanted = []
    for d, there in enumerate(asked):
        for name, reference in there.items():
            if reference.picture in rows:
                row = rows[reference.picture]
                truth = read_truth(batch.meta[row], {name: 0})
                boxes = preprocess.placement(*truth.size).to_fractions(torch.from_numpy(_boxes_of(truth, 0)))
                if reference.box < len(boxes):
                    wanted.append((d, name, row, boxes[reference.box].float()))
    if not wanted:
        return {}
    used = sorted({row for _, _, row, _ in wanted})
    part = Batch(
        [batch.keys[row] for row in used],
        image=batch.image[used],
        regions=None if batch.regions is None else batch.regions[used],
    )
    ((_, candidates),) = encode(model, [part], precision)
    return {
        (d, name): choose(_only(candidates, used.index(row)), [box], choice).embeddings[0].cpu()
        for d, name, row, box in wanted
    }


def _boxes_of(truth: Truth, label: int) -> Any:
    """(m,4) boxes of one category, crowds left out."""
    return truth.boxes[(truth.labels == label) & ~truth.crowd]


def _only(candidates: Candidates, row: int) -> Candidates:
    """The candidates of one picture of a batch."""
    cut: dict[str, Any] = {
        f.name: value[row : row + 1]
        for f in dataclasses.fields(candidates)
        if isinstance(value := getattr(candidates, f.name), Tensor)
    }
    return dataclasses.replace(candidates, **cut)


def _without(picture: Picture, labels: Collection[int]) -> Picture:
    """The picture as if these categories had not been asked there and were not there."""
    number, found, truth = picture
    if not labels:
        return picture
    gone = list(labels)
    real = ~torch.isin(found.labels, torch.tensor(gone))
    kept = ~np.isin(truth.labels, gone)
    rest = {name: getattr(truth, name)[kept] for name in ("boxes", "labels", "crowd", "area")}
    found = Detections(found.boxes[real], found.scores[real], found.labels[real], found.query)
    return number, found, dataclasses.replace(truth, **rest)


def _shared(queries: dict[tuple[int, str], Tensor]) -> dict[tuple[int, str], Tensor]:
    """The embeddings that all ranks made."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return queries
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, queries)
    return {key: value for part in parts for key, value in part.items()}
