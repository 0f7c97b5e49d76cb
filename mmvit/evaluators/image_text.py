"""The two tasks over shards: embed once, then name the pictures, and find either side by the other.

Letters: N samples, T texts, C classes, E embedding dim.
Used by `eval/zero_shot.py`, `eval/retrieval.py` and by recipes during training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.data.captions import group_of
from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import read_all
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.evaluators.embed import Embedded, TextEncoder, embed_samples, gather, image_encoder, text_encoder
from mmvit.evaluators.prompts import Classes, class_embeddings, resolve_classes, resolve_templates
from mmvit.evaluators.retrieval import approximate_metrics, first_of_each, retrieval_metrics
from mmvit.evaluators.samples import distinct_labels, labels_of, row_groups
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
    preprocess: ImagePreprocess | ClipPreprocess,
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
        model: the bare pair of towers, on the device that is to compute; what its first tower takes, sounds
            or clips too, is what is read and stands under "image".
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
    clip = preprocess if isinstance(preprocess, ClipPreprocess) else None
    fields = ["image_embedding" if cached else model.config.modality, "meta"] + (["text"] if captions else [])
    with read_all(
        urls,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        workers=workers,
        fields=fields,
        preprocess=preprocess if isinstance(preprocess, ImagePreprocess) else None,
        clip=None if cached else clip,
        caption="all" if captions == "all" else "first",
        embedding_dim=model.image.width if cached else None,
    ) as loader:
        part = embed_samples(loader, {"image": image_encoder(model, precision)}, progress)
        part.skipped = dict(loader.skipped)
    whole = gather(part)
    if not len(whole):
        raise UserError(f"{urls} holds no usable sample; skipped: {whole.skipped or 'none'}")
    return whole


def read_facts(urls: str, *, captions: str | None = "first", optional: bool = False) -> Embedded:
    """All samples of the shards without embeddings: keys, captions and JSON, no picture decoded.

    Args:
        urls: shard pattern(s).
        captions: "first", "all", or None when texts are not needed.
        optional: whether samples without a caption stay.

    Raises:
        UserError: no shards.
    """
    text = ["text"] if captions else []
    with read_all(
        urls,
        batch_size=512,
        fields=["meta", *text],
        optional=text if optional else [],
        caption="all" if captions == "all" else "first",
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
    return named(
        pictures,
        encode or text_encoder(model, tokenizer, precision),
        classes=classes,
        templates=templates,
        label=label,
    )


def named(
    samples: Embedded,
    encode: TextEncoder,
    embeddings: str = "image",
    *,
    classes: Classes | None = None,
    templates: str | Sequence[str] = "default",
    label: str = "label",
) -> Named:
    """As `zero_shot`, of samples of any modality: `embeddings` names theirs, `encode` embeds the prompts.

    Raises:
        UserError: as `zero_shot`.
        ValueError: likewise.
    """
    found = labels_of(samples, label)
    resolved = resolve_classes(sorted(distinct_labels(found)) if classes is None else classes)
    numbers = label_numbers(found, list(resolved))
    bank = class_embeddings(encode, resolved, templates)
    try:
        metrics = zero_shot_metrics(samples.embeddings[embeddings], bank, numbers)
    except ValueError as error:
        raise UserError(
            f"{error}; the data's labels look like {sorted(distinct_labels(found))[:3]}"
        ) from None
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
    names = (model.config.modality, "text")
    metrics = retrieval_metrics(images, bank, group_image, group_text, names)
    approximate = {}
    if index != "flat":
        approximate = {
            "image_retrieval": approximate_metrics(bank, images, group_text, group_image, index),
            "text_retrieval": approximate_metrics(images, bank, group_image, group_text, index),
        }
    return Retrieved(metrics, texts, bank, (group_image, group_text), approximate)


def _groups(pictures: Embedded, texts: list[str], owner: list[int], group_by: str) -> tuple[Tensor, Tensor]:
    """(N,) and (T,) int64 of pictures and texts."""
    if group_by == "text" and len(texts) != len(pictures):
        raise UserError("several captions per sample: use --group-by sample, or a field such as label")
    image = row_groups(pictures, group_by)
    return image, image[torch.tensor(owner, dtype=torch.int64)]
