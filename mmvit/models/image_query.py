"""A box in a reference picture -> the candidate whose class embedding asks for what lies in the box.

Shape letters: B pictures, N candidates, E embedding width.
Source: OWL-ViT (arXiv:2205.06230) appendix A1.7 and its notebook; OWLv2 (arXiv:2306.09683): objectness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmvit.boxes import giou, iou, to_xyxy
from mmvit.types import Candidates

Choice = Literal["background-unlike", "objectness", "iou"]
CHOICES: tuple[str, ...] = ("background-unlike", "objectness", "iou")
_NEAR = 0.8  # of the best overlap: boxes that fit almost as well as the best one
_NEAR_GIOU = 1.2  # the same slack for a number below zero


class Chosen(NamedTuple):
    """The candidate that stands for each reference box.

    Attributes:
        tokens: (B,) int64 number of the candidate.
        embeddings: (B,E) float32, its class embedding, not normalised: the query.
        overlap: (B,) float32 IoU of its box with the reference box, 1 where there was no box.
    """

    tokens: Tensor
    embeddings: Tensor
    overlap: Tensor


@torch.no_grad()
def choose(
    candidates: Candidates, boxes: Sequence[Tensor | None], choice: Choice = "background-unlike"
) -> Chosen:
    """The candidate of each picture whose embedding is to be used as a query.

    Eligible are those whose boxes fit the reference box almost as well as the best one does: IoU at least 0.8
    of the best; where none touches it, generalised IoU with a slack of 20 %. Candidates on padding never are.

    Args:
        candidates: of B reference pictures.
        boxes: B boxes (4,) xyxy in fractions of the tensor; None = every candidate is eligible.
        choice: which of the eligible ones: "background-unlike", the one least like the picture's mean
            embedding (most tokens in a box look like background), "objectness", or "iou", the best fit.

    Raises:
        ValueError: an unknown choice, or "objectness" of a model without that head.

    Differs: transformers keeps 0.8 of a generalised IoU that is below zero, which nothing reaches.
    """
    if choice not in CHOICES:
        raise ValueError(f"choice is {choice!r}, valid: {', '.join(CHOICES)}")
    if choice == "objectness" and candidates.objectness is None:
        raise ValueError(
            "choice='objectness' needs a detector with an objectness head: valid: background-unlike, iou"
        )
    picked = [_choose_one(candidates, i, box, choice) for i, box in enumerate(boxes)]
    if not picked:
        none = candidates.shift.new_zeros(0)
        return Chosen(none.long(), candidates.embeddings[:0, 0].float(), none)
    tokens = torch.stack([token for token, _ in picked])
    rows = torch.arange(len(picked), device=tokens.device)
    return Chosen(
        tokens, candidates.embeddings[rows, tokens].float(), torch.stack([fit for _, fit in picked])
    )


def _choose_one(c: Candidates, i: int, box: Tensor | None, choice: str) -> tuple[Tensor, Tensor]:
    """The candidate's number and its box's IoU with the reference box, both ()."""
    real = torch.ones_like(c.shift[i], dtype=torch.bool) if c.mask is None else c.mask[i]
    fit, eligible = torch.ones_like(c.shift[i]), real
    overlap = fit
    if box is not None:
        corners, goal = to_xyxy(c.boxes[i]), box.to(c.boxes)[None]
        fit = overlap = iou(goal, corners)[0].masked_fill(~real, 0)
        limit = _NEAR * fit.max()
        if fit.max() <= 0:
            fit = giou(goal, corners, eps=1e-12)[0].masked_fill(~real, -2)
            limit = _NEAR_GIOU * fit.max()
        eligible = real & (fit >= limit)
    if choice == "iou":
        best = fit
    elif choice == "objectness":
        assert c.objectness is not None
        best = c.objectness[i]
    else:
        embeddings = c.embeddings[i].float()
        best = -(embeddings @ embeddings[real].mean(dim=0))
    token = best.masked_fill(~eligible, -torch.inf).argmax()
    return token, overlap[token]
