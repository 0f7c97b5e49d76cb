"""The one transformer of the project: Tokens -> Encoded.

Place in the path: after a modality's adapter, before the heads; it sees tokens and a padding mask.
Shape letters: B batch, N tokens, D width, L depth.
Source: ViT (arXiv:2010.11929) section 3.1; init and final norm as big_vision `models/vit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.attention import attendable, biased
from mmvit.core.block import NORMS, Block
from mmvit.core.buckets import BucketBias
from mmvit.core.relative import Places, RelativeBias, places_of
from mmvit.core.stack import Stack
from mmvit.types import Encoded, Tokens


class ViT(Stack):
    """A stack of blocks between two optional LayerNorms.

    Args:
        width: D.
        depth: L, number of blocks.
        num_heads: H, a divisor of D.
        mlp_dim: hidden width of the feed-forward parts.
        norm: "pre" (ViT), "post" (BERT) or "mid" (CCT), see `Block`.
        norm_type: "layer" or "rms" (T5: neither mean nor bias).
        norm_eps: the norms' epsilon.
        activation: gelu | gelu_tanh | quick_gelu | relu.
        qkv_bias: whether q, k, v have biases.
        key_bias: whether k has one too; BEiT's has none.
        proj_bias: whether the attention's output has a bias.
        mlp_bias: whether the feed-forward parts have biases.
        attn_scale: of the attention scores, None = 1/sqrt(width of a head); T5: 1.
        relative: bias tables by relative place: "block" (one a block), "shared" (one for all), "buckets" (one
            for all, by distance in the sequence: T5), or None.
        relative_grid: extent of the grid for which the tables are stored.
        relative_resample: how they follow another grid: "bilinear" or "geometric", see `RelativeBias`.
        relative_buckets: rows of the table by distance, for both directions together.
        relative_distance: from which on all distances are one.
        layer_scale: initial gain per channel of every branch, None = none.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, depth)[i].
        dropout: after attention projections and in the feed-forward parts.
        attn_dropout: on the attention weights.
        final_dropout: behind the final norm.
        norm_first: one more norm on the incoming tokens.
        norm_last: the final norm; there is none in a post-norm stack, whatever is said here.
        causal: each token attends to itself and earlier ones only.

    Raises:
        ValueError: `norm` or `norm_type` is unknown, `depth` is below 1, `drop_path` outside [0, 1),
            `relative` is unknown, lacks its grid, or stands beside `causal`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        norm: Literal["pre", "post", "mid"] = "pre",
        norm_type: Literal["layer", "rms"] = "layer",
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        qkv_bias: bool = True,
        key_bias: bool = True,
        proj_bias: bool = True,
        mlp_bias: bool = True,
        attn_scale: float | None = None,
        relative: Literal["shared", "block", "buckets"] | None = None,
        relative_grid: tuple[int, ...] | None = None,
        relative_resample: str = "bilinear",
        relative_buckets: int = 32,
        relative_distance: int = 128,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        final_dropout: float = 0.0,
        norm_first: bool = False,
        norm_last: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__(width, depth)
        if norm not in ("pre", "post", "mid"):
            raise ValueError(f"norm is '{norm}', expected 'pre', 'post' or 'mid'")
        if norm_type not in NORMS:
            raise ValueError(f"norm_type is '{norm_type}', expected one of {', '.join(NORMS)}")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, expected 0 <= drop_path < 1")
        gridded = relative in ("shared", "block")
        if (relative and causal) or not (
            relative in (None, "buckets") or (gridded and relative_grid is not None)
        ):
            raise ValueError(
                f"relative is '{relative}' with grid {relative_grid} and causal={causal}, expected None, or "
                "'shared' or 'block' with a grid, or 'buckets', and without causality"
            )
        self.num_heads, self.causal, self.final_dropout = num_heads, causal, final_dropout

        def table(where: str) -> RelativeBias | None:
            if relative != where or relative_grid is None:
                return None
            return RelativeBias(relative_grid, num_heads, resample=relative_resample)

        self.with_places = relative is not None
        self.relative: RelativeBias | BucketBias | None = table("shared")
        if relative == "buckets":
            self.relative = BucketBias(num_heads, relative_buckets, relative_distance)
        normed = NORMS[norm_type]
        self.norm_pre = normed(width, eps=norm_eps) if norm_first else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads,
                mlp_dim,
                norm=norm,
                norm_type=norm_type,
                norm_eps=norm_eps,
                activation=activation,
                qkv_bias=qkv_bias,
                key_bias=key_bias,
                proj_bias=proj_bias,
                mlp_bias=mlp_bias,
                attn_scale=attn_scale,
                relative=table("block"),
                layer_scale=layer_scale,
                drop_path=drop_path * i / max(depth - 1, 1),
                dropout=dropout,
                attn_dropout=attn_dropout,
            )
            for i in range(depth)
        )
        self.norm = normed(width, eps=norm_eps) if norm_last and norm != "post" else None

    def forward(self, tokens: Tokens, layers: Sequence[int] = ()) -> Encoded:
        """The encoded tokens (B,N,D), final norm applied, and the outputs of the blocks asked for.

        Args:
            tokens: (B,N,D) values with their bookkeeping; masked tokens are never attended.
            layers: block numbers, 1..L from the first, -1..-L from the last.

        Raises:
            ValueError: a width other than D, or a layer out of range.
        """
        wanted = self._wanted(layers)
        x, mask, places = self._enter(tokens)
        mask = self._biased(mask, places)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            x = self._block(block, x, mask, places=places)
            if number in wanted:
                kept[number] = x
        return Encoded(
            values=self._leave(x),
            grid=tokens.grid,
            prefix=tokens.prefix,
            mask=tokens.mask,
            kept=tokens.kept,
            layers=kept,
        )

    def forward_one(self, tokens: Tokens, index: int | Tensor) -> Tensor:
        """The encoded token (B,D) at `index`, equal to `forward(tokens).values[:, index]` and cheaper.

        The last block and the final norm are computed for that token alone, since nothing else is read.

        Args:
            tokens: as `forward` takes them.
            index: one position for all samples (negative from the end) or (B,) int64 positions in 0..N-1.

        Raises:
            ValueError: a width other than D, or a position out of range.
        """
        x, mask, places = self._enter(tokens)
        mask = self._biased(mask, places)
        B, N, _ = x.shape
        if isinstance(index, int):
            if not -N <= index < N:
                raise ValueError(f"token {index} was asked for, expected {-N}..{N - 1}")
            index = torch.full((B,), index % N, device=x.device)
        for block in self.blocks[:-1]:
            x = self._block(block, x, mask, places=places)
        rows = index[:, None]
        seen = None if tokens.mask is None else tokens.mask[:, None, None, :]
        if self.causal:
            past = (torch.arange(N, device=x.device) <= rows)[:, None, None, :]
            seen = past if seen is None else seen & past
        places = None if places is None else places.asked_by(rows)
        x = self._block(self.blocks[-1], x, self._biased(seen, places), rows, places)
        return self._leave(x)[:, 0]

    def _enter(self, tokens: Tokens) -> tuple[Tensor, Tensor | None, Places | None]:
        """The normed input (B,N,D), the mask that all blocks share, where the tokens lie if it matters."""
        x = tokens.values
        self._check_width(x)
        x = x if self.norm_pre is None else self.norm_pre(x)
        where, places = (tokens.grid, tokens.prefix, tokens.kept, x.device), None
        if isinstance(self.relative, BucketBias):
            places = self.relative.places(*where)
        elif self.with_places:
            places = places_of(*where)
        return x, attendable(tokens.mask, self.causal, x.shape[1], x.device), places

    def _leave(self, x: Tensor) -> Tensor:
        """The tokens (B,N,D) after the final norm and its dropout."""
        x = x if self.norm is None else self.norm(x)
        return F.dropout(x, self.final_dropout, self.training) if self.final_dropout else x

    def _biased(self, mask: Tensor | None, places: Places | None) -> Tensor | None:
        """The mask with the bias that all blocks share, if they share one."""
        if self.relative is None or places is None:
            return mask
        return biased(self.relative(places), mask)

    def _block(
        self,
        block: nn.Module,
        x: Tensor,
        mask: Tensor | None,
        index: Tensor | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """One block's output; causality is the mask's business once there is one."""
        causal = self.causal and mask is None and index is None
        return self._step(block, x, mask, causal, index, places)
