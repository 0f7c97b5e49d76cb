"""VATT's text tower: word ids -> word vectors -> the core -> the AGG token's output -> head.

Shape letters: B batch, L length, W width of the word vectors, D width, E embedding width.
Source: VATT (arXiv:2104.11178) sections 3.1-3.2 and its repository (google-research/vatt).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.heads.project import Head
from mmvit.models.build import build_core
from mmvit.models.config import WordTowerConfig
from mmvit.models.tower import mapped
from mmvit.tokens.positions import prepend
from mmvit.types import Encoded, Tokens


class WordTower(nn.Module):
    """Word ids (B,L) with a mask (B,L) -> features (B,D) -> embedding (B,E).

    State dict: `tok_embed.weight` (V,W), `word_proj.*`, `agg_token`, `pos_embed` and `pos_norm.*` (style
    "shared"), `core.*`, `post.*`, `head.*`.
    The sequence is [AGG, words]. In the style "t5" AGG is a word of its own: position 0 of the sequence, and
    the core's relative bias counts from there. In the style "shared" it has no position.

    Args:
        config: what to build.
        core: to be shared with other towers, None = a new one.

    Raises:
        ValueError: a causal core.
    """

    ignores_padding = True

    def __init__(self, config: WordTowerConfig, core: nn.Module | None = None) -> None:
        super().__init__()
        if config.core.causal:
            raise ValueError("core.causal is True, expected False: the AGG token in front reads all words")
        width, shared = config.core.width, config.style == "shared"
        self.config = config
        self.tok_embed = nn.Embedding(config.vocab_size, config.word_width, padding_idx=0)
        self.word_proj = nn.Linear(config.word_width, width, bias=shared)
        self.agg_token = nn.Parameter(torch.empty(1, 1, width if shared else config.word_width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.context_length, width)) if shared else None
        self.pos_norm = nn.LayerNorm(width, eps=1e-6) if shared else None
        self.dropout = nn.Dropout(config.token_dropout)
        self.core: Any = build_core(config.core, (config.context_length,)) if core is None else core
        after = config.post_projection
        self.post: nn.Module = nn.Identity() if after is None else mapped(width, after)
        self.head = Head(config.feature_width, config.embed_dim, bias=config.head_bias)
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
        """Word vectors N(0, 1), padding's zero; AGG and positions N(0, 1/sqrt(D)).

        Smaller vectors would drown in the positions, which a norm makes N(0, 1): all texts would begin alike.
        """
        nn.init.normal_(self.tok_embed.weight)
        with torch.no_grad():
            self.tok_embed.weight[0].zero_()
        nn.init.normal_(self.agg_token, std=self.agg_token.shape[-1] ** -0.5)
        nn.init.xavier_uniform_(self.word_proj.weight)
        if self.word_proj.bias is not None:
            nn.init.zeros_(self.word_proj.bias)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=self.pos_embed.shape[-1] ** -0.5)

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        self.core.set_checkpointing(on)

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor, known: Tensor | None = None) -> None:
        """Nothing; rows of the word table become `vectors` (V,W), those alone that `known` (V,) bool names.

        Raises:
            ValueError: another shape than the table's.
        """
        table = self.tok_embed.weight
        if vectors.shape != table.shape:
            raise ValueError(f"word vectors are {tuple(vectors.shape)}, the table is {tuple(table.shape)}")
        rows = slice(None) if known is None else known
        table[rows] = vectors.to(table)[rows]
        table[0].zero_()

    def tokens(self, ids: Tensor, mask: Tensor | None = None) -> Tokens:
        """What the core will see: AGG and the words, (B,1+L,D).

        Args:
            ids: (B,L) int64.
            mask: (B,L) bool, True = real word, None = ids that are not 0.

        Raises:
            ValueError: wrong shapes, or a text longer than the context.
        """
        context = self.config.context_length
        if ids.ndim != 2 or ids.shape[1] > context:
            raise ValueError(
                f"word ids are {tuple(ids.shape)}, expected (B,L) with L at most context_length={context}: "
                "truncate in the tokenizer"
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"text mask is {tuple(mask.shape)}, expected {tuple(ids.shape)} like the ids")
        mask = ids != 0 if mask is None else mask
        words = Tokens(self.tok_embed(ids), (ids.shape[1],), mask=mask)
        if self.pos_embed is None or self.pos_norm is None:
            words = prepend(words, self.agg_token)
            words.values = self.dropout(F.gelu(self.word_proj(words.values)))
            return words
        positions = self.pos_norm(self.pos_embed[:, : ids.shape[1]])
        words.values = self.dropout(F.gelu(self.word_proj(words.values)) + positions)
        return prepend(words, self.agg_token)

    def forward_tokens(self, ids: Tensor, mask: Tensor | None = None, layers: Sequence[int] = ()) -> Encoded:
        """AGG and every word (B,1+L,D) after the core, and the layers asked for."""
        encoded: Encoded = self.core(self.tokens(ids, mask), layers)
        encoded.values = self.post(encoded.values)
        return encoded

    def features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """AGG's output (B,D) before the head; arguments as `tokens` takes them."""
        return self.post(self.core.forward_one(self.tokens(ids, mask), 0))

    def project(self, features: Tensor) -> Tensor:
        """The embedding (B,E) float32 of features (B,D), not normalised."""
        return self.head(features)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The embedding (B,E) float32 of word ids (B,L), not normalised."""
        return self.project(self.features(ids, mask))
