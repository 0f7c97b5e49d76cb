"""The tower that all modalities share: grid tokens -> special tokens -> core -> pool -> head.

Place in the path: `ImageTower` and its kin build the stem that turns their input into grid tokens; everything
behind it stands here once.
Shape letters: B batch, N grid tokens, P special tokens, D width, E embedding width.
Source: ViT (arXiv:2010.11929); the distillation token: DeiT (arXiv:2012.12877); parameter names follow timm
inside `core.blocks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvit.heads.pool import TokenPool
from mmvit.heads.project import Head
from mmvit.models.build import build_core, build_tower_pool
from mmvit.models.config import TowerConfig
from mmvit.models.core_config import CaitConfig
from mmvit.tokens.image import PatchEmbed
from mmvit.tokens.positions import (
    FIXED,
    RECOMPUTE,
    RESAMPLE,
    add_positions,
    axes,
    prepend,
    separable,
    separable_length,
)
from mmvit.tokens.select import select
from mmvit.types import Encoded, Tokens


class GridTower(nn.Module):
    """Inputs on a grid -> features (B,D) -> embedding (B,E).

    State dict: `patch_embed.*`, `cls_token`, `dist_token`, `reg_token`, `pos_embed`, `pre.*`, `pos_norm.*`,
    `core.*`, `post.*`, `pool.*`, `head.*`. The sequence is [class token, distillation token, registers, grid
    row-major]; registers have no position.

    Args:
        config: what to build.
        patch_embed: the stem, inputs -> Tokens (B,N,D) without positions.
        grid: of the tokens that the stem gives for inputs of the stored size.
        core: the core to use, None = a new one from the config; given to several towers it is shared.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    config: Any
    core: Any

    def __init__(
        self,
        config: TowerConfig,
        patch_embed: nn.Module,
        grid: tuple[int, ...],
        core: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check(config)
        width = config.core.width
        self.config, self.grid, self.patch_embed = config, grid, patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if config.distill_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        learned = config.position in ("learned", "separable", "axes")
        named = int(config.class_token) + int(config.distill_token)
        self.position_rows = named if config.class_position and learned else 0
        self.pos_embed: Tensor | None
        if learned:
            counts: dict[str, Callable[[tuple[int, ...]], int]] = {"separable": separable_length, "axes": sum}
            rows = counts.get(config.position, math.prod)(grid)
            self.pos_embed = nn.Parameter(torch.zeros(1, self.position_rows + rows, width))
        else:
            self.register_buffer("pos_embed", FIXED[config.position](grid, width))
        self.pre: nn.Module = mapped(width, width) if config.pre_projection else nn.Identity()
        self.pos_norm = nn.LayerNorm(width, eps=1e-6) if config.position_norm else None
        self.dropout = nn.Dropout(config.token_dropout)
        self.core = build_core(config.core, grid) if core is None else core
        out = config.core.out_width
        after = config.post_projection
        self.post: nn.Module = nn.Identity() if after is None else mapped(out, after)
        self.pool = build_tower_pool(config.pool, config.core, config.pool_eps, config.queries)
        self.head = Head(
            config.feature_width,
            config.embed_dim,
            center=config.center,
            bias=config.head_bias,
            hidden=config.head_hidden,
        )
        self.reset_parameters()

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return self.config.feature_width

    @property
    def embed_dim(self) -> int:
        """E, the width of the embedding."""
        return self.head.embed_dim

    def reset_parameters(self) -> None:
        """Positions N(0, 1/sqrt(D)) or `position_std`, class token `class_std`, registers N(0, 0.02), else 0.

        Differs: registers without positions would stay equal to each other if they started at zero.
        """
        if isinstance(self.pos_embed, nn.Parameter):
            std = self.config.position_std
            nn.init.normal_(self.pos_embed, std=self.pos_embed.shape[-1] ** -0.5 if std is None else std)
        if self.cls_token is not None and self.config.class_std:
            nn.init.normal_(self.cls_token, std=self.config.class_std)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=0.02)

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.core.set_checkpointing(on)

    def tokens(self, x: Tensor, keep: Tensor | None = None, *, patch_size: int | None = None) -> Tokens:
        """What the core will see: special tokens and grid tokens with positions, (B,P+N,D).

        Args:
            x: what the tower's stem takes.
            keep: (B,K) int64 indices into the row-major grid, None = all of it.
            patch_size: side of a patch for this call, of a model made for many; None = the stored one.

        Raises:
            ValueError: a patch size that this tower was not made for, or that does not divide the input.
        """
        tokens = self._stem(x, patch_size)
        tokens.values = self.pre(tokens.values)
        table, stored, mode = self.pos_embed, self.grid, self.config.position_resample
        if table is not None:
            rows = table
            if self.config.position == "separable":
                rows = separable(table[:, self.position_rows :], self.grid, tokens.grid, mode)
                stored = tokens.grid
            elif self.config.position == "axes":
                rows = axes(table[:, self.position_rows :], self.grid, tokens.grid, mode)
                stored = tokens.grid
            elif mode == RECOMPUTE and tokens.grid != stored:
                fixed = FIXED[self.config.position](tokens.grid, table.shape[-1])
                assert fixed is not None
                rows, stored = fixed.to(table), tokens.grid
            rows = rows if self.pos_norm is None else self.pos_norm(rows)
            tokens = add_positions(tokens, rows, stored, mode)
        tokens.values = self.dropout(tokens.values)
        if keep is not None:
            tokens = select(tokens, keep)
        named: list[Tensor] = [t for t in (self.cls_token, self.dist_token) if t is not None]
        if self.position_rows and table is not None:
            first = table[:, : self.position_rows]
            first = first if self.pos_norm is None else self.pos_norm(first)
            named = [token + first[:, row : row + 1] for row, token in enumerate(named)]
        return prepend(tokens, *named, self.reg_token)

    def forward_tokens(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        layers: Sequence[int] = (),
        *,
        patch_size: int | None = None,
    ) -> Encoded:
        """Every token of the last layer after the final norm, and the layers asked for.

        Args:
            x: as `tokens` takes it.
            keep: likewise.
            layers: block numbers from 1, or negative from the end; their outputs are before the final norm.
            patch_size: as `tokens` takes it.
        """
        encoded = self.core(self.tokens(x, keep, patch_size=patch_size), layers)
        encoded.values = self.post(encoded.values)
        return encoded

    def features(self, x: Tensor, keep: Tensor | None = None, *, patch_size: int | None = None) -> Tensor:
        """Pooled output (B,D) before the head: what is cached, probed and classified.

        Args:
            x: as `tokens` takes it.
            keep: likewise.
            patch_size: likewise.
        """
        if isinstance(self.pool, TokenPool) and hasattr(self.core, "forward_one"):
            tokens = self.tokens(x, keep, patch_size=patch_size)
            return self.post(self.core.forward_one(tokens, self.pool.index(None)))
        return self.pool(self.forward_tokens(x, keep, patch_size=patch_size))

    def project(self, features: Tensor) -> Tensor:
        """The embedding (B,E) float32 of features (B,D), not normalised."""
        return self.head(features)

    def forward(self, x: Tensor, keep: Tensor | None = None, *, patch_size: int | None = None) -> Tensor:
        """The embedding (B,E) float32, not normalised; arguments as `tokens` takes them."""
        return self.project(self.features(x, keep, patch_size=patch_size))

    def _stem(self, x: Tensor, patch_size: int | None) -> Tokens:
        """Grid tokens (B,N,D) without positions, cut at another patch size if the stem can."""
        if patch_size is None:
            return self.patch_embed(x)
        if not isinstance(self.patch_embed, PatchEmbed):
            raise ValueError(f"patch_size={patch_size} was asked for, and this tower has no square patches")
        return self.patch_embed(x, patch_size)


