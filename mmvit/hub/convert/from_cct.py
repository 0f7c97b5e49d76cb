"""State dicts of the Compact-Transformers repository (cct_*) -> our tower or classifier.

The names do not tell the stride, the heads or the picture's size, so a preset does; a file that does not fit
it is an error.
Source: CCT (arXiv:2104.05704), https://github.com/SHI-Labs/Compact-Transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.heads import with_head
from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks, strip_prefix, translate
from mmvit.models.config import ImageTowerConfig
from mmvit.models.overrides import override
from mmvit.models.presets import preset as preset_of
from mmvit.models.stem import grid_of
from mmvit.tokens.positions import FIXED

CCT: list[Line] = [
    ("tokenizer.conv_layers.{i}.0.weight", "patch_embed.convs.{i}.weight"),
    ("classifier.positional_emb", "pos_embed"),
    *blocks(
        "classifier.blocks.{i}.",
        "core.blocks.{i}.",
        [
            ("pre_norm.*", "norm1.*"),
            ("self_attn.qkv.weight", "attn.qkv.weight"),
            ("self_attn.proj.*", "attn.proj.*"),
            ("norm1.*", "norm2.*"),
            ("linear1.*", "mlp.fc1.*"),
            ("linear2.*", "mlp.fc2.*"),
        ],
    ),
    ("classifier.norm.*", "core.norm.*"),
    ("classifier.attention_pool.*", "pool.attention.*"),
]
_RECOMPUTED = LEFT_OUT + "a fixed table, which is computed anew"


def from_cct(state: Mapping[str, Tensor], preset: str, *, head: bool = True, **overrides: Any) -> nn.Module:
    """A classifier or image tower with the weights of `state`, in eval mode; `.report` tells what was done.

    Args:
        state: a state dict with the repository's names; "module." before them is taken off.
        preset: the model that it belongs to, e.g. "cct_7_3x1_32" or "cct_7_3x1_32_sine".
        head: False leaves a classifier out: the tower alone.
        overrides: fields of our config to change, e.g. `image_size=64`.

    Raises:
        ValueError: `preset` is no CCT, or tensors that do not fit it.
    """
    config = preset_of(preset)
    if not preset.startswith("cct_") or not isinstance(config, ImageTowerConfig):
        raise ValueError(f"preset is '{preset}', expected the cct_* model that the weights belong to")
    config = override(config, overrides)
    state = strip_prefix(state, ["module."])
    fixed = config.position in FIXED
    table = [line for line in CCT if not (fixed and line[1] == "pos_embed")]
    if fixed:
        table.append(("classifier.positional_emb", _RECOMPUTED))
    classes = len(state["classifier.fc.weight"]) if head and "classifier.fc.weight" in state else 0
    built, table = with_head(config, table, {"classifier.fc": "head"}, classes)
    translated, report = translate(state, table, source=preset)
    if fixed:
        grid = grid_of(config.image_size, (config.patch_size, config.patch_size), config.stem)
        positions = FIXED[config.position](grid, config.core.width)
        assert positions is not None, "a preset with fixed positions has a table"
        translated["tower.pos_embed" if classes else "pos_embed"] = positions
    return assemble(built, translated, report, source=preset)
