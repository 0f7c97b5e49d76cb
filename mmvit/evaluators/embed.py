"""Samples of shards -> embeddings with their keys, captions and facts; each sample once over all ranks.

Letters: N samples, T texts, E embedding dim, B batch.
Evaluation runs the bare model (never a DDP wrapper), in eval mode and without gradients, and puts every
module's mode back afterwards, so that it can be called in the middle of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmvit.data.tokenizer import Tokenizer
from mmvit.models.lit import DualEncoder
from mmvit.types import Batch

Encoder = Callable[[Batch], Tensor]
TextEncoder = Callable[[Sequence[str]], Tensor]


@dataclass
class Embedded:
    """N samples after the towers, in the order of the shards.

    Attributes:
        index: (N,) int64 number of each sample over all shards.
        keys: N sample keys.
        embeddings: modality -> (N,E) float32 on the CPU, L2-normalised; of models with several spaces
            "modality.space", and "modality.features" (N,V,D) of V views, not normalised.
        captions: N lists of captions, main one first; empty lists when text was not read.
        meta: N JSON objects.
        skipped: bad samples that were left out, by reason.
        present: modality -> (N,) bool, True = the sample has it; missing = all have.
    """

    index: Tensor
    keys: list[str]
    embeddings: dict[str, Tensor]
    captions: list[list[str]]
    meta: list[dict[str, Any]]
    skipped: dict[str, int] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)


def embed_samples(
    batches: Iterable[Batch],
    encoders: Mapping[str, Encoder],
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """This rank's samples; every modality is one function of a batch, so it matters to nobody here which one.

    Args:
        batches: of `read_all` with "meta" among its fields (sample numbers are there).
        encoders: modality -> batch to (B,E).
        progress: called with the number of samples after each batch.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in encoders}
    result = Embedded(torch.zeros(0, dtype=torch.int64), [], {}, [], [])
    numbers: list[int] = []
    skipped: Counter[str] = Counter()
    for batch in batches:
        for name, encode in encoders.items():
            parts[name].append(encode(batch).float().cpu())
        assert batch.meta is not None, "read_all without 'meta' does not number its samples"
        numbers += [int(meta["__index__"]) for meta in batch.meta]
        result.keys += batch.keys
        result.captions += captions_of(batch)
        result.meta += batch.meta
        skipped.update(batch.skipped)
        if progress is not None:
            progress(len(batch))
    result.index = torch.tensor(numbers, dtype=torch.int64)
    result.embeddings = {name: torch.cat(rows) for name, rows in parts.items() if rows}
    result.skipped = dict(skipped)
    return result


def gather(part: Embedded) -> Embedded:
    """All ranks' samples on every rank, in shard order, none twice; `part` itself without processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return part
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return merge(parts)


def merge(parts: Sequence[Embedded]) -> Embedded:
    """Several parts as one, sorted by sample number; a sample that came twice is kept once."""
    skipped: Counter[str] = Counter()
    for part in parts:
        skipped.update(part.skipped)
    parts = [part for part in parts if len(part)] or [parts[0]]
    index = torch.cat([part.index for part in parts])
    order = index.argsort(stable=True)
    fresh = torch.ones_like(order, dtype=torch.bool)
    fresh[1:] = index[order][1:] != index[order][:-1]
    order = order[fresh]
    keys = [key for part in parts for key in part.keys]
    captions = [texts for part in parts for texts in part.captions]
    meta = [facts for part in parts for facts in part.meta]
    return Embedded(
        index[order],
        [keys[i] for i in order],
        {name: _joined(parts, name)[order] for name in dict.fromkeys(n for p in parts for n in p.embeddings)},
        [captions[i] for i in order],
        [meta[i] for i in order],
        dict(skipped),
        {name: torch.cat([part.present[name] for part in parts])[order] for name in parts[0].present},
    )


def _joined(parts: Sequence[Embedded], name: str) -> Tensor:
    """The rows of one name; zeros where none of a part's samples had the modality."""
    width = next(part.embeddings[name] for part in parts if name in part.embeddings).shape[1:]
    return torch.cat(
        [
            part.embeddings[name] if name in part.embeddings else torch.zeros(len(part), *width)
            for part in parts
        ]
    )


def image_encoder(model: DualEncoder, precision: str = "fp32") -> Encoder:
    """Batch -> (B,E) embeddings of the pair's first tower, from cached features where the batch carries them.

    Args:
        model: on the device that is to compute.
        precision: fp32, bf16 or fp16 (autocast).
    """
    device = model.logit_scale.device

    def encode(batch: Batch) -> Tensor:
        with evaluating(model), autocast(device, precision):
            if batch.image_embedding is not None:
                return model.encode_image(features=batch.image_embedding.to(device))
            seen = getattr(batch, model.config.modality)
            assert seen is not None, "the batch carries neither what the tower takes nor cached features"
            return model.encode_image(seen.to(device))

    return encode


def text_encoder(
    model: DualEncoder, tokenizer: Tokenizer, precision: str = "fp32", batch_size: int = 256
) -> TextEncoder:
    """T texts -> (T,E) float32 on the CPU; a text that occurs several times is embedded once.

    Args:
        model: on the device that is to compute.
        tokenizer: the model's own.
        precision: fp32, bf16 or fp16 (autocast).
        batch_size: texts at once.
    """
    device, tower = model.logit_scale.device, model.config.text
    # Columns of padding that nothing looks at need not be computed.
    trims = tower.pool != "last" and (tower.pad_mask or tower.core.causal)

    def encode(texts: Sequence[str]) -> Tensor:
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        distinct, rows = list(place), []
        with evaluating(model), autocast(device, precision):
            for start in range(0, len(distinct), batch_size):
                tokens = tokenizer(distinct[start : start + batch_size])
                tokens = tokens.trim() if trims else tokens
                rows.append(model.encode_text(tokens.ids.to(device), tokens.mask.to(device)).float().cpu())
        return torch.cat(rows)[[place[text] for text in texts]]

    return encode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and records no gradients; modules get their own mode back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which products run in `precision`: fp32, bf16 or fp16."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def captions_of(batch: Batch) -> list[list[str]]:
    """B lists of captions: those that caption="all" listed, else the chosen one; none where there is none."""
    if batch.captions is None:
        return [[] for _ in batch.keys]
    metas = batch.meta or [{}] * len(batch)
    found = []
    for text, meta in zip(batch.captions, metas, strict=True):
        listed = meta.get("captions", [text])
        # A clip's JSON may list its captions with their times instead: the chosen one stands for them.
        texts = listed if all(isinstance(caption, str) for caption in listed) else [text]
        found.append([caption for caption in texts if caption])
    return found
