"""A detector over the pictures of shards: what it finds for every category, beside what is really there.

Every category is asked of every picture; the best pairs over all tokens and categories count, without
suppression and without a threshold. Letters: I pictures, C categories, P prompts of each, E embedding width.
Source: OWL-ViT (arXiv:2205.06230) section 4.1 and appendix A1.7 (prompt ensembling).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmvit.boxes import Placement, clip, to_xyxy
from mmvit.data.annotations import canonical
from mmvit.data.detection import read_detection
from mmvit.data.image import ImagePreprocess
from mmvit.data.shards import ShardIndex
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.evaluators.detection_truth import Truth, label_counts, read_truth
from mmvit.evaluators.embed import autocast, evaluating
from mmvit.evaluators.image_text import read_facts
from mmvit.evaluators.prompts import Classes, class_embeddings, resolve_classes, resolve_templates
from mmvit.models.find import Found, find
from mmvit.models.owl import OwlDetector
from mmvit.types import Batch, Candidates, Detections

Ensemble = Literal["logit", "prob", "embed"]
TOP_K = 300


@dataclass
class Searched:
    """I pictures of shards with what was found in them, in the order of the shards.

    Attributes:
        index: number of each picture over all shards.
        predictions: labels are category numbers, boxes pixels of the picture.
        truths: its annotations.
        categories: C canonical names.
        skipped: bad samples that were left out, by reason.
    """

    index: list[int]
    predictions: list[Detections]
    truths: list[Truth]
    categories: list[str]
    skipped: dict[str, int] = field(default_factory=dict)


def detect_split(
    model: OwlDetector,
    tokenizer: Tokenizer,
    urls: str,
    *,
    preprocess: ImagePreprocess,
    classes: Classes | None = None,
    templates: str | Sequence[str] = "clip7",
    ensemble: Ensemble = "logit",
    top_k: int = TOP_K,
    batch_size: int = 16,
    precision: str = "fp32",
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Searched:
    """All pictures of the shards; every rank gets all, each computes its share.

    Args:
        model: bare, on the device that is to compute.
        tokenizer: the model's own.
        urls: shard pattern(s).
        preprocess: the model's own.
        classes: what is asked: names, or name -> synonyms; None = `labels_of` the data.
        templates: a named set or a list.
        ensemble: what is averaged over a category's prompts: logits, probabilities or embeddings.
        top_k: pairs of a token and a category that are kept of each picture.
        batch_size: pictures at once on this rank.
        precision: of the towers: fp32, bf16 or fp16.
        workers: processes that decode ahead.
        rank: of this process.
        world_size: processes; their group must be initialised when there are several.
        progress: called with the number of pictures after each batch.

    Raises:
        UserError: no shards, or none with a usable picture.
        ValueError: bad classes or templates, or an ensemble that the synonyms do not allow.
    """
    names = labels_of(urls) if classes is None else classes
    resolved = resolve_classes(names)
    categories = {canonical(name): i for i, name in enumerate(resolved)}
    if len(categories) < len(resolved):
        raise ValueError(f"of the {len(resolved)} classes some differ only in case or punctuation")
    rows, prompts = query_rows(model, tokenizer, resolved, templates, ensemble, precision)
    found: list[Picture] = []
    with read_detection(
        urls,
        preprocess=preprocess,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        workers=workers,
    ) as loader:
        for batch, candidates in encode(model, loader, precision):
            best = find(candidates, rows, top_k=top_k, prompts=prompts, ensemble=_averaged(ensemble))
            found += pictures(batch, best, preprocess, list(categories), categories)
            if progress is not None:
                progress(len(batch))
        skipped = dict(loader.skipped)
    return gathered(found, skipped, list(categories), urls)


Picture = tuple[int, Detections, Truth]


def labels_of(urls: str) -> list[str]:
    """The categories that the shards state, or every label that has a box in them; canonical and sorted.

    Shards made from COCO or LVIS state theirs, those without a box too. No picture is decoded.

    Raises:
        UserError: no shards, or none with boxes.
    """
    if stated := stated_categories(urls):
        return sorted(stated)
    found = list(label_counts(read_facts(urls, captions=None).meta))
    if not found:
        raise UserError(f"{urls} holds no boxes: a sample's JSON lists them under objects")
    return found


def stated_categories(urls: str) -> dict[str, str]:
    """Canonical name -> "r", "c", "f" or "" (unknown), where the index.json of all shards lists categories.

    Raises:
        UserError: no shards.
    """
    metas = [meta for pattern in urls.split("::") for meta in ShardIndex.open(pattern.strip()).metas]
    if not metas or not all(meta.get("categories") for meta in metas):
        return {}
    return {
        canonical(category["name"]): category.get("frequency", "")
        for meta in metas
        for category in meta["categories"]
    }


@torch.no_grad()
def query_rows(
    model: OwlDetector,
    tokenizer: Tokenizer,
    classes: Classes,
    templates: str | Sequence[str] = "clip7",
    ensemble: Ensemble = "logit",
    precision: str = "fp32",
) -> tuple[Tensor, int]:
    """(C*P,E) query embeddings, the P prompts of a category one after the other, and P.

    Args:
        model: the detector.
        tokenizer: its own.
        classes: names, or name -> synonyms; they are asked in their canonical form.
        templates: a named set or a list.
        ensemble: "embed" averages the embeddings, so that P is 1.
        precision: fp32, bf16 or fp16.

    Raises:
        ValueError: bad classes or templates, or, without "embed", different numbers of synonyms.
    """
    groups = [[canonical(n) for n in names] for names in resolve_classes(classes).values()]
    encode_text = _text_encoder(model, tokenizer, precision)
    if ensemble == "embed":
        numbered = {str(i): names for i, names in enumerate(groups)}
        return class_embeddings(encode_text, numbered, templates), 1
    if len({len(names) for names in groups}) > 1:
        raise ValueError(
            f"ensemble={ensemble!r} needs as many synonyms for one class as for the others: use 'embed'"
        )
    filled = resolve_templates(templates)
    texts = [t.replace("{}", name) for names in groups for name in names for t in filled]
    return encode_text(texts), len(texts) // len(groups)


def encode(
    model: OwlDetector, batches: Iterable[Batch], precision: str = "fp32"
) -> Iterator[tuple[Batch, Candidates]]:
    """Every batch with its candidates, on the model's device; modules get their own mode back in between."""
    device = device_of(model)
    for batch in batches:
        assert batch.image is not None, "the batch carries no pictures"
        regions = None if batch.regions is None else batch.regions.to(device)
        with evaluating(model), autocast(device, precision):
            candidates = model.encode_image(batch.image.to(device), regions)
        yield batch, candidates


