"""Samples -> one padded `Batch`: B samples, L tokens, P candidates, D cached features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.types import Batch, Sample

PadTo = Literal["context", "longest"]
_DTYPES = {"image": torch.uint8, "video": torch.uint8, "audio": torch.float32}


@dataclass(frozen=True)
class Layout:
    """What a batch looks like where samples lack fields: the same on all ranks and in every step.

    Attributes:
        shapes: field (image, video, audio) that a sample may lack -> shape of one sample; it then has a mask.
        text: whether a sample may lack its caption; `text_mask` is False in its row.
        candidates: P, 0 without.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    text: bool = False
    candidates: int = 0


def collate(
    samples: Sequence[Sample],
    tokenizer: Tokenizer | None = None,
    pad_to: PadTo = "context",
    layout: Layout | None = None,
) -> Batch:
    """B samples as one batch; fields that the samples do not carry are None.

    Args:
        samples: all with the same fields, but for those that `layout` says may be missing: they become zeros
            that the field's mask excludes.
        tokenizer: turns captions into `text` (B,L) and `text_mask`, or candidates into `candidates` (B,P,L);
            None leaves only `captions`.
        pad_to: "context" pads to the tokenizer's context length; "longest" to the batch's longest
            caption, rounded up to a multiple of 4, for towers that hide padding and do not pool at the last
            position.
        layout: None = no sample lacks anything.

    Raises:
        UserError: fields of different shapes.
    """
    layout = layout or Layout()
    batch = Batch(
        keys=[s.key for s in samples],
        image_embedding=_stack([s.image_embedding for s in samples], "cached embeddings"),
        group=torch.tensor([s.group for s in samples], dtype=torch.int64),
        meta=[s.meta for s in samples] if any(s.meta for s in samples) else None,
    )
    for name, what in (("image", "pictures"), ("video", "videos"), ("audio", "sounds")):
        values = [getattr(s, name) for s in samples]
        if name in layout.shapes:
            setattr(batch, f"{name}_mask", torch.tensor([v is not None for v in values], dtype=torch.bool))
            blank = torch.zeros(layout.shapes[name], dtype=_DTYPES[name])
            values = [blank if v is None else v for v in values]
        setattr(batch, name, _stack(values, what))
    _words(batch, samples, tokenizer, pad_to, layout)
    return batch


def _words(
    batch: Batch, samples: Sequence[Sample], tokenizer: Tokenizer | None, pad_to: PadTo, layout: Layout
) -> None:
    """Nothing; adds captions, tokens and candidates to `batch`."""
    captions = [s.text for s in samples]
    lacking = layout.text or layout.candidates > 0
    if samples and (lacking or None not in captions):
        batch.captions = [caption or "" for caption in captions]
        if tokenizer is not None and not layout.candidates:
            rows = [[caption] if caption is not None else [] for caption in captions]
            ids, mask, _, batch.truncated = _tokens(rows, 1, tokenizer, pad_to)
            batch.text, batch.text_mask = ids[:, 0], mask[:, 0]
    if samples and layout.candidates and tokenizer is not None:
        rows = [s.candidates or [] for s in samples]
        batch.candidates, batch.candidates_mask, batch.candidate_mask, batch.truncated = _tokens(
            rows, layout.candidates, tokenizer, pad_to
        )


def _tokens(
    rows: Sequence[Sequence[str]], width: int, tokenizer: Tokenizer, pad_to: PadTo
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Ids (B,P,L), mask (B,P,L), which are there (B,P), how many were cut: up to P = `width` texts a row."""
    there = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    text = tokenizer([caption for row in rows for caption in row])
    if pad_to == "longest":
        text = text.trim()
    length = text.ids.shape[1]
    ids = torch.full((*there.shape, length), tokenizer.pad_id, dtype=torch.int64)
    mask = torch.zeros(*there.shape, length, dtype=torch.bool)
    ids[there], mask[there] = text.ids, text.mask
    return ids, mask, there, text.truncated


def _stack(values: Sequence[Tensor | None], what: str) -> Tensor | None:
    present = [v for v in values if v is not None]
    if not present or len(present) != len(values):
        return None
    shapes = {tuple(v.shape) for v in present}
    if len(shapes) > 1:
        raise UserError(f"{what} of different shapes in one batch: {sorted(shapes)}; are the sources alike?")
    return torch.stack(present)
