"""An image tower under a linear classifier: pixels -> logits.

Shape letters: B batch, C classes, D width.
Source: ViT (arXiv:2010.11929) section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmvit.heads.classify import Classify
from mmvit.models.config import ClassifierConfig
from mmvit.models.image import ImageTower
from mmvit.types import Encoded


class ImageClassifier(nn.Module):
    """Pixels (B,3,H,W) -> logits (B,C); at the start every logit is `config.bias_init`.

    State dict: `tower.*` (an `ImageTower`), `head.{weight,bias}`.

    Args:
        config: what to build.
        tower: the tower to use, None = a new one from the config.

    Raises:
        ValueError: the tower has an embedding head, or no class is asked for.
    """

    def __init__(self, config: ClassifierConfig, tower: ImageTower | None = None) -> None:
        super().__init__()
        if config.tower.embed_dim is not None:
            raise ValueError(f"embed_dim is {config.tower.embed_dim}, expected None under a classifier")
        if config.num_classes < 1:
            raise ValueError(f"num_classes is {config.num_classes}, expected at least 1")
        self.config = config
        self.tower = ImageTower(config.tower) if tower is None else tower
        self.head = Classify(self.tower.width, config.num_classes, config.bias_init)

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return self.tower.width

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.tower.set_checkpointing(on)

    def forward_tokens(
        self, pixels: Tensor, keep: Tensor | None = None, layers: Sequence[int] = ()
    ) -> Encoded:
        """The tower's tokens, see `ImageTower.forward_tokens`."""
        return self.tower.forward_tokens(pixels, keep, layers)

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features (B,D) of pixels (B,3,H,W)."""
        return self.tower.features(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B,C) of pixels (B,3,H,W)."""
        return self.head(self.tower.features(pixels))
