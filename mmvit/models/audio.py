"""The audio towers: log-mel spectrograms or raw waveforms -> tokens -> core -> pool -> head.

Shape letters: B batch, T frames, M mel bands, S samples, D width, E embedding width.
Source: AST (arXiv:2104.01778); AudioMAE (arXiv:2207.06405) for patches side by side; VATT
(arXiv:2104.11178) for waveforms.
"""

from __future__ import annotations

from torch import nn

from mmvit.models.config import AudioTowerConfig, WaveformTowerConfig
from mmvit.models.stem import audio_stem, tower_grid, waveform_stem
from mmvit.models.tower import GridTower


class AudioTower(GridTower):
    """Log-mel spectrograms (B,T,M) -> features (B,D) -> embedding (B,E).

    Spectrograms are floating point and already normalised, frames before mel bands, as transformers takes
    them. The token grid is (frequency, time), frequency slowest; that of another stem is the stem's own.

    Args:
        config: what to build.
        core: to be shared with other towers, None = a new one.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    def __init__(self, config: AudioTowerConfig, core: nn.Module | None = None) -> None:
        grid = tower_grid(config)  # what is wrong with the sizes is said before a stem is made of them
        super().__init__(config, audio_stem(config), grid, core)


class WaveformTower(GridTower):
    """Waveforms (B,S) -> features (B,D) -> embedding (B,E).

    Waveforms are mono, floating point, -1..1, at the rate that the tower was trained on; S a multiple of the
    patch.

    Args:
        config: what to build.
        core: to be shared with other towers, None = a new one.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    def __init__(self, config: WaveformTowerConfig, core: nn.Module | None = None) -> None:
        grid = tower_grid(config)
        super().__init__(config, waveform_stem(config), grid, core)
