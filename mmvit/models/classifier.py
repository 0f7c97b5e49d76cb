"""A tower under a linear classifier: what the tower takes -> logits.

Shape letters: B batch, C classes, D width.
Source: ViT (arXiv:2010.11929) section 3.1; two heads: DeiT (arXiv:2012.12877) section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmvit.heads.classify import Classify
from mmvit.models.build import build_tower
from mmvit.models.config import ClassifierConfig, VideoTowerConfig
from mmvit.models.tower import GridTower
from mmvit.models.video import still
from mmvit.types import Batch, Encoded


class Classifier(nn.Module):
    """Pixels (B,3,H,W), clips or sounds -> logits (B,C); at the start all are `config.bias_init`.

    State dict: `tower.*` (of pictures, clips, spectrograms or waveforms), `head.{weight,bias}`. Over a tower
    pooled by "cls_dist" there is `head_dist.{weight,bias}` too: one head for each token, and the logits are
    their mean.

    Args:
        config: what to build.
        tower: the tower to use, None = a new one from the config.

    Raises:
        ValueError: the tower has an embedding head, or no class is asked for.
    """

    def __init__(self, config: ClassifierConfig, tower: GridTower | None = None) -> None:
        super().__init__()
        if config.tower.embed_dim is not None:
            raise ValueError(f"embed_dim is {config.tower.embed_dim}, expected None under a classifier")
        if config.num_classes < 1:
            raise ValueError(f"num_classes is {config.num_classes}, expected at least 1")
        self.config = config
        self.tower: GridTower = build_tower(config.tower) if tower is None else tower
        self.head = Classify(self.tower.width, config.num_classes, config.bias_init)
        self.head_dist: Classify | None = None
        if config.tower.pool == "cls_dist":
            self.head_dist = Classify(self.tower.width, config.num_classes, config.bias_init)

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return self.tower.width

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.tower.set_checkpointing(on)

    def inputs(self, batch: Batch, modality: str) -> Tensor:
        """What the tower takes of a batch; pictures stand still for one tubelet of a video tower.

        Args:
            batch: of B samples.
            modality: image, video or audio, the field that is read.

        Raises:
            ValueError: the batch lacks it.
        """
        x: Tensor | None = getattr(batch, modality)
        if x is None:
            raise ValueError(f"the batch has no {modality}: read it with fields=('{modality}', 'meta')")
        tower = self.config.tower
        if modality == "image" and isinstance(tower, VideoTowerConfig):
            x = still(x, tower)
        return x

    def forward_tokens(
        self,
        pixels: Tensor,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
        *,
        patch_size: int | None = None,
    ) -> Encoded:
        """The tower's tokens, see `GridTower.forward_tokens`."""
        return self.tower.forward_tokens(pixels, keep, layers, patch_size=patch_size)

    def features(self, pixels: Tensor, *, patch_size: int | None = None) -> Tensor:
        """Pooled features (B,D) of pixels (B,3,H,W)."""
        return self.tower.features(pixels, patch_size=patch_size)

    def both_logits(self, pixels: Tensor, *, patch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B,C) of the class token and of the distillation token, each for its own loss.

        Args:
            pixels: (B,3,H,W).
            patch_size: as `GridTower.tokens` takes it.

        Raises:
            ValueError: a tower without two tokens to read.
        """
        if self.head_dist is None:
            raise ValueError(
                f"pool is '{self.config.tower.pool}', expected 'cls_dist', as *_distilled_* models have"
            )
        tokens = self.tower.forward_tokens(pixels, patch_size=patch_size).values
        return self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])

    def forward(self, pixels: Tensor, *, patch_size: int | None = None) -> Tensor:
        """Logits (B,C) of pixels (B,3,H,W); the mean of both heads' where there are two."""
        if self.head_dist is not None:
            one, two = self.both_logits(pixels, patch_size=patch_size)
            return (one + two) / 2
        return self.head(self.tower.features(pixels, patch_size=patch_size))
