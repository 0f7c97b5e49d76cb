"""The two tasks over shards: embed once, then name the pictures, and find either side by the other.

Letters: N samples, T texts, C classes, E embedding dim.
Used by `eval/zero_shot.py`, `eval/retrieval.py` and by recipes during training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.data.captions import group_of
from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import read_all
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.evaluators.embed import Embedded, TextEncoder, embed_samples, gather, image_encoder, text_encoder
from mmvit.evaluators.prompts import Classes, class_embeddings, resolve_classes, resolve_templates
from mmvit.evaluators.retrieval import approximate_metrics, first_of_each, group_numbers, retrieval_metrics
from mmvit.evaluators.zero_shot import label_numbers, zero_shot_metrics
from mmvit.models.lit import DualEncoder


@dataclass
class Named:
    """What `zero_shot` found: metrics, and what they were made from.

    Attributes:
        metrics: of `zero_shot_metrics`.
        classes: C labels.
        templates: the templates that were filled.
        bank: (C,E) class embeddings.
        labels: (N,) int64 class numbers or (N,C) bool.
    """

    metrics: dict[str, float]
    classes: list[str]
    templates: tuple[str, ...]
    bank: Tensor
    labels: Tensor


@dataclass
class Retrieved:
    """What `retrieval` found: metrics, and what they were made from.

    Attributes:
        metrics: of `retrieval_metrics`.
        texts: T captions.
        bank: (T,E) text embeddings.
        groups: (N,) of the pictures and (T,) of the texts; equal = right.
        approximate: of `approximate_metrics` per direction, empty when the index is exact.
    """

    metrics: dict[str, float]
    texts: list[str]
    bank: Tensor
    groups: tuple[Tensor, Tensor]
    approximate: dict[str, Any]


def embed_pictures(
    model: DualEncoder,
    urls: str,
    *,
    preprocess: ImagePreprocess,
    batch_size: int = 64,
    precision: str = "fp32",
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cached: bool = False,
    captions: str | None = "first",
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """All samples of the shards with `embeddings["image"]`; every rank gets all, each computes its share.

    Args:
        model: the bare pair of towers, on the device that is to compute.
        urls: shard pattern(s).
        preprocess: the model's own.
        batch_size: pictures at once on this rank.
        precision: fp32, bf16 or fp16.
        workers: processes that decode ahead.
        rank: of this process.
        world_size: processes; their group must be initialised when there are several.
        cached: read the image tower's cached features instead of pictures (the caller has checked whose
            they are).
        captions: "first", "all", or None when texts are not needed.
        progress: called with the number of samples after each batch.

    Raises:
        UserError: no shards, fields they do not have, or no usable sample.
    """
    fields = ["image_embedding" if cached else "image", "meta"] + (["text"] if captions else [])
    with read_all(
        urls,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        workers=workers,
        fields=fields,
        preprocess=preprocess,
        caption="all" if captions == "all" else "first",
        embedding_dim=model.image.width if cached else None,
    ) as loader:
        part = embed_samples(loader, {"image": image_encoder(model, precision)}, progress)
        part.skipped = dict(loader.skipped)
    whole = gather(part)
    if not len(whole):
        raise UserError(f"{urls} holds no usable sample; skipped: {whole.skipped or 'none'}")
    return whole


def read_facts(urls: str, *, captions: str | None = "first") -> Embedded:
    """All samples of the shards without embeddings: keys, captions and JSON, no picture decoded.

    Args:
        urls: shard pattern(s).
        captions: "first", "all", or None when texts are not needed.

    Raises:
        UserError: no shards.
    """
    fields = ["meta"] + (["text"] if captions else [])
    with read_all(
        urls, batch_size=512, fields=fields, caption="all" if captions == "all" else "first"
    ) as loader:
        return embed_samples(loader, {})


def with_image(facts: Embedded, index: Tensor, embeddings: Tensor) -> Embedded:
    """The samples of `facts` that `index` (N,) numbers, with their image embeddings (N,E)."""
    row = {int(number): i for i, number in enumerate(index)}
    kept = [i for i, number in enumerate(facts.index.tolist()) if number in row]
    rows = [row[int(facts.index[i])] for i in kept]
    return Embedded(
        facts.index[kept],
        [facts.keys[i] for i in kept],
        {"image": embeddings[rows]},
        [facts.captions[i] for i in kept],
        [facts.meta[i] for i in kept],
    )


def drawn(pictures: Embedded, count: int, seed: int = 0) -> Embedded:
    """`count` samples drawn with a seed, in their old order; all of them when there are no more."""
    if count >= len(pictures):
        return pictures
    rows = sorted(random.Random(seed).sample(range(len(pictures)), count))
    return Embedded(
        pictures.index[rows],
        [pictures.keys[i] for i in rows],
        {name: values[rows] for name, values in pictures.embeddings.items()},
        [pictures.captions[i] for i in rows],
        [pictures.meta[i] for i in rows],
        skipped=pictures.skipped,
    )


def zero_shot(
    model: DualEncoder,
    tokenizer: Tokenizer,
    pictures: Embedded,
    *,
    classes: Classes | None = None,
    templates: str | Sequence[str] = "default",
    label: str = "label",
    precision: str = "fp32",
    encode: TextEncoder | None = None,
) -> Named:
    """Top-1, top-5 and per-class mean of naming the pictures.

    Args:
        model: the pair of towers.
        tokenizer: its own.
        pictures: of `embed_pictures`.
        classes: labels, or label -> names in prompts; None = the labels that occur in the data, sorted.
        templates: a named set or a list.
        label: field of the samples' JSON: a label or a list of labels; numbers count as text.
        precision: fp32, bf16 or fp16.
        encode: texts -> embeddings in place of `model` and `tokenizer`, where some are known already.

    Raises:
        UserError: no sample carries the field, or none a label of the list.
        ValueError: bad classes or templates.
    """
    found = [_label(meta.get(label)) for meta in pictures.meta]
    if not any(found):
        raise UserError(f"no sample's JSON has the field {label!r}: name the right one with --label")
    resolved = resolve_classes(sorted(_distinct(found)) if classes is None else classes)
    numbers = label_numbers(found, list(resolved))
    bank = class_embeddings(encode or text_encoder(model, tokenizer, precision), resolved, templates)
    try:
        metrics = zero_shot_metrics(pictures.embeddings["image"], bank, numbers)
    except ValueError as error:
        raise UserError(f"{error}; the data's labels look like {sorted(_distinct(found))[:3]}") from None
    return Named(metrics, list(resolved), resolve_templates(templates), bank, numbers)


def retrieval(
    model: DualEncoder,
    tokenizer: Tokenizer,
    pictures: Embedded,
    *,
    group_by: str = "text",
    dedup: bool = False,
    index: str = "flat",
    precision: str = "fp32",
    encode: TextEncoder | None = None,
) -> Retrieved:
    """Retrieval both ways between the pictures and all their captions.

    Args:
        model: the pair of towers.
        tokenizer: its own.
        pictures: of `embed_pictures` with captions.
        group_by: what makes a caption right for a picture: "text" (equal captions, whatever the case),
            "sample" (its own captions only, the COCO protocol), or a field of the JSON such as "label".
        dedup: keep each distinct caption once.
        index: "flat", or a FAISS factory string that is compared with it.
        precision: fp32, bf16 or fp16.
        encode: as `zero_shot` takes it.

    Raises:
        UserError: the shards carry no captions, or "text" with several captions per sample.
        ValueError: a factory string that FAISS cannot make.
    """
    texts = [text for captions in pictures.captions for text in captions]
    owner = [i for i, captions in enumerate(pictures.captions) for _ in captions]
    if not texts:
        raise UserError("the shards carry no captions: retrieval needs KEY.txt members")
    group_image, group_text = _groups(pictures, texts, owner, group_by)
    if dedup:
        kept = first_of_each([group_of(text) for text in texts])
        texts, group_text = [texts[i] for i in kept], group_text[kept]
    bank = (encode or text_encoder(model, tokenizer, precision))(texts)
    images = pictures.embeddings["image"]
    metrics = retrieval_metrics(images, bank, group_image, group_text)
    approximate = {}
    if index != "flat":
        approximate = {
            "image_retrieval": approximate_metrics(bank, images, group_text, group_image, index),
            "text_retrieval": approximate_metrics(images, bank, group_image, group_text, index),
        }
    return Retrieved(metrics, texts, bank, (group_image, group_text), approximate)


def _groups(pictures: Embedded, texts: list[str], owner: list[int], group_by: str) -> tuple[Tensor, Tensor]:
    """(N,) and (T,) int64 of pictures and texts."""
    owners = torch.tensor(owner, dtype=torch.int64)
    if group_by == "sample":
        return torch.arange(len(pictures)), owners
    if group_by == "text":
        if len(texts) != len(pictures):
            raise UserError("several captions per sample: use --group-by sample, or a field such as label")
        image = torch.tensor([group_of(captions[0]) for captions in pictures.captions])
        return image, image[owners]
    values = [meta.get(group_by) for meta in pictures.meta]
    if all(value is None for value in values):
        raise UserError(
            f"no sample's JSON has the field {group_by!r}: use --group-by text, sample or a field"
        )
    # A sample without the field is alone in its group.
    (image,) = group_numbers([str(v) if v is not None else ("", i) for i, v in enumerate(values)])
    return image, image[owners]


def _label(value: Any) -> str | list[str] | None:
    """A label, a list of labels, or None for what cannot be one."""
    if isinstance(value, str | int | float):
        return str(value).strip() or None
    if isinstance(value, list):
        return [name for name in map(_label, value) if isinstance(name, str)]
    return None


def _distinct(labels: Sequence[str | Sequence[str] | None]) -> set[str]:
    return {name for label in labels if label for name in ([label] if isinstance(label, str) else label)}
