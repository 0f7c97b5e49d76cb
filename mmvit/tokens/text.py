"""Subword ids -> tokens: a table look-up and learned positions.

Shape letters: B batch, L length, V vocabulary, D width.
Source: CLIP (arXiv:2103.00020) section 2.4; init as big_vision `proj/image_text/text_transformer.py`, whose
flax embedding draws N(0, 1/sqrt(D)).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmvit.types import Tokens


class TextEmbed(nn.Module):
    """Token ids (B,L) -> Tokens (B,L,D) on the grid (L,).

    Args:
        vocab_size: V.
        width: D.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 1/sqrt(D))."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tokens:
        """Tokens (B,L,D) with positions added.

        Args:
            ids: (B,L) int64, 0..V-1.
            mask: (B,L) bool, True = real token; None = all real.
            positions: (1,L',D), the table; its first L rows are used.

        Raises:
            ValueError: ids are not (B,L), longer than the table, or the mask has another shape.
        """
        if ids.ndim != 2:
            raise ValueError(f"token ids are {tuple(ids.shape)}, expected (B,L)")
        L = ids.shape[1]
        if positions.shape[1] < L:
            raise ValueError(
                f"text is {L} tokens long, expected at most context_length={positions.shape[1]}: "
                "truncate in the tokenizer"
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"text mask is {tuple(mask.shape)}, expected {tuple(ids.shape)} like the ids")
        values = nn.functional.embedding(ids, self.weight) + positions[:, :L]
        return Tokens(values, (L,), mask=mask)
