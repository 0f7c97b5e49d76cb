"""Pooling by several learned queries: encoded tokens (B,N,D) -> answers (B,Q,D') or features (B,D').

Shape letters: B batch, N tokens, D their width, Q queries, D' width of queries and answers, H heads.
Source: CoCa (arXiv:2205.01917) section 3.2, as open_clip builds it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.types import Encoded


class QueryPool(nn.Module):
    """Attention pooling by several learned queries ("queries"): the normed answer of the first one.

    Same parameters as open_clip's `AttentionalPooler` with the `ln_post` behind it. Queries do not see each
    other, so that the others cost nothing here; `answers` gives all of them, for a decoder that reads them.

    Args:
        width: D of the tokens.
        count: Q.
        pooled: D' of the queries and of what they return.
        num_heads: H, a divisor of D'.
        norm_eps: LayerNorm epsilon.

    Raises:
        ValueError: the heads do not divide D'.

    Source: CoCa (arXiv:2205.01917) section 3.2.
    Differs: CoCa pools a second time for the contrastive embedding; open_clip's released weights do not.
    """

    def __init__(
        self, width: int, count: int, pooled: int, num_heads: int, *, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        if pooled % num_heads:
            raise ValueError(f"queries are {pooled} wide, expected a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(count, pooled))
        self.norm_q = nn.LayerNorm(pooled, eps=norm_eps)
        self.norm_k = nn.LayerNorm(width, eps=norm_eps)
        self.q = nn.Linear(pooled, pooled)
        self.kv = nn.Linear(width, 2 * pooled)
        self.proj = nn.Linear(pooled, pooled)
        self.norm = nn.LayerNorm(pooled, eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Queries N(0, 1), xavier-uniform kernels (k and v apart), zero biases."""
        nn.init.normal_(self.query)
        for weight in (self.q.weight, *self.kv.weight.chunk(2), self.proj.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (self.q, self.kv, self.proj):
            nn.init.zeros_(layer.bias)

    def answers(self, encoded: Encoded, count: int | None = None) -> Tensor:
        """What the first `count` queries return, normed (B,count,D'); None = all of them."""
        x, H = self.norm_k(encoded.values), self.num_heads
        B, N, _ = x.shape
        query = self.query[:count]
        q = self.q(self.norm_q(query)).view(1, len(query), H, -1).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = self.kv(x).view(B, N, 2, H, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if encoded.mask is None else encoded.mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)
        return self.norm(self.proj(out.transpose(1, 2).reshape(B, len(query), -1)))

    def forward(self, encoded: Encoded) -> Tensor:
        """Features (B,D')."""
        return self.answers(encoded, 1)[:, 0]
