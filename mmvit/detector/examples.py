"""Example pictures with a box around the thing -> a bank of image queries.

Shape letters: B example pictures, E embedding width. Boxes are xyxy in pixels of the example's own picture.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvit.boxes import Placement, area, clip
from mmvit.detector.bank import QueryBank
from mmvit.detector.images import EncodedImages
from mmvit.models.image_query import CHOICES, choose

log = logging.getLogger(__name__)
Box = tuple[float, float, float, float]


def example_bank(
    examples: EncodedImages, boxes: Any, names: Sequence[str] | None, choice: str, text_fingerprint: str
) -> QueryBank:
    """The bank of the examples' names, in order of first appearance; examples of one name are averaged.

    Args:
        examples: B pictures.
        boxes: B boxes or None, or None for no box at all; one box for one picture may stand alone.
        names: B names, None = "image 0", ...
        choice: as `choose` takes it, or "auto": by objectness for examples without a box if the model has it,
            else background-unlike.
        text_fingerprint: of the tower in whose space the queries lie.

    Raises:
        ValueError: no picture, other numbers of boxes or names, a box that is none or lies outside its
            picture, an unknown choice.
    """
    if choice not in ("auto", *CHOICES):
        raise ValueError(f"choice is {choice!r}, valid: auto, {', '.join(CHOICES)}")
    if not len(examples):
        raise ValueError("there is no query: give at least one example picture")
    names = [f"image {i}" for i in range(len(examples))] if names is None else list(names)
    if len(names) != len(examples):
        raise ValueError(f"there are {len(names)} names for {len(examples)} example pictures")
    given = check_boxes(boxes, len(examples))
    rows = torch.cat([_embedding(examples, i, box, choice) for i, box in enumerate(given)])
    distinct = list(dict.fromkeys(names))
    means = [rows[[i for i, own in enumerate(names) if own == name]].mean(dim=0) for name in distinct]
    return QueryBank(
        names=tuple(distinct),
        embeddings=torch.stack(means)[:, None],
        kinds=("image",) * len(distinct),
        templates=(),
        ensemble="embed",
        text_fingerprint=text_fingerprint,
        model_fingerprint=examples.fingerprint,
    )


def check_boxes(boxes: Any, count: int) -> list[Box | None]:
    """One box or None for each of `count` pictures.

    Args:
        boxes: as `example_bank` takes them.
        count: of pictures.

    Raises:
        ValueError: another number of boxes, or one that is no box; the message names its number.
    """
    if boxes is None:
        return [None] * count
    rows = list(boxes)
    if count == 1 and len(rows) == 4 and all(row is not None and np.ndim(row) == 0 for row in rows):
        rows = [rows]
    if len(rows) != count:
        raise ValueError(f"there are {len(rows)} boxes for {count} pictures: give one each, None for no box")
    return [None if row is None else _check_box(i, row) for i, row in enumerate(rows)]


def _check_box(i: int, row: Any) -> Box:
    values = np.asarray(row, dtype=np.float64)
    if values.shape != (4,):
        raise ValueError(f"box {i} has shape {values.shape}, expected numbers x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = values.tolist()
    if not np.isfinite(values).all() or x0 >= x1 or y0 >= y1:
        raise ValueError(f"box {i} is {(x0, y0, x1, y1)}, expected finite numbers with x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def _embedding(examples: EncodedImages, i: int, box: Box | None, choice: Any) -> Tensor:
    """(1,E) float32 on the CPU of example i."""
    if choice == "auto":
        plain = box is None and examples.candidates.objectness is not None
        choice = "objectness" if plain else "background-unlike"
    place = examples.placements[i]
    anywhere = box is None and choice == "objectness"
    chosen = choose(examples[i].candidates, [None if anywhere else _goal(place, i, box)], choice)
    if not chosen.overlap.item() > 0:
        log.warning("example %d: no object that the model sees touches its box; the nearest is taken", i)
    return chosen.embeddings.cpu()


def _goal(place: Placement, i: int, box: Box | None) -> Tensor:
    """The box (4,) in fractions of the tensor, cut at what is seen of the picture; None = all of that."""
    seen = torch.tensor(place.region, dtype=torch.float64)
    if box is None:
        return seen.float()
    goal = place.to_fractions(clip(torch.tensor(box, dtype=torch.float64), place.picture))
    goal = torch.cat([torch.maximum(goal[:2], seen[:2]), torch.minimum(goal[2:], seen[2:])])
    if not area(goal) > 0:
        height, width = place.picture
        raise ValueError(
            f"box {i} {box} lies outside what is seen of its picture of {width} x {height} pixels"
        )
    return goal.float()