def pictures(
    batch: Batch,
    found: Found,
    preprocess: ImagePreprocess,
    names: list[str],
    categories: dict[str, int],
) -> list[Picture]:
    """(number, detections, truth) of each picture of a batch."""
    assert batch.meta is not None, "the batch carries no JSON"
    made = []
    for i, (key, meta) in enumerate(zip(batch.keys, batch.meta, strict=True)):
        truth = read_truth(meta, categories, key)
        place = preprocess.placement(*truth.size)
        row = Found(*(value[i].cpu() for value in found))
        made.append((int(meta["__index__"]), to_detections(row, place, names), truth))
    return made


def to_detections(found: Found, place: Placement, query: list[Any]) -> Detections:
    """One picture's results (K,) with boxes in its own pixels, cut at its borders; what is outside is gone.

    Args:
        found: scores (K,), labels (K,), boxes (K,4).
        place: of the picture in its tensor.
        query: what the labels number.
    """
    boxes = clip(place.to_pixels(to_xyxy(found.boxes.double())), place.picture).float()
    real = (found.labels >= 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(boxes[real], found.scores[real], found.labels[real], query)


def gathered(part: list[Picture], skipped: dict[str, int], categories: list[str], urls: str) -> Searched:
    """All ranks' pictures on every rank, in shard order, none twice.

    Raises:
        UserError: there is none.
    """
    parts: list[Any] = [(part, skipped)]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (part, skipped))
    numbered = {number: (found, truth) for found_there, _ in parts for number, found, truth in found_there}
    missing: Counter[str] = Counter()
    for _, counts in parts:
        missing.update(counts)
    if not numbered:
        raise UserError(f"{urls} holds no usable picture; skipped: {dict(missing) or 'none'}")
    index = sorted(numbered)
    return Searched(
        index,
        [numbered[i][0] for i in index],
        [numbered[i][1] for i in index],
        categories,
        dict(missing),
    )


def device_of(model: OwlDetector) -> torch.device:
    """Where the model computes."""
    return next(model.parameters()).device


def _averaged(ensemble: Ensemble) -> Literal["logit", "prob"]:
    return "prob" if ensemble == "prob" else "logit"


def _text_encoder(
    model: OwlDetector, tokenizer: Tokenizer, precision: str, batch_size: int = 256
) -> Callable[[list[str]], Tensor]:
    device = device_of(model)

    def encode_text(texts: list[str]) -> Tensor:
        rows = []
        with evaluating(model), autocast(device, precision):
            for start in range(0, len(texts), batch_size):
                tokens = tokenizer(texts[start : start + batch_size])
                rows.append(model.encode_queries(tokens.ids.to(device), tokens.mask.to(device)).float())
        return torch.cat(rows)

    return encode_text
