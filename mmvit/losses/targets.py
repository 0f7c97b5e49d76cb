"""What a detector should have found: the annotated boxes of a batch, padded.

Shape letters: B pictures, N tokens, Q queries, M targets of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The annotated boxes of B pictures, padded to M.

    Attributes:
        labels: (B,M,Q) float, 1 = the box answers the query; 0..1.
        boxes: (B,M,4) float, xyxy, fractions of the tensor's width and height.
        mask: (B,M) bool, True = real box.
    """

    labels: Tensor
    boxes: Tensor
    mask: Tensor


def pad_targets(targets: Sequence[Mapping[str, Tensor]], logits: Tensor) -> Targets:
    """The targets of `detection_loss` padded to the longest, on the device of the logits (B,N,Q).

    Raises:
        ValueError: another number of pictures, or shapes other than (M,Q) and (M,4).
    """
    B, _, Q = logits.shape
    if len(targets) != B:
        raise ValueError(
            f"targets hold one entry for each of the {B} pictures of the logits, got {len(targets)}"
        )
    for b, t in enumerate(targets):
        shapes = tuple(t["labels"].shape), tuple(t["boxes"].shape)
        if shapes != ((len(t["boxes"]), Q), (len(t["boxes"]), 4)):
            raise ValueError(
                f"the targets of picture {b} need labels (M,{Q}) and boxes (M,4), "
                f"got {shapes[0]} and {shapes[1]}"
            )
    M = max((len(t["boxes"]) for t in targets), default=0)
    dtype = torch.promote_types(logits.dtype, torch.float32)  # half precision would move the boxes
    labels, boxes = (torch.zeros(B, M, n, dtype=dtype, device=logits.device) for n in (Q, 4))
    mask = torch.zeros(B, M, dtype=torch.bool, device=logits.device)
    for b, t in enumerate(targets):
        own = slice(0, len(t["boxes"]))
        labels[b, own], boxes[b, own], mask[b, own] = t["labels"].to(labels), t["boxes"].to(boxes), True
    return Targets(labels, boxes, mask)
