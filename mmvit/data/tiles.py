"""Pictures with boxes -> random views with their boxes, alone or as the tiles of a mosaic.

Each tile is a picture, flipped and cropped at random, resized as the model's preprocessing says; a mosaic of
g x g tiles is g times as many objects of a g-th of the size. M boxes, xyxy, fractions of the tensor.
Source: OWL-ViT (arXiv:2205.06230) appendix A1.5, A1.7: flip, crop, mosaic, merging of instances.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from mmvit.boxes import area, clip, iou
from mmvit.data.annotations import Annotations, Note, read_annotations
from mmvit.data.captions import read_json
from mmvit.data.decode import PICTURES
from mmvit.data.image import ImageAugment, ImagePreprocess, draft_jpeg, recolor, to_tensor
from mmvit.data.pixels import BadSample, load_rgb, open_image, upright_size
from mmvit.errors import UserError

T = TypeVar("T")


@dataclass(slots=True)
class Tile:
    """A view of one picture.

    Attributes:
        key: the sample's.
        pixels: (3,h,w) uint8.
        boxes: (M,4) float64 xyxy, fractions of the tile.
        labels: the labels of each box, one or more.
        known: what the picture's annotations say besides: negatives, unsure, fixed, exhaustive.
        region: the part of the tile that the picture covers, xyxy fractions.
    """

    key: str
    pixels: Tensor
    boxes: Tensor
    labels: list[tuple[str, ...]]
    known: Annotations
    region: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class BoxAugment:
    """Random views that take their boxes along.

    Attributes:
        flip: probability of a left-right flip; 0 where left and right mean something.
        crop_scale: range of the crop's area as a fraction of the picture's; (1, 1) = no crop.
        crop_ratio: range of the crop's width/height, drawn log-uniformly.
        min_area: share of a box's area that must stay in the crop for the box to be kept, 0..1.
        mosaics: (g, probability) pairs: how often a sample is a mosaic of g x g pictures.
        color: strength of random brightness, contrast and saturation, each factor in 1-c..1+c; 0 = off.
        merge_iou: boxes of a picture that overlap at least so much become one with both labels; above 1 =
            never.
        max_boxes: at most this many boxes of a sample are kept.
        draft: as in `ImagePreprocess`; on by default, for training pixels need not be exact.
    """

    flip: float = 0.5
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.33)
    min_area: float = 0.6
    mosaics: Sequence[tuple[int, float]] = ((1, 0.4), (2, 0.3), (3, 0.3))
    color: float = 0.0
    merge_iou: float = 0.9
    max_boxes: int = 100
    draft: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))
        self._views()
        grids = list(self.mosaics)
        if not grids or any(type(g) is not int or g < 1 or not p >= 0 for g, p in grids):
            raise UserError(f"mosaics={self.mosaics!r} must be pairs (tiles a side from 1, probability)")
        if not sum(p for _, p in grids) > 0:
            raise UserError(f"mosaics={self.mosaics!r}: the probabilities must not all be 0")
        if not 0 <= self.min_area <= 1 or self.max_boxes < 1:
            raise UserError(
                f"min_area={self.min_area} must be in 0..1 and max_boxes={self.max_boxes} at least 1"
            )

    def check_size(self, size: tuple[int, int]) -> None:
        """Nothing; raises UserError where a tensor of `size` (height, width) cannot be cut into tiles."""
        for grid, probability in self.mosaics:
            if probability and (size[0] % grid or size[1] % grid):
                raise UserError(
                    f"a picture of {size[0]} x {size[1]} pixels cannot be a mosaic of {grid} x {grid} tiles: "
                    f"choose a size that {grid} divides, or other mosaics"
                )

    def draw_grid(self, rng: random.Random) -> int:
        """How many tiles a side the next sample has."""
        grids, weights = zip(*self.mosaics, strict=True)
        return rng.choices(grids, weights)[0]

    def tile(
        self, raw: Mapping[str, bytes], preprocess: ImagePreprocess, rng: random.Random, note: Note
    ) -> Tile:
        """A random view of the picture in `raw` (members by extension) with the boxes that are left.

        Args:
            raw: the sample.
            preprocess: size of the tile, and how the view is resized into it.
            rng: all chance comes from it.
            note: is told of boxes that cannot be used.

        Raises:
            BadSample: no picture or no annotations that can be read.
        """
        picture, size = self._open(raw, preprocess)
        if "json" not in raw:
            raise BadSample("boxes-missing", "there is no JSON member")
        known = read_annotations(read_json(raw["json"]), size, note)
        chosen, lost = self.cut(known.labels, rng, note)
        found = known.boxes[chosen] / _shrunk(picture.size, size)
        boxes, labels = merge(found, [known.labels[i] for i in chosen], self.merge_iou, rng)
        x0, y0, x1, y1 = self._draw_crop(*picture.size, rng)
        boxes = boxes - torch.tensor([x0, y0, x0, y0], dtype=torch.float64)
        if (x0, y0, x1, y1) != (0, 0, *picture.size):
            picture = picture.crop((x0, y0, x1, y1))
        if rng.random() < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = flip(boxes, x1 - x0)
        picture = recolor(picture, rng, self.color)
        placement = preprocess.placement(y1 - y0, x1 - x0)
        whole = placement.to_fractions(boxes)
        part = clip(placement.to_fractions(clip(boxes, (y1 - y0, x1 - x0))), (1.0, 1.0))
        keep = self._kept(whole, part)
        lost += [label for names, kept in zip(labels, keep, strict=True) if not kept for label in names]
        return Tile(
            key=raw["__key__"].decode("utf-8", "backslashreplace"),
            pixels=to_tensor(preprocess.apply(picture)),
            boxes=part[torch.tensor(keep, dtype=torch.bool)],
            labels=[names for names, kept in zip(labels, keep, strict=True) if kept],
            known=dataclasses.replace(known, unsure=known.unsure + lost),
            region=placement.region,
        )

    def cut(self, labels: Sequence[T], rng: random.Random, note: Note) -> tuple[list[int], list[T]]:
        """Which boxes are kept, at most `max_boxes`, in order, and what the others are, which are noted."""
        count = len(labels)
        if count <= self.max_boxes:
            return list(range(count)), []
        for _ in range(count - self.max_boxes):
            note(BadSample("box-over-limit", f"{count} boxes, at most {self.max_boxes} (max_boxes)"))
        chosen = sorted(rng.sample(range(count), self.max_boxes))
        return chosen, [labels[i] for i in sorted(set(range(count)) - set(chosen))]

    def _draw_crop(self, w: int, h: int, rng: random.Random) -> tuple[int, int, int, int]:
        if self.crop_scale == (1.0, 1.0):
            return 0, 0, w, h
        return self._views().draw_box(w, h, rng)

    def _views(self) -> ImageAugment:
        """What the two kinds of training share: how crops are drawn, and the checks of these options."""
        return ImageAugment(
            crop_scale=self.crop_scale, crop_ratio=self.crop_ratio, flip=self.flip, color=self.color
        )

    def _kept(self, whole: Tensor, part: Tensor) -> list[bool]:
        """Of each box whether enough of `whole` is left in `part`, also in float32."""
        left = area(part) >= self.min_area * area(whole) * (1 - 1e-9)
        solid = (part.float()[:, 2:] > part.float()[:, :2]).all(dim=1)
        return (left & solid).tolist()

    def _open(
        self, raw: Mapping[str, bytes], preprocess: ImagePreprocess
    ) -> tuple[Image.Image, tuple[int, int]]:
        """The upright RGB picture, perhaps shrunk by the JPEG decoder, and its full (height, width)."""
        picture = open_member(raw, preprocess.max_pixels)
        width, height = upright_size(picture)
        if self.draft:
            draft_jpeg(picture, preprocess.size, self.crop_scale[0])
        return load_rgb(picture, preprocess.background), (height, width)


def open_member(raw: Mapping[str, bytes], max_pixels: int) -> Image.Image:
    """The picture of a sample, opened and not decoded.

    Raises:
        BadSample: image-missing, or as `open_image`.
    """
    for extension in PICTURES:
        if extension in raw:
            return open_image(raw[extension], max_pixels)
    raise BadSample("image-missing", f"members: {', '.join(sorted(set(raw) - {'__key__'})) or 'none'}")


def flip(boxes: Tensor, width: float) -> Tensor:
    """Boxes (...,4) xyxy of a picture of this width after its left-right flip."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


