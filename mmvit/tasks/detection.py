"""Detection training: a detector and its set prediction loss over the global batch.

Shape letters: B pictures of this rank's batch, N tokens, Q queries, M boxes, L tokens of a query.
Source: OWL-ViT (arXiv:2205.06230); OWLv2 (arXiv:2306.09683) for the objectness.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmvit.losses import Targets, detection_terms
from mmvit.models.owl import OwlDetector
from mmvit.types import Batch


class DetectionTask(nn.Module):
    """task(batch) -> {"loss", "loss_class", "loss_box", "loss_giou", …, "match_iou", "match_top1", "boxes"}.

    "match_iou" and "match_top1" are means over the matched pairs: overlap of token and target, and whether
    the token's best query is one of its target's; with "per_example" they are means over the pictures of
    these means, 0 without boxes. "boxes" is the mean number of boxes of a picture.

    Args:
        model: the detector.
        normalization: what the sums of the loss are divided by, "global" or "per_example".
        alpha, gamma: of the focal loss.
        weights: of the class, L1 and GIoU terms.
        objectness_weight: of the objectness term, for a model with that head.

    Raises:
        ValueError: a weight for the objectness of a model without that head.
    """

    def __init__(
        self,
        model: OwlDetector,
        normalization: Literal["global", "per_example"] = "global",
        alpha: float = 0.3,
        gamma: float = 2.0,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        objectness_weight: float = 0.0,
    ):
        super().__init__()
        if objectness_weight and model.objectness_head is None:
            raise ValueError(
                f"objectness_weight is {objectness_weight}, but the model has no objectness head: "
                "build it with objectness=True or leave the weight at 0"
            )
        self.model = model
        self.normalization: Literal["global", "per_example"] = normalization
        self.alpha, self.gamma, self.weights = alpha, gamma, weights
        self.objectness_weight = objectness_weight

    @property
    def separable(self) -> bool:
        """Whether the loss is the mean of its rows' losses, as clipping gradients by example needs it."""
        return self.normalization == "per_example"

    def precompute(self, batch: Batch) -> Batch:
        """`batch` as it was: every part of a detector may learn."""
        return batch

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """(logits (B,N,Q), boxes (B,N,4) cxcywh, seen (B,N)[, objectness (B,N)]), at least float32.

        `seen` is 1 at tokens that see some of the picture and 0 at those on padding.

        Raises:
            ValueError: the batch lacks pictures or queries.
        """
        if batch.image is None or batch.queries is None:
            raise ValueError(
                "detection training needs pictures and their queries: image and queries of the batch"
            )
        found = self.model(batch.image, batch.queries, batch.queries_mask, batch.query_mask, batch.regions)
        mask = found.candidates.mask
        seen = torch.ones_like(found.boxes[..., 0]) if mask is None else mask.to(found.boxes.dtype)
        parts = (found.logits, found.boxes, seen)
        return parts if found.objectness is None else (*parts, found.objectness)

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """The loss of this rank's pictures and the metrics, scalars all.

        Raises:
            ValueError: the batch lacks boxes or their labels.
        """
        if batch.boxes is None or batch.box_mask is None or batch.box_labels is None:
            raise ValueError("detection training needs boxes, box_mask and box_labels of the batch")
        logits, boxes, seen, *objectness = embeddings
        terms = detection_terms(
            logits,
            boxes,
            Targets(batch.box_labels, batch.boxes, batch.box_mask),
            query_mask=batch.query_mask,
            token_mask=seen.detach() > 0.5,
            normalization=self.normalization,
            alpha=self.alpha,
            gamma=self.gamma,
            weights=self.weights,
            objectness=objectness[0] if objectness else None,
            objectness_weight=self.objectness_weight,
        )
        out = {
            "loss": terms.loss,
            "loss_class": terms.loss_class,
            "loss_box": terms.loss_box,
            "loss_giou": terms.loss_giou,
            "match_iou": (terms.iou * terms.share).sum(),
            "match_top1": (terms.hits * terms.share).sum(),
            "boxes": batch.box_mask.sum().double() / len(batch),
        }
        if terms.loss_objectness is not None:
            out["loss_objectness"] = terms.loss_objectness
        return out

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss and metrics of a batch."""
        return self.loss(self.embed(batch), batch)

    def loss_parameters(self) -> list[nn.Parameter]:
        """None: the loss reads the embeddings only."""
        return []

    def chance(self, batch_size: int) -> float | None:
        """None: what a detector that knows nothing loses depends on how many boxes its pictures have."""
        return None

    def after_step(self) -> None:
        """Nothing: no parameter is bound to a range."""
