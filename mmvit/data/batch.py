"""Samples -> one padded `Batch`: B samples, L tokens, D cached features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError
from mmvit.types import Batch, Sample

PadTo = Literal["context", "longest"]


def collate(
    samples: Sequence[Sample], tokenizer: Tokenizer | None = None, pad_to: PadTo = "context"
) -> Batch:
    """B samples as one batch; fields that the samples do not carry are None.

    Args:
        samples: all with the same fields.
        tokenizer: turns captions into `text` (B,L) and `text_mask`; None leaves only `captions`.
        pad_to: "context" pads to the tokenizer's context length; "longest" to the batch's longest
            caption, rounded up to a multiple of 4, for towers that hide padding and do not pool at the last
            position.

    Raises:
        UserError: cached embeddings of different lengths.
    """
    batch = Batch(
        keys=[s.key for s in samples],
        image=_stack([s.image for s in samples], "pictures"),
        image_embedding=_stack([s.image_embedding for s in samples], "cached embeddings"),
        group=torch.tensor([s.group for s in samples], dtype=torch.int64),
        meta=[s.meta for s in samples] if any(s.meta for s in samples) else None,
    )
    captions = [s.text for s in samples if s.text is not None]
    if samples and len(captions) == len(samples):
        batch.captions = captions
        if tokenizer is not None:
            text = tokenizer(captions)
            batch.truncated = text.truncated
            if pad_to == "longest":
                text = text.trim()
            batch.text, batch.text_mask = text.ids, text.mask
    return batch


def _stack(values: Sequence[Tensor | None], what: str) -> Tensor | None:
    present = [v for v in values if v is not None]
    if not present or len(present) != len(values):
        return None
    shapes = {tuple(v.shape) for v in present}
    if len(shapes) > 1:
        raise UserError(f"{what} of different shapes in one batch: {sorted(shapes)}; are the sources alike?")
    return torch.stack(present)
