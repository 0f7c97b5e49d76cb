"""Boxes as plain geometry: formats, overlaps, and where a picture lies in the tensor that a model sees.

Frames: pixels of a picture or fractions 0..1 of a tensor's width and height; x to the right, y down, a box
covers [x0,x1) x [y0,y1), so that the whole picture is (0, 0, width, height). Letters: M, N boxes.
Source: generalised IoU: arXiv:1902.09630, equations 1 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def to_xyxy(boxes: Tensor) -> Tensor:
    """Corners (...,4) of boxes given as centre and size (...,4) cxcywh."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def to_cxcywh(boxes: Tensor) -> Tensor:
    """Centre and size (...,4) of boxes given as corners (...,4) xyxy."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (...,4) xyxy; 0 where a corner is on the wrong side."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (M,N), 0..1, of boxes a (M,4) and b (N,4) xyxy; 0 where both are empty."""
    return iou_pairs(a[:, None], b[None])


def iou_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (...), 0..1, of boxes a (...,4) with boxes b (...,4) of the same row, xyxy."""
    inter, union = _overlap(a, b)
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (M,N), -1..1, of every box a (M,4) with every box b (N,4), xyxy.

    `eps` is added to both denominators.
    """
    return giou_pairs(a[:, None], b[None], eps)


def giou_pairs(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (...), -1..1, of boxes a (...,4) with boxes b (...,4) of the same row, xyxy."""
    inter, union = _overlap(a, b)
    width = torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])
    height = torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])
    hull = width.clamp(min=0) * height.clamp(min=0)
    return inter / (union + eps) - (hull - union) / (hull + eps)


def clip(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Boxes (...,4) xyxy cut at a picture of `size` (height, width)."""
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return boxes.clamp(min=0).minimum(limit)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union (...) of boxes that broadcast, xyxy."""
    # Coordinate by coordinate: many-to-many tables stay contiguous, which more than halves their time.
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    inter = width.clamp(min=0) * height.clamp(min=0)
    return inter, area(a) + area(b) - inter


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies in the tensor made of it: x' = x * scale_x + left, y' = y * scale_y + top.

    Attributes:
        picture: (height, width) of the picture in its own pixels.
        tensor: (height, width) of the tensor.
        scale_y, scale_x: tensor pixels per picture pixel.
        top, left: where the picture's corner lies, in tensor pixels.
    """

    picture: tuple[int, int]
    tensor: tuple[int, int]
    scale_y: float
    scale_x: float
    top: float = 0.0
    left: float = 0.0

    def to_fractions(self, boxes: Tensor) -> Tensor:
        """Boxes (...,4) xyxy in the picture's pixels as fractions of the tensor's width and height."""
        scale, shift, size = self._terms(boxes)
        return (boxes * scale + shift) / size

    def to_pixels(self, boxes: Tensor) -> Tensor:
        """Boxes (...,4) xyxy in fractions of the tensor as pixels of the picture, not cut at its borders."""
        scale, shift, size = self._terms(boxes)
        return (boxes * size - shift) / scale

    @property
    def region(self) -> tuple[float, float, float, float]:
        """The part of the tensor that the picture covers, xyxy in fractions; the rest is padding."""
        height, width = self.tensor
        x0, y0 = max(0.0, self.left / width), max(0.0, self.top / height)
        x1 = min(1.0, (self.left + self.picture[1] * self.scale_x) / width)
        y1 = min(1.0, (self.top + self.picture[0] * self.scale_y) / height)
        return x0, y0, x1, y1

    def _terms(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = like.new_tensor([self.scale_x, self.scale_y] * 2)
        shift = like.new_tensor([self.left, self.top] * 2)
        return scale, shift, like.new_tensor([self.tensor[1], self.tensor[0]] * 2)
