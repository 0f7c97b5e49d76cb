"""The last step of every conversion: translated tensors and a config become a model, with nothing left over.

A few things may differ from the source because the caller asked for them in the config: fewer blocks, a
shorter context, positions of another grid, patches of another size in a model made for many. Each is
reported; any other difference is an error.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any

from torch import Tensor, nn

from mmvit.core.relative import resample_table
from mmvit.hub.convert.files.sizes import check_sizes
from mmvit.hub.convert.keymap import Report, fill, shapes_of
from mmvit.models.config import (
    ClassifierConfig,
    DetectorConfig,
    DualEncoderConfig,
    ImageTowerConfig,
    TextTowerConfig,
    TowerConfig,
)
from mmvit.models.core_config import CoreConfig
from mmvit.models.presets import AnyConfig, build_model
from mmvit.models.stem import grid_of, tower_grid
from mmvit.models.unfilled import Unfilled
from mmvit.tokens.flexi import resample_kernel
from mmvit.tokens.positions import FIXED, resample_grid

log = logging.getLogger(__name__)


def assemble(config: AnyConfig, state: dict[str, Tensor], report: Report, *, source: str) -> nn.Module:
    """The model that `config` describes, filled with `state`, in eval mode; `.report` tells what happened.

    Args:
        config: of our model.
        state: tensors under our names (with "image." and "text." before those of two towers).
        report: of the translation so far; completed here.
        source: what the tensors come from, for messages.

    Raises:
        ValueError: missing, unexpected or wrongly shaped tensors.
    """
    towers: dict[str, Any] = {"": config}
    if isinstance(config, DualEncoderConfig | DetectorConfig):
        towers = {"image.": config.image, "text.": config.text}
    elif isinstance(config, ClassifierConfig):
        towers = {"tower.": config.tower}
    for prefix, tower in towers.items():
        if isinstance(tower, TowerConfig | TextTowerConfig):
            _shorten(prefix, tower, state, report)
        if isinstance(tower, ImageTowerConfig | TextTowerConfig):
            _positions(prefix, tower, state, report)
        if isinstance(tower, ImageTowerConfig):
            _patches(prefix, tower, state, report)
        if isinstance(tower, TowerConfig) and isinstance(tower.core, CoreConfig) and tower.core.relative:
            _relative(prefix, tower_grid(tower), tower.core.relative_resample, state, report)
        if isinstance(tower, TowerConfig):
            _fixed_positions(prefix, tower, state)
    check_sizes(config, shapes_of(state), source=source)
    with Unfilled():
        model = build_model(config)
    fill(model, state, source=source)
    model.eval()
    model.report = report  # type: ignore[assignment]
    log.info("%s: %s", source, report)
    return model


def _shorten(
    prefix: str, config: TowerConfig | TextTowerConfig, state: dict[str, Tensor], report: Report
) -> None:
    """Takes out blocks beyond the depth asked for, and the final norm if it is not wanted."""
    for name in list(state):
        block = re.match(re.escape(prefix) + r"core\.blocks\.(\d+)\.", name)
        why = None
        if block and int(block[1]) >= config.core.depth:
            why = f"depth is {config.core.depth}"
        elif name.startswith(f"{prefix}core.norm.") and not getattr(config.core, "norm_last", True):
            why = "norm_last is off"
        if why:
            del state[name]
            for origin in report.loaded.pop(name):
                report.left_out[origin] = why


def _positions(
    prefix: str, config: ImageTowerConfig | TextTowerConfig, state: dict[str, Tensor], report: Report
) -> None:
    """Cuts a longer context, or resamples the grid of a picture, where the config asks for another size."""
    name = f"{prefix}pos_embed"
    if name not in state:
        return
    old = state[name]
    if isinstance(config, TextTowerConfig):
        new = old[:, : config.context_length + (config.class_last != "none")]
    else:
        special = (config.class_token + config.distill_token) * config.class_position
        side = math.isqrt(old.shape[1] - special)
        goal = grid_of(config.image_size, (config.patch_size, config.patch_size), config.stem)
        if side * side + special != old.shape[1] or goal[0] * goal[1] + special == old.shape[1]:
            return
        grid = resample_grid(old[:, special:], (side, side), (goal[0], goal[1]), config.position_resample)
        new = grid.new_empty(1, special + grid.shape[1], grid.shape[2])
        new[:, :special], new[:, special:] = old[:, :special], grid
    if new.shape != old.shape:
        report.resized[name] = (tuple(old.shape), tuple(new.shape))
        state[name] = new


def _patches(prefix: str, config: ImageTowerConfig, state: dict[str, Tensor], report: Report) -> None:
    """Resamples the patch kernel of a model made for many patch sizes, where the config asks for another."""
    name = f"{prefix}patch_embed.proj.weight"
    old = state.get(name)
    if old is None or config.stem is not None or old.shape[-1] == config.patch_size:
        return
    if config.patch_resample is None:
        raise ValueError(
            f"patch_size is {config.patch_size}, the kernel is {old.shape[-1]} wide: say how it is resized, "
            "patch_resample='pi' (FlexiViT's paper) or 'timm'"
        )
    state[name] = resample_kernel(old, config.patch_size, config.patch_resample)
    report.resized[name] = (tuple(old.shape), tuple(state[name].shape))


def _relative(
    prefix: str, grid: tuple[int, ...], mode: str, state: dict[str, Tensor], report: Report
) -> None:
    """Resamples tables of relative positions, stored for a square grid, where the config asks for another."""
    rows = math.prod(2 * n - 1 for n in grid) + 3
    for name in [n for n in state if n.startswith(f"{prefix}core.") and n.endswith("relative.table")]:
        old = state[name]
        side = math.isqrt(old.shape[0] - 3)
        if len(grid) == 2 and side * side == old.shape[0] - 3 and old.shape[0] != rows:
            state[name] = resample_table(old, ((side + 1) // 2,) * 2, grid, mode)
            report.resized[name] = (tuple(old.shape), tuple(state[name].shape))


def _fixed_positions(prefix: str, config: TowerConfig, state: dict[str, Tensor]) -> None:
    """Computes a fixed table that the source computes as well and therefore does not hold."""
    if config.position not in FIXED or f"{prefix}pos_embed" in state:
        return
    table = FIXED[config.position](tower_grid(config), config.core.width)
    if table is not None:
        state[f"{prefix}pos_embed"] = table
