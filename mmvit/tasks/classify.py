"""Supervised classification: a tower under a linear head learns the classes that samples state.

Shape letters: b samples of this rank's batch, C classes, D feature width.
Source: VATT (arXiv:2104.11178) appendix A.2.5 and A.3: dropout before the head, label smoothing, mixup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.losses.classification import (
    Balance,
    Kind,
    check_smoothing,
    classification_loss,
    mixed_rows,
    mixing_weights,
)
from mmvit.models.classifier import Classifier
from mmvit.types import Batch

Targets = Callable[[Sequence[Mapping[str, Any]] | None], tuple[Tensor, Tensor]]


class ClassifyTask(nn.Module):
    """task(batch) -> {"loss", "top1", "labelled"}.

    "top1" is the share of the samples with a label that are named right, "labelled" that of those samples.

    Args:
        model: the classifier.
        targets: the samples' JSON -> (targets (b,C), known (b,)), see `data.classes.ClassList`.
        modality: the batch's field that is classified.
        kind: "softmax" for one class a sample, "sigmoid" for any number.
        smoothing: of the labels, softmax only.
        dropout: on the features, before the head, while training.
        mixup: alpha of Beta(alpha, alpha), 0 = off: inputs and targets of a rank's neighbours are mixed; the
            shares depend on (seed, step, sample) alone, who is whose neighbour on the number of ranks.
        balance: see `classification_loss`.
        seed: of the mixtures.

    Raises:
        ValueError: dropout on a tower with two heads, a share outside 0..1, a negative mixup, or smoothing
            with a sigmoid.
    """

    def __init__(
        self,
        model: Classifier,
        targets: Targets,
        modality: Literal["image", "video", "audio"],
        kind: Kind = "softmax",
        smoothing: float = 0.0,
        dropout: float = 0.0,
        mixup: float = 0.0,
        balance: Balance = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1 or mixup < 0:
            raise ValueError(f"dropout={dropout} must lie in 0..1 and mixup={mixup} be at least 0")
        check_smoothing(kind, smoothing)
        if dropout and model.head_dist is not None:
            raise ValueError(f"dropout={dropout} on a tower with two heads: set it to 0")
        self.model, self.targets, self.modality = model, targets, modality
        self.kind, self.smoothing, self.balance = kind, smoothing, balance
        self.dropout, self.mixup, self.seed = dropout, mixup, seed

    @property
    def separable(self) -> bool:
        """Whether the loss is the mean of its rows' losses, as clipping gradients by example needs it."""
        return not self.mixup and self.balance != "batch"

    def precompute(self, batch: Batch) -> Batch:
        """`batch` as it was: what is frozen takes no gradient anyway."""
        return batch

    def embed(self, batch: Batch) -> tuple[Tensor]:
        """(logits (b,C) float32,).

        Raises:
            ValueError: the batch lacks what is to be classified.
        """
        x = self.model.inputs(batch, self.modality)
        if self._mixes:
            x = mixed_rows(self._floating(x), self._shares(batch))
        if not self.dropout:
            return (self.model(x).float(),)
        features = F.dropout(self.model.features(x), self.dropout, self.training)
        return (self.model.head(features).float(),)

    def loss(self, embeddings: tuple[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The loss of this rank's samples and the metrics, scalars all.

        Raises:
            ValueError: the batch lacks its JSON.
        """
        if batch.meta is None:
            raise ValueError("classification needs the samples' JSON: 'meta' among the loader's fields")
        (logits,) = embeddings
        targets, known = (part.to(logits.device) for part in self.targets(batch.meta))
        if self._mixes:
            # A mixture is known when both of its parts are.
            targets, known = mixed_rows(targets, self._shares(batch)), known & known.roll(1, 0)
        value = classification_loss(
            logits, targets, known, kind=self.kind, smoothing=self.smoothing, balance=self.balance
        )
        best = targets.gather(1, logits.detach().argmax(1)[:, None])[:, 0]
        right = known & (best > 0) & (best == targets.amax(1))
        return {
            "loss": value,
            "top1": right.float().mean() / known.float().mean().clamp(min=1e-6),
            "labelled": known.float().mean(),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss and metrics of a batch."""
        return self.loss(self.embed(batch), batch)

    def loss_parameters(self) -> list[nn.Parameter]:
        """None: the loss reads the logits only."""
        return []

    def chance(self, batch_size: int) -> float | None:
        """The loss of a model that knows nothing: ln C with a softmax, else None."""
        if self.kind == "sigmoid" or self.balance != "none":
            return None
        return float(torch.tensor(float(self.model.config.num_classes)).log())

    def after_step(self) -> None:
        """Nothing: no parameter is bound to a range."""

    @property
    def _mixes(self) -> bool:
        return self.training and self.mixup > 0

    def _shares(self, batch: Batch) -> Tensor:
        return mixing_weights(self.mixup, [f"{batch.position} {key}" for key in batch.keys], self.seed)

    def _floating(self, x: Tensor) -> Tensor:
        """Pixels as the tower itself would normalise them; everything else as it is."""
        if x.dtype != torch.uint8:
            return x
        config = self.model.config.tower
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, std = (torch.tensor(v, device=x.device).reshape(shape) for v in (config.mean, config.std))
        return (x.float() / 255 - mean) / std
