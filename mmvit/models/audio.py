"""The audio tower: log-mel spectrograms -> tokens -> core -> pool -> head.

Shape letters: B batch, T frames, M mel bands, D width, E embedding width.
Source: AST (arXiv:2104.01778); AudioMAE (arXiv:2207.06405) for patches side by side.
"""

from __future__ import annotations

from mmvit.models.config import AudioTowerConfig
from mmvit.models.stem import audio_stem, tower_grid
from mmvit.models.tower import GridTower


class AudioTower(GridTower):
    """Log-mel spectrograms (B,T,M) -> features (B,D) -> embedding (B,E).

    Spectrograms are floating point and already normalised, frames before mel bands, as transformers takes
    them. The token grid is (frequency, time), frequency slowest.

    Args:
        config: what to build.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__(config, audio_stem(config), tower_grid(config))