def mapped(width: int, out: int) -> nn.Module:
    """A linear map and GELU, xavier as the core's."""
    linear = nn.Linear(width, out)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.GELU())


_UNSIZED = ("cls", "mean", "cls_dist")  # poolings without weights


def _check(config: TowerConfig) -> None:
    """Raises ValueError for a tower that cannot be."""
    if config.pool in ("last", "eos"):
        raise ValueError(f"pool is '{config.pool}', which reads the end of a text: expected cls, mean or map")
    own_token = isinstance(config.core, CaitConfig)
    if config.pool in ("cls", "cls_tanh") and not (config.class_token or own_token):
        raise ValueError(
            f"pool is '{config.pool}' and class_token is False: choose pool='map' or 'mean', or a class token"
        )
    if config.class_token and own_token:
        raise ValueError("class_token is True, but this core brings its own: set class_token=False")
    if config.pool in ("cls_dist", "cls_dist_norm") and not config.distill_token:
        raise ValueError(f"pool is '{config.pool}' and distill_token is False: it reads that token too")
    if config.distill_token and not config.class_token:
        raise ValueError("distill_token is True and class_token is False: it follows a class token")
    kinds = ("learned", "separable", "axes", *FIXED)
    if config.position not in kinds:
        raise ValueError(f"position is '{config.position}', expected one of {', '.join(kinds)}")
    if config.position_norm and config.position == "none":
        raise ValueError("position_norm is True and position is 'none': there is nothing to norm")
    if config.post_projection not in (None, config.core.out_width) and config.pool not in _UNSIZED:
        raise ValueError(
            f"post_projection is {config.post_projection} and pool is '{config.pool}', which has weights as "
            f"wide as the core's tokens: set it to {config.core.out_width}, or pool to one of "
            f"{', '.join(_UNSIZED)}"
        )
    if config.position_resample == RECOMPUTE:
        if config.position not in FIXED:
            raise ValueError("position_resample is 'recompute', which needs a fixed table: name another mode")
    elif config.position_resample not in RESAMPLE:
        raise ValueError(
            f"position_resample is '{config.position_resample}', expected one of {', '.join(RESAMPLE)}"
        )
