"""The image tower: pixels -> tokens -> core -> pool -> head.

Shape letters: B batch, H/W pixels, N tokens, D width, E embedding width.
Source: ViT (arXiv:2010.11929); parameter names follow timm inside `core.blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvit.heads.pool import TokenPool
from mmvit.heads.project import Head
from mmvit.models.build import build_core, build_tower_pool
from mmvit.models.config import ImageTowerConfig
from mmvit.tokens.image import PatchEmbed
from mmvit.tokens.positions import RESAMPLE, add_positions, prepend, sincos_2d
from mmvit.tokens.select import select
from mmvit.types import Encoded, Tokens


class ImageTower(nn.Module):
    """Pixels (B,3,H,W) -> features (B,D) -> embedding (B,E).

    State dict: `patch_embed.proj.*`, `cls_token`, `reg_token`, `pos_embed`, `core.*`, `pool.*`, `head.*`.
    The sequence is [class token, registers, grid row-major]; registers have no position.

    Args:
        config: what to build.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        _check(config)
        width, p = config.core.width, config.patch_size
        self.config = config
        self.grid = (config.image_size[0] // p, config.image_size[1] // p)
        self.patch_embed = PatchEmbed(width, p, bias=config.patch_bias, mean=config.mean, std=config.std)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        self.class_position = config.class_token and config.class_position and config.position == "learned"
        if config.position == "learned":
            rows = self.grid[0] * self.grid[1] + self.class_position
            self.pos_embed: Tensor = nn.Parameter(torch.zeros(1, rows, width))
        else:
            self.register_buffer("pos_embed", sincos_2d(self.grid, width))
        self.core = build_core(config.core)
        self.pool = build_tower_pool(config.pool, config.core)
        self.head = Head(width, config.embed_dim, center=config.center, bias=config.head_bias)
        self.reset_parameters()

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return self.config.core.width

    @property
    def embed_dim(self) -> int:
        """E, the width of the embedding."""
        return self.head.embed_dim

    def reset_parameters(self) -> None:
        """Positions N(0, 1/sqrt(D)), class token 0, registers N(0, 0.02).

        Differs: registers without positions would stay equal to each other if they started at zero.
        """
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.normal_(self.pos_embed, std=self.width**-0.5)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=0.02)

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.core.set_checkpointing(on)

    def tokens(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        """What the core will see: special tokens and patches with positions, (B,P+N,D).

        Args:
            pixels: (B,3,H,W) uint8 0..255, or float already normalised; H and W multiples of the patch size.
            keep: (B,K) int64 indices into the row-major grid, None = all of it.
        """
        tokens = self.patch_embed(pixels)
        tokens = add_positions(tokens, self.pos_embed, self.grid, self.config.position_resample)
        if keep is not None:
            tokens = select(tokens, keep)
        cls: Tensor | None = self.cls_token
        if cls is not None and self.class_position:
            cls = cls + self.pos_embed[:, :1]
        return prepend(tokens, cls, self.reg_token)

    def forward_tokens(
        self, pixels: Tensor, keep: Tensor | None = None, layers: Sequence[int] = ()
    ) -> Encoded:
        """Every token of the last layer (B,P+N,D) after the final norm, and the layers asked for.

        Args:
            pixels: as `tokens` takes them.
            keep: likewise.
            layers: block numbers from 1, or negative from the end; their outputs are before the final norm.
        """
        return self.core(self.tokens(pixels, keep), layers)

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled output (B,D) before the head: what is cached, probed and classified.

        Args:
            pixels: (B,3,H,W) uint8 0..255, or float already normalised.
        """
        if isinstance(self.pool, TokenPool):
            return self.core.forward_one(self.tokens(pixels), self.pool.index(None))
        return self.pool(self.forward_tokens(pixels))

    def project(self, features: Tensor) -> Tensor:
        """The embedding (B,E) float32 of features (B,D), not normalised."""
        return self.head(features)

    def forward(self, pixels: Tensor) -> Tensor:
        """The embedding (B,E) float32 of pixels (B,3,H,W), not normalised."""
        return self.project(self.features(pixels))


def _check(config: ImageTowerConfig) -> None:
    """Raises ValueError for an image tower that cannot be."""
    p = config.patch_size
    if any(side % p or side <= 0 for side in config.image_size):
        raise ValueError(f"image_size is {config.image_size}, expected multiples of patch_size={p}")
    if config.pool not in ("cls", "mean", "mean_norm", "map"):
        raise ValueError(f"pool is '{config.pool}', expected cls, mean, mean_norm or map for an image tower")
    if config.pool == "cls" and not config.class_token:
        raise ValueError(
            "pool is 'cls' and class_token is False: choose pool='map' or 'mean', or a class token"
        )
    if config.position not in ("learned", "sincos2d"):
        raise ValueError(f"position is '{config.position}', expected 'learned' or 'sincos2d'")
    if config.position_resample not in RESAMPLE:
        raise ValueError(
            f"position_resample is '{config.position_resample}', expected one of {', '.join(RESAMPLE)}"
        )
