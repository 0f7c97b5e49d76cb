"""The video tower: clips -> tokens -> core -> pool -> head.

Shape letters: B batch, T frames, H/W pixels, D width, E embedding width.
Source: VideoMAE (arXiv:2203.12602); MViT (arXiv:2104.11227).
"""

from __future__ import annotations

from torch import Tensor, nn

from mmvit.models.config import VideoTowerConfig
from mmvit.models.stem import tower_grid, video_stem
from mmvit.models.tower import GridTower


class VideoTower(GridTower):
    """Clips (B,3,T,H,W) -> features (B,D) -> embedding (B,E).

    Clips are uint8 0..255, normalised here, or float and already normalised; T, H and W multiples of the
    tubelet's size.

    Args:
        config: what to build.
        core: to be shared with other towers, None = a new one.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    def __init__(self, config: VideoTowerConfig, core: nn.Module | None = None) -> None:
        grid = tower_grid(config)  # what is wrong with the sizes is said before a stem is made of them
        super().__init__(config, video_stem(config), grid, core)


def still(pixels: Tensor, config: VideoTowerConfig) -> Tensor:
    """Clips (B,3,t,H,W) of one tubelet's length, in which the pictures (B,3,H,W) stand still.

    Their one place in time is what resampling makes of the positions of a whole clip.
    """
    frames = config.patch_size[0] if config.stem is None else config.stem.stride[0]
    return pixels[:, :, None].expand(-1, -1, frames, -1, -1)
