"""The text tower: token ids -> tokens -> core -> pool -> head.

Shape letters: B batch, L length, D width, E embedding width.
Source: LiT (arXiv:2111.07991) and big_vision `text_transformer.py` (bidirectional); CLIP
(causal); BERT (post-norm).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.heads.pool import TokenPool
from mmvit.heads.project import Head
from mmvit.models.build import build_core, build_tower_pool
from mmvit.models.config import TextTowerConfig
from mmvit.tokens.lengths import length_groups
from mmvit.tokens.text import TextEmbed
from mmvit.types import Encoded, Tokens


class TextTower(nn.Module):
    """Token ids (B,L) with a mask (B,L) -> features (B,D) -> embedding (B,E).

    State dict: `tok_embed.weight`, `cls_token`, `pos_embed`, `core.*`, `pool.*`, `head.*`.
    Init as big_vision: token table and positions N(0, 1/sqrt(D)), xavier kernels, LeCun-normal head.
    Differs: CLIP's own text init (N(0, 0.02) table, depth-scaled projections) is not offered.

    Args:
        config: what to build.
        core: to be shared with other towers, None = a new one.

    Raises:
        ValueError: a configuration that contradicts itself; the message names the field.
    """

    def __init__(self, config: TextTowerConfig, core: nn.Module | None = None) -> None:
        super().__init__()
        _check(config)
        width = config.core.width
        self.config = config
        self.class_last = config.class_last != "none"
        self.tok_embed = TextEmbed(config.vocab_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if self.class_last else None
        self.pos_embed = nn.Parameter(torch.empty(1, config.context_length + self.class_last, width))
        self.core: Any = build_core(config.core) if core is None else core
        self.pool = build_tower_pool(config.pool, config.core)
        self.head = Head(width, config.embed_dim, bias=config.head_bias, hidden=config.head_hidden)
        self.reset_parameters()

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return self.config.core.width

    @property
    def embed_dim(self) -> int:
        """E, the width of the embedding."""
        return self.head.embed_dim

    @property
    def ignores_padding(self) -> bool:
        """Whether padding at the end of a text can be cut off without changing its features."""
        pool, core = self.config.pool, self.config.core
        return pool != "last" and (self.config.pad_mask or (core.causal and pool != "map"))

    def reset_parameters(self) -> None:
        """Positions N(0, 1/sqrt(D))."""
        nn.init.normal_(self.pos_embed, std=self.width**-0.5)

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.core.set_checkpointing(on)

    def tokens(self, ids: Tensor, mask: Tensor | None = None) -> Tokens:
        """What the core will see, (B,L,D); without a mask when padding is not hidden from attention.

        A class token that stands behind the text makes it (B,L+1,D).

        Args:
            ids: (B,L) int64.
            mask: (B,L) bool, True = real token, None = all real.

        Raises:
            ValueError: wrong shapes, or a text longer than the context.
        """
        L, context = ids.shape[-1], self.config.context_length
        tokens = self.tok_embed(ids, mask, self.pos_embed[:, :context])
        if self.cls_token is not None:
            tokens = self._append_class(tokens, L)
        return tokens if self.config.pad_mask else dataclasses.replace(tokens, mask=None)

    def _append_class(self, tokens: Tokens, L: int) -> Tokens:
        """`tokens` (B,L+1,D) with the class token behind them; its position is L, whatever the context."""
        assert self.cls_token is not None
        last = (self.cls_token + self.pos_embed[:, L : L + 1]).expand(len(tokens.values), -1, -1)
        mask = tokens.mask
        if mask is not None:
            late = self.config.class_last == "shifted"
            mask = F.pad(mask, (1, 0) if late else (0, 1), value=True)
        return Tokens(torch.cat([tokens.values, last], dim=1), (L + 1,), mask=mask)

    def forward_tokens(self, ids: Tensor, mask: Tensor | None = None, layers: Sequence[int] = ()) -> Encoded:
        """Every token (B,L,D) after the final norm, and the layers asked for.

        Args:
            ids: as `tokens` takes them.
            mask: likewise.
            layers: block numbers from 1, or negative from the end; their outputs are before the final norm.
        """
        return self.core(self.tokens(ids, mask), layers)

    def features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pooled output (B,D) before the head.

        On CPUs texts of similar length go through the core together, without the padding of the longest one.

        Args:
            ids: (B,L) int64.
            mask: (B,L) bool, True = real token, None = all real.

        Raises:
            ValueError: wrong shapes, a text longer than the context, or, for the pooling "last" of a tower
                that attends its padding or has a class token behind it, a text that is not padded to the
                whole context.
        """
        L, context = ids.shape[-1], self.config.context_length
        if self.config.pool == "last" and context != L and (self.class_last or not self.config.pad_mask):
            why = "a class token behind the text" if self.class_last else "pad_mask=False"
            raise ValueError(
                f"text is padded to {L} tokens, but pool='last' with {why} reads position "
                f"{context - 1 + self.class_last}: pad to the context length (pad_to='context')"
            )
        mask = _unless_full(mask)
        if mask is None or not self._regroups(mask):
            return self._features(ids, mask)
        groups = length_groups(mask)
        parts = [self._features(ids[i, :width], _unless_full(mask[i, :width])) for i, width in groups]
        order = torch.cat([rows for rows, _ in groups])
        return torch.cat(parts)[order.argsort()]

    def _regroups(self, mask: Tensor) -> bool:
        # On a GPU the lengths would have to be waited for. Sharded weights (FSDP) are gathered by all ranks
        # together, equally often on each, but every rank's captions make other groups.
        plain = type(self.tok_embed.weight) is nn.Parameter and not torch.compiler.is_compiling()
        return self.ignores_padding and mask.device.type == "cpu" and plain

    def _features(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Pooled output (B,D) of ids and mask (B,L) as they are."""
        if isinstance(self.pool, TokenPool):
            return self.core.forward_one(self.tokens(ids, mask), self.pool.index(mask))
        encoded = self.forward_tokens(ids, mask)
        if (
            self.config.pool != "map"
        ):  # padding that is attended is pooled by attention too, but never averaged
            encoded.mask = mask
        return self.pool(encoded)

    def project(self, features: Tensor) -> Tensor:
        """The embedding (B,E) float32 of features (B,D), not normalised."""
        return self.head(features)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The embedding (B,E) float32 of token ids (B,L), not normalised."""
        return self.project(self.features(ids, mask))


def _check(config: TextTowerConfig) -> None:
    """Raises ValueError for a text tower that cannot be."""
    if config.class_last != "none" and not (config.pool == "last" and config.pad_mask and config.core.causal):
        raise ValueError(
            f"class_last is '{config.class_last}', pool '{config.pool}', pad_mask {config.pad_mask}, causal "
            f"{config.core.causal}: expected pool='last', pad_mask=True and causal=True with a class token"
        )


def _unless_full(mask: Tensor | None) -> Tensor | None:
    """The mask, None where it hides nothing: attention is faster then. On a GPU asking would wait for it."""
    if mask is None or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return mask
    return None if mask.all() else mask
