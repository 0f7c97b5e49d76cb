"""The objects that flow: Sample -> Batch -> Tokens -> Encoded -> embeddings, Boxes, Detections.

Shape letters: B batch, N tokens, D width, E embedding dim, L text length, H/W pixels, C channels.
This file imports torch only; every other file of the package may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(slots=True)
class Sample:
    """One decoded example; a modality that the shard does not carry is None.

    Attributes:
        key: name of the sample inside its shard, without extension.
        source: name of the data source (a shard pattern's stem).
        image: (C,H,W) uint8, RGB, 0..255, after preprocessing.
        image_embedding: (D,) float32, the image tower's cached pre-head features, not normalised.
        video: (C,T,H,W) uint8 frames, RGB.
        audio: what its preprocessing gives: (S,) float32 mono waveform in -1..1, or (T,M) float32 log-mel
            frames, normalised.
        text: the caption that was chosen for this draw.
        candidates: captions near the clip in time, the sample's own first; None where it has no text.
        boxes: annotated boxes of the image.
        meta: the sample's JSON, as it was written.
        group: 63-bit hash; samples with equal groups show "the same" thing (equal caption or label).
    """

    key: str
    source: str = ""
    image: Tensor | None = None
    image_embedding: Tensor | None = None
    video: Tensor | None = None
    audio: Tensor | None = None
    text: str | None = None
    candidates: list[str] | None = None
    boxes: Boxes | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    group: int = 0


@dataclass(slots=True)
class Batch:
    """B samples as padded tensors; a field that the data does not carry is None.

    Attributes:
        keys: B sample keys.
        image: (B,C,H,W) uint8, RGB 0..255 (towers normalise), or float already normalised.
        image_embedding: (B,D) float32 cached pre-head image features.
        image_mask: (B,) bool, True = the sample has a picture; None = all have.
        video: (B,C,T,H,W) uint8 frames, RGB 0..255 (towers normalise), or float already normalised; zeros for
            samples without.
        video_mask: (B,) bool, True = the sample has a clip; None = all have.
        audio: (B,S) float32 waveforms or (B,T,M) float32 log-mel frames; zeros for samples without.
        audio_mask: (B,) bool, True = the sample has sound; None = all have.
        text: (B,L) int64 token ids.
        text_mask: (B,L) bool, True = real token.
        candidates: (B,P,L) int64 token ids of each sample's captions near in time, its own first.
        candidates_mask: (B,P,L) bool, True = real token.
        candidate_mask: (B,P) bool, True = real caption; a row of False is a sample without text.
        queries: (B,Q,L) int64 token ids of each picture's own queries, padded to Q.
        queries_mask: (B,Q,L) bool, True = real token.
        query_mask: (B,Q) bool, True = real query.
        boxes: (B,M,4) float32 xyxy, fractions 0..1 of the picture tensor's width and height, padded to M.
        box_mask: (B,M) bool, True = real box.
        box_labels: (B,M,Q) bool, which of its picture's queries a box answers (one or more).
        regions: (B,R,4) float32 xyxy fractions of the tensor that pictures cover; the rest is padding. Rows
            of zeros are none.
        captions: the B chosen captions, for logs and reports.
        group: (B,) int64; equal values mark samples that show the same thing.
        meta: B dictionaries, the samples' JSON.
        position: how many samples of the global stream came before this global batch.
        skipped: bad members met while this batch was read, counted by reason.
        truncated: how many captions were cut to the context length.
    """

    keys: list[str]
    image: Tensor | None = None
    image_embedding: Tensor | None = None
    image_mask: Tensor | None = None
    video: Tensor | None = None
    video_mask: Tensor | None = None
    audio: Tensor | None = None
    audio_mask: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    candidates: Tensor | None = None
    candidates_mask: Tensor | None = None
    candidate_mask: Tensor | None = None
    queries: Tensor | None = None
    queries_mask: Tensor | None = None
    query_mask: Tensor | None = None
    boxes: Tensor | None = None
    box_mask: Tensor | None = None
    box_labels: Tensor | None = None
    regions: Tensor | None = None
    captions: list[str] | None = None
    group: Tensor | None = None
    meta: list[dict[str, Any]] | None = None
    position: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            is_tensor = isinstance(value, Tensor)
            moved[f.name] = value.to(device, non_blocking=non_blocking) if is_tensor else value
        return Batch(**moved)

    def rows(self, start: int, stop: int) -> Batch:
        """Samples start..stop-1 as a batch of their own (a micro-batch); counters stay with the first one."""
        cut: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            cut[f.name] = value[start:stop] if isinstance(value, Tensor | list) else value
        if start > 0:
            cut["skipped"], cut["truncated"] = {}, 0
        return Batch(**cut)


@dataclass(slots=True)
class Tokens:
    """What a modality's adapter hands to the core.

    Attributes:
        values: (B,N,D); the first `prefix` tokens are special (class, registers), the rest lie on `grid`.
        grid: extent of the full token grid, row-major, e.g. (14,14), (8,14,14) or (77,).
        prefix: count of leading special tokens.
        mask: (B,N) bool, True = real, None = all real.
        kept: (B,N-prefix) int64 index of each token in the full grid when some were dropped, else None.
    """

    values: Tensor
    grid: tuple[int, ...]
    prefix: int = 0
    mask: Tensor | None = None
    kept: Tensor | None = None


@dataclass(slots=True)
class Encoded:
    """The core's output tokens with the bookkeeping of its input `Tokens`.

    Attributes:
        values: (B,N,D) after the final norm.
        layers: block index (1..depth) -> (B,N,D) output of that block, before the final norm.
    """

    values: Tensor
    grid: tuple[int, ...]
    prefix: int = 0
    mask: Tensor | None = None
    kept: Tensor | None = None
    layers: dict[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Boxes:
    """Boxes that carry their format and frame.

    Attributes:
        values: (M,4) float32.
        format: "xyxy" (corners) or "cxcywh" (centre and size).
        frame: (height, width) of the picture when values are pixels, None when they are fractions 0..1.
    """

    values: Tensor
    format: Literal["xyxy", "cxcywh"]
    frame: tuple[int, int] | None


@dataclass(slots=True)
class Candidates:
    """What a detector knows of B pictures before anything is asked: one candidate object per grid token.

    Attributes:
        embeddings: (B,N,E) class embeddings, not normalised.
        shift, scale: (B,N) float32, of the logits at a token, for all queries alike; scale > 0.
        boxes: (B,N,4) float32 cxcywh, fractions 0..1 of the picture tensor's width and height.
        grid: (h,w) of the N = h*w tokens, row-major.
        objectness: (B,N) float32 logits, None without that head.
        mask: (B,N) bool, True = the token sees some of the picture, None = all do.
    """

    embeddings: Tensor
    shift: Tensor
    scale: Tensor
    boxes: Tensor
    grid: tuple[int, int]
    objectness: Tensor | None = None
    mask: Tensor | None = None


@dataclass(slots=True)
class Located:
    """Every query at every candidate: what a detector's forward returns and its loss reads.

    Attributes:
        logits: (B,N,Q) float32, independent binary decisions; missing queries and padding have -1e6.
        boxes: (B,N,4) float32 cxcywh, as in `Candidates`.
        objectness: (B,N) float32 logits, None without that head.
        candidates: what the logits came from.
    """

    logits: Tensor
    boxes: Tensor
    objectness: Tensor | None
    candidates: Candidates


@dataclass(slots=True)
class Detections:
    """What a detector found in one picture.

    Attributes:
        boxes: (N,4) float32 xyxy in pixels of the ORIGINAL picture.
        scores: (N,) float32 in 0..1, descending.
        labels: (N,) int64 into `query`.
        query: the queries that were asked.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    query: list[Any]
