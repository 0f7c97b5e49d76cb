"""The last step of every conversion: translated tensors and a config become a model, with nothing left over.

Three things may differ from the source because the caller asked for them in the config: fewer blocks, a
shorter context, positions of another grid. Each is reported; any other difference is an error.
"""

from __future__ import annotations

import logging
import math
import re

from torch import Tensor, nn

from mmvit.hub.convert.keymap import Report, fill
from mmvit.models.config import DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.presets import AnyConfig, build_model
from mmvit.tokens.positions import resample_grid

log = logging.getLogger(__name__)


def assemble(config: AnyConfig, state: dict[str, Tensor], report: Report, *, source: str) -> nn.Module:
    """The model that `config` describes, filled with `state`, in eval mode; `.report` tells what happened.

    Args:
        config: of our model.
        state: tensors under our names (with "image." and "text." before those of a pair's towers).
        report: of the translation so far; completed here.
        source: what the tensors come from, for messages.

    Raises:
        ValueError: missing, unexpected or wrongly shaped tensors.
    """
    towers = (
        {"image.": config.image, "text.": config.text}
        if isinstance(config, DualEncoderConfig)
        else {"": config}
    )
    for prefix, tower in towers.items():
        if isinstance(tower, ImageTowerConfig | TextTowerConfig):
            _shorten(prefix, tower, state, report)
            _positions(prefix, tower, state, report)
    model = build_model(config)
    fill(model, state, source=source)
    model.eval()
    model.report = report  # type: ignore[assignment]
    log.info("%s: %s", source, report)
    return model


def _shorten(
    prefix: str, config: ImageTowerConfig | TextTowerConfig, state: dict[str, Tensor], report: Report
) -> None:
    """Takes out blocks beyond the depth asked for, and the final norm if it is not wanted."""
    for name in list(state):
        block = re.match(re.escape(prefix) + r"core\.blocks\.(\d+)\.", name)
        why = None
        if block and int(block[1]) >= config.core.depth:
            why = f"depth is {config.core.depth}"
        elif name.startswith(f"{prefix}core.norm.") and not config.core.norm_last:
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
        new = old[:, : config.context_length]
    else:
        special = int(config.class_token and config.class_position)
        side = math.isqrt(old.shape[1] - special)
        goal = (config.image_size[0] // config.patch_size, config.image_size[1] // config.patch_size)
        if side * side + special != old.shape[1] or goal[0] * goal[1] + special == old.shape[1]:
            return
        grid = resample_grid(old[:, special:], (side, side), goal, config.position_resample)
        new = grid.new_empty(1, special + grid.shape[1], grid.shape[2])
        new[:, :special], new[:, special:] = old[:, :special], grid
    if new.shape != old.shape:
        report.resized[name] = (tuple(old.shape), tuple(new.shape))
        state[name] = new
