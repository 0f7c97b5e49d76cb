"""One tower of an `.npz` file: its config read from the shapes, its tensors under our names.

Source: big_vision `models/vit.py`, `models/proj/image_text/text_transformer.py`, `models/mlp_mixer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmvit.hub.convert.families import family_of
from mmvit.hub.convert.keymap import Line, Report, translate
from mmvit.hub.convert.npz import names
from mmvit.hub.convert.npz.match import picture_grid
from mmvit.models.config import ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig, MixerConfig

# How many axes each kernel has; another number is a layer of another kind.
_AXES = {
    r"(.*/)?(query|key|value|out)/kernel": 3,
    r"(embedding|stem)/kernel": 4,
    r"(.*/)?(Dense_\d+|head|pre_logits)/kernel": 2,
    r"Embed_0/embedding": 2,
    r"(.*/)?(pos_embedding|cls|probe)": 3,
}
_STRANGERS = {
    "BertEncoder_0/": "a BERT text tower in flaxformer's names, which is not converted",
    "conv_root/": "a hybrid of ResNet and transformer, which is not converted",
}


def read_image(
    state: dict[str, Tensor],
    head: list[Line],
    family: str | None,
    size: tuple[int, int] | None,
    source: str,
    prefix: str = "",
) -> tuple[ImageTowerConfig, dict[str, Tensor], Report]:
    """An image tower's config, tensors under our names, and report in the file's names.

    Args:
        state: the tower's tensors.
        head: lines for what stands on the tower.
        family: a name in `FAMILIES`, None = by the form of the file.
        size: (height, width) in pixels that the caller names, None = by the positions.
        source: the file, for messages.
        prefix: what stands before the tower's names in the file.

    Raises:
        ValueError: no image tower, or tensors that do not fit.
    """
    if any(name.startswith(("MixerBlock_", "Mixer/")) for name in state):
        return _mixer(state, head, family, size, source, prefix)
    tower, report, raw = _read(state, [*names.VIT, *head], source, prefix)
    patch = _need(tower, "patch_embed.proj.weight", "embedding/kernel").shape[-1]
    rows = tower["pos_embed"].shape[1] if "pos_embed" in tower else None
    grid, special = picture_grid(rows, (0, 1) if "cls_token" in tower else (0,), size, patch)
    row = family_of(family or ("augreg" if special else "big_vision"))
    pool: Any = "map" if "pool.latent" in tower else "cls" if "cls_token" in tower else "mean"
    core = CoreConfig(**_sizes(tower), num_heads=_heads(raw), **row.core_fields)
    fields = row.tower_fields | {
        "class_token": "cls_token" in tower,
        "class_position": bool(special),
        "pool": pool,
    }
    config = ImageTowerConfig(
        core=core,
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        patch_bias="patch_embed.proj.bias" in tower,
        position="learned" if rows else "sincos2d",
        **fields,
    )
    return config, tower, report


def _mixer(
    state: dict[str, Tensor],
    head: list[Line],
    family: str | None,
    size: tuple[int, int] | None,
    source: str,
    prefix: str,
) -> tuple[ImageTowerConfig, dict[str, Tensor], Report]:
    """As `read_image`, for an MLP-Mixer."""
    tower, report, _ = _read(state, [*names.MIXER, *head], source, prefix)
    patch = _need(tower, "patch_embed.proj.weight", "stem/kernel").shape[-1]
    mixing = _need(tower, "core.blocks.0.mlp_tokens.fc1.weight", "MixerBlock_0/token_mixing/Dense_0")
    grid, _ = picture_grid(mixing.shape[1], (0,), size, patch)
    row = family_of(family or "mixer")
    core = MixerConfig(
        **_sizes(tower, "mlp_channels"),
        tokens=mixing.shape[1],
        token_dim=mixing.shape[0],
        norm_eps=row.norm_eps,
        activation=row.activation,
    )
    config = ImageTowerConfig(
        core=core,
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        patch_bias="patch_embed.proj.bias" in tower,
        position="none",
        **row.tower_fields,
    )
    return config, tower, report


def read_text(
    state: dict[str, Tensor], source: str, prefix: str = ""
) -> tuple[TextTowerConfig, dict[str, Tensor], Report]:
    """A text tower's config, tensors under our names, and report in the file's names.

    Args:
        state: the tower's tensors.
        source: the file, for messages.
        prefix: what stands before the tower's names in the file.

    Raises:
        ValueError: no text tower of big_vision's, or tensors that do not fit.
    """
    tower, report, raw = _read(state, [*names.TEXT, *names.HEAD], source, prefix)
    head = tower.get("head.weight")
    config = TextTowerConfig(
        core=CoreConfig(**_sizes(tower), num_heads=_heads(raw), **family_of("lit").core_fields),
        vocab_size=_need(tower, "tok_embed.weight", "Embed_0/embedding").shape[0],
        context_length=_need(tower, "pos_embed", "pos_embedding").shape[1],
        pool="map" if "pool.latent" in tower else "last",
        pad_mask=False,
        embed_dim=None if head is None else head.shape[0],
        head_bias=head is None or "head.bias" in tower,
    )
    return config, tower, report


def _read(
    state: dict[str, Tensor], table: list[Line], source: str, prefix: str
) -> tuple[dict[str, Tensor], Report, dict[str, Tensor]]:
    """One tower's tensors under our names, the report in the file's names, the tensors under modern names."""
    for start, what in _STRANGERS.items():
        if any(name.startswith(start) for name in state):
            raise ValueError(f"holds {what}")
    found, origin = names.modern(state)
    for name, value in found.items():
        axes = next((n for pattern, n in _AXES.items() if re.fullmatch(pattern, name)), value.ndim)
        if value.ndim != axes:
            raise ValueError(f"'{prefix}{origin[name][0]}' is {tuple(value.shape)}, expected {axes} axes")
    translated, report = translate(found, table, source=source)
    report.loaded = {
        ours: [prefix + old for name in theirs for old in origin[name]]
        for ours, theirs in report.loaded.items()
    }
    report.left_out = {prefix + origin[name][0]: why for name, why in report.left_out.items()}
    return translated, report, found


def _heads(found: Mapping[str, Tensor]) -> int:
    """The number of heads: q kernels are stored as (D,H,K)."""
    queries = [v for name, v in found.items() if re.fullmatch(r".*/encoderblock_0/Mul.*/query/kernel", name)]
    if not queries:
        raise ValueError("lacks 'encoderblock_0/MultiHeadDotProductAttention_0/query/kernel'")
    return queries[0].shape[1]


def _sizes(tower: Mapping[str, Tensor], mlp: str = "mlp") -> dict[str, Any]:
    """Width, depth and hidden width of a core out of its tensors."""
    numbers = {int(m[1]) for name in tower if (m := re.match(r"core\.blocks\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"has blocks {sorted(numbers)[:8]}, expected 0..{len(numbers) - 1} without gaps")
    return {
        "width": _need(tower, "core.blocks.0.norm1.weight", "the first block's LayerNorm_0/scale").shape[0],
        "depth": len(numbers),
        "mlp_dim": _need(tower, f"core.blocks.0.{mlp}.fc1.weight", "the first block's Dense_0").shape[0],
    }


def _need(tower: Mapping[str, Tensor], name: str, theirs: str) -> Tensor:
    if name not in tower:
        raise ValueError(f"lacks '{theirs}': it is no tower of big_vision's that is known")
    return tower[name]