def into_grid(boxes: Tensor, grid: int, row: int, column: int) -> Tensor:
    """Boxes (...,4) in fractions of a tile as fractions of the mosaic of grid x grid tiles."""
    return (boxes + boxes.new_tensor([column, row, column, row])) / grid


def merge(
    boxes: Tensor, labels: Sequence[str], min_iou: float, rng: random.Random
) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Boxes (M',4) and the labels of each, after uniting those that mark the same place.

    The pair that overlaps most is united first; one of its two boxes, drawn at random, stays.

    Args:
        boxes: (M,4) xyxy.
        labels: M labels.
        min_iou: pairs below it stay two.
        rng: draws which box stays.
    """
    sets: list[tuple[str, ...]] = [(label,) for label in labels]
    overlap = iou(boxes, boxes).fill_diagonal_(-1.0)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    while len(boxes) and float(overlap.max()) >= min_iou:
        i, j = divmod(int(overlap.argmax()), len(boxes))
        stays, goes = (i, j) if rng.random() < 0.5 else (j, i)
        sets[stays] = tuple(dict.fromkeys(sets[i] + sets[j]))
        alive[goes] = False
        overlap[goes] = overlap[:, goes] = -1.0
    return boxes[alive], [sets[i] for i in alive.nonzero().flatten().tolist()]


def _shrunk(size: tuple[int, int], full: tuple[int, int]) -> int:
    """By how much the JPEG decoder shrank a picture of (height, width) `full` to (width, height) `size`."""
    for factor in (1, 2, 4, 8):
        if size == (-(-full[1] // factor), -(-full[0] // factor)):
            return factor
    raise AssertionError((size, full))
