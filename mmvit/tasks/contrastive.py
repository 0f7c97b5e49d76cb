"""Contrastive training of a pair (pictures, clips or sounds, and texts) with its loss over the global batch.

Shape letters: B pairs of this rank's batch, E embedding dim, D feature width of the tower beside the text's.
Source: LiT (Zhai et al. 2022), CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.losses import chance_level, contrastive_terms
from mmvit.losses.strip import Duplicates
from mmvit.models.lit import DualEncoder
from mmvit.tasks.lock import Lock
from mmvit.types import Batch


class ContrastiveTask(nn.Module):
    """task(batch) -> {"loss", "in_batch_top1", "in_batch_top1_text", "logit_scale"[, "logit_bias"]}.

    Args:
        model: the pair of towers.
        kind: "softmax" or "sigmoid".
        duplicates: what pairs of equal `batch.group` are to each other: negative, mask or positive.
        lock: two letters; a locked tower runs without gradients up to its pooled features.
        block: rows of a loss tile, None = choose.

    Raises:
        ValueError: a sigmoid loss without the model's logit_bias, or a softmax with it.
    """

    def __init__(
        self,
        model: DualEncoder,
        kind: Literal["softmax", "sigmoid"] = "softmax",
        duplicates: Duplicates = "negative",
        lock: str | Lock = "uu",
        block: int | None = None,
    ):
        super().__init__()
        if (kind == "sigmoid") != (model.logit_bias is not None):
            raise ValueError(
                f"a {kind} loss {'needs' if kind == 'sigmoid' else 'has no use for'} the model's logit_bias: "
                f"logit_bias_init is {model.config.logit_bias_init}"
            )
        self.model, self.modality = model, model.config.modality
        self.kind, self.duplicates, self.block = kind, duplicates, block
        self.lock = Lock.parse(lock) if isinstance(lock, str) else lock

    def precompute(self, batch: Batch) -> Batch:
        """`batch` with `image_embedding` (B,D) filled in when the first tower is locked; else as it was."""
        seen = getattr(batch, self.modality)
        if self.lock.image != "L" or batch.image_embedding is not None or seen is None:
            return batch
        with torch.no_grad():
            features = _full(self.model.image.features(seen))
        filled = batch.rows(0, len(batch))
        filled.image_embedding = features
        setattr(filled, self.modality, None)
        return filled

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(z_image, z_text), each (B,E) float32, L2-normalised.

        Raises:
            ValueError: the batch lacks text, or both what the first tower takes and its cached features.
        """
        seen = getattr(batch, self.modality)
        if batch.text is None or (seen is None and batch.image_embedding is None):
            needs = {"image": "an image", "video": "a video", "audio": "a sound"}[self.modality]
            raise ValueError(f"contrastive training needs text and {needs} or its cached embedding")
        features = self.precompute(batch).image_embedding
        if features is None:
            z_image = self.model.encode_image(seen)
        else:
            z_image = self.model.encode_image(features=_full(features))
        with self._without_gradients(self.lock.text == "L"):
            text_features = self.model.text.features(batch.text, batch.text_mask)
        return z_image, F.normalize(self.model.text.project(text_features), dim=-1)

    def loss(self, embeddings: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The loss of this rank's pairs against all ranks' and the metrics, scalars all."""
        terms = contrastive_terms(
            *embeddings,
            self.model.logit_scale,
            self.model.logit_bias,
            kind=self.kind,
            block=self.block,
            same=batch.group,
            duplicates=self.duplicates,
        )
        out = {
            "loss": terms.loss,
            "in_batch_top1": terms.hits_a.float().mean(),
            "in_batch_top1_text": terms.hits_b.float().mean(),
            "logit_scale": self.model.logit_scale.detach().exp(),
        }
        if self.model.logit_bias is not None:
            out["logit_bias"] = self.model.logit_bias.detach()
        return out

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss and metrics of a batch."""
        return self.loss(self.embed(batch), batch)

    def loss_parameters(self) -> list[nn.Parameter]:
        """Parameters that the loss reads directly, besides the embeddings."""
        found = [self.model.logit_scale, self.model.logit_bias]
        return [p for p in found if p is not None and p.requires_grad]

    def chance(self, batch_size: int) -> float:
        """The loss of a model that knows nothing, at a global batch of `batch_size`."""
        return chance_level(self.kind, batch_size)

    def after_step(self) -> None:
        """Keeps the temperature in its range, after each optimizer step."""
        self.model.clamp_logit_scale()

    @staticmethod
    def _without_gradients(on: bool) -> AbstractContextManager[object]:
        return torch.no_grad() if on else nullcontext()


def _full(features: Tensor) -> Tensor:
    """Features out of autocast: float32, or float64 as they are."""
    return features if features.dtype == torch.float64 else features.float()
