"""Weight files as DeiT, CaiT, MAE, BEiT, iBOT, DINOv2 and others were released -> our models.

Sizes are read from the shapes. Several families have equal names, so the family must be said; what no file
tells (epsilon, normalisation, pooling, which token has a position) then comes from `families.py`.
Source: the repositories deit, mae, beit, ibot and dinov2; their names are those of timm at their time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mmvit.errors import nearest
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.families import Family, family_of
from mmvit.hub.convert.files.read import read_safetensors, read_torch
from mmvit.hub.convert.heads import with_head
from mmvit.hub.convert.keymap import strip_prefix, translate
from mmvit.hub.convert.npz.match import picture_grid
from mmvit.hub.convert.pth import convnext_v2
from mmvit.hub.convert.pth.clips import READERS, convert
from mmvit.hub.convert.pth.names import CLASSIFIERS, RELEASES, modern
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import CaitConfig, CoreConfig
from mmvit.models.overrides import override


def from_checkpoint(
    path: str | Path,
    family: str,
    *,
    head: bool = True,
    num_heads: int | None = None,
    branch: Literal["teacher", "student"] = "teacher",
    **overrides: Any,
) -> nn.Module:
    """A tower or classifier with the weights of an official PyTorch file, in eval mode; `.report` tells all.

    Args:
        path: a `.pth` or `.pt` file of plain tensors, or a `.safetensors` file; pickled objects are refused.
        family: whose weights: deit, deit_distilled, deit3, cait, mae, beit, beit_in22k, ibot, dinov2,
            videomae, ast, audiomae or convnextv2.
        head: False leaves a classifier out: the tower alone. Heads of self-supervision are always left out.
        num_heads: no tensor tells it; None = by the width, as in all released models.
        branch: which of the two networks of a self-distilled training file.
        overrides: fields of our config to change, e.g. `image_size=384`, `depth=11`, `pool="mean"`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown family, a damaged file, or tensors that do not fit.
    """
    known = (*RELEASES, *READERS, "convnextv2")
    if family not in known:
        raise ValueError(f"no weight files of family '{family}' are known: {nearest(family, known)}")
    path = Path(path)
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        state = read_torch(path, ("model", "state_dict", "module", branch))
    if family == "convnextv2":
        return convnext_v2.convert(state, head=head, source=str(path), overrides=overrides)
    if family in READERS:
        return convert(state, family, head=head, num_heads=num_heads, source=str(path), overrides=overrides)
    state, origin, constants = modern(strip_prefix(state, ("backbone.",)), family)
    config: Any
    try:
        config = _config(state, family, num_heads, overrides)
    except ValueError as error:
        raise ValueError(f"'{path}' as family '{family}': {error}") from None
    kept = head and family in CLASSIFIERS and "head.weight" in state
    classes = _classes(state, str(path)) if kept else 0
    config, table = with_head(config, RELEASES[family], {"head": "head", "head_dist": "head_dist"}, classes)
    translated, report = translate(state, table, source=str(path))
    report.loaded = {ours: [origin[name] for name in theirs] for ours, theirs in report.loaded.items()}
    report.left_out = {origin[name]: why for name, why in report.left_out.items()} | constants
    return assemble(override(config, overrides), translated, report, source=str(path))


def _classes(state: Mapping[str, Tensor], source: str) -> int:
    """C of the classifier."""
    if state["head.weight"].ndim != 2:
        raise ValueError(f"'{source}': 'head.weight' is {tuple(state['head.weight'].shape)}, expected (C,D)")
    return state["head.weight"].shape[0]


def _config(
    state: dict[str, Tensor], family: str, num_heads: int | None, overrides: Mapping[str, Any]
) -> ImageTowerConfig:
    """Our tower's config by the shapes of the tensors and the constants of the family."""
    row = family_of(family)
    if family == "dinov2" and "reg_token" in state:
        row = family_of("dinov2_reg")
    kernel = _need(state, "patch_embed.proj.weight")
    if kernel.ndim == 2:  # old files: (D,3*p*p)
        side = math.isqrt(kernel.shape[1] // 3)
        kernel = state["patch_embed.proj.weight"] = kernel.reshape(-1, 3, side, side)
    patch = kernel.shape[-1]
    distill = "dist_token" in state
    grid = _grid(state, row, distill, patch, overrides)
    core = _cait_core(state, row, num_heads) if family == "cait" else _core(state, row, num_heads)
    pool: Any = "mean_norm" if "fc_norm.weight" in state else row.pool
    fields = row.tower_fields | {"class_token": family != "cait", "pool": pool}
    return ImageTowerConfig(
        core=core,
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        patch_bias="patch_embed.proj.bias" in state,
        distill_token=distill,
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        position="learned" if "pos_embed" in state else "none",
        **fields,
    )


def _grid(
    state: Mapping[str, Tensor], row: Family, distill: bool, patch: int, overrides: Mapping[str, Any]
) -> tuple[int, int]:
    """(height, width) in tokens for which positions are stored."""
    size: Any = next((v for k, v in overrides.items() if k.split(".")[-1] == "image_size"), None)
    size = (size, size) if isinstance(size, int) else size
    tables = [value for name, value in state.items() if name.endswith("relative.table")]
    if "pos_embed" in state:
        special = (1 + distill) * row.class_position
        grid, _ = picture_grid(state["pos_embed"].shape[1], (special,), size, patch)
        return grid
    if not tables:
        raise ValueError("holds no positions ('pos_embed' or a table of relative ones)")
    side = (math.isqrt(tables[0].shape[0] - 3) + 1) // 2
    if (2 * side - 1) ** 2 + 3 != tables[0].shape[0]:
        raise ValueError(f"its table of relative positions has {tables[0].shape[0]} rows, no square grid's")
    return side, side


def _core(state: Mapping[str, Tensor], row: Family, num_heads: int | None) -> CoreConfig:
    if any(".mlp.w12." in name for name in state):
        raise ValueError("its MLPs are gated (SwiGLU), for which our core has no place")
    sizes = _sizes(state, row, num_heads)
    split = "blocks.0.attn.q_bias" in state
    relative: Any = "shared" if "core.relative.table" in state else None
    if "blocks.0.relative.table" in state:
        relative = "block"
    fields = row.core_fields | {"norm_last": "norm.weight" in state}
    return CoreConfig(
        **sizes,
        qkv_bias=split or "blocks.0.attn.qkv.bias" in state,
        key_bias=not split,
        relative=relative,
        relative_resample="geometric" if relative else "bilinear",
        layer_scale=1.0 if "blocks.0.ls1.gamma" in state else None,
        **fields,
    )


def _cait_core(state: Mapping[str, Tensor], row: Family, num_heads: int | None) -> CaitConfig:
    late = _numbers(state, "blocks_token_only")
    return CaitConfig(
        **_sizes(state, row, num_heads),
        class_depth=late,
        norm_eps=row.norm_eps,
        activation=row.activation,
    )


def _sizes(state: Mapping[str, Tensor], row: Family, num_heads: int | None) -> dict[str, Any]:
    width = _need(state, "blocks.0.norm1.weight").shape[0]
    return {
        "width": width,
        "depth": _numbers(state, "blocks"),
        "num_heads": num_heads or row.num_heads(width),
        "mlp_dim": _need(state, "blocks.0.mlp.fc1.weight").shape[0],
    }


def _numbers(state: Mapping[str, Tensor], stack: str) -> int:
    """How many blocks a stack has; they are numbered without gaps."""
    found = {int(m[1]) for name in state if (m := re.match(rf"{stack}\.(\d+)\.", name))}
    if found != set(range(len(found))):
        raise ValueError(f"has {stack} {sorted(found)[:8]}, expected 0..{len(found) - 1} without gaps")
    return len(found)


def _need(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"lacks '{name}': it is no vision transformer in timm's names")
    return state[name]
