"""The image tower: pixels -> tokens -> core -> pool -> head.

Shape letters: B batch, H/W pixels, D width, E embedding width.
Source: ViT (arXiv:2010.11929).
"""

from __future__ import annotations

from mmvit.models.config import ImageTowerConfig
from mmvit.models.stem import image_stem, tower_grid
from mmvit.models.tower import GridTower


class ImageTower(GridTower):
    """Pixels (B,3,H,W) -> features (B,D) -> embedding (B,E).

    Pixels are uint8 0..255, normalised here, or float and already normalised; H and W multiples of the patch
    size.

    Args:
        config: what to build.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__(config, image_stem(config), tower_grid(config))
