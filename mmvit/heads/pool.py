"""Poolings: encoded tokens (B,N,D) -> features (B,D).

Shape letters: B batch, N tokens, P leading special tokens, D width, H heads, M hidden width.
Source: ViT (cls, mean); Scaling ViT (arXiv:2106.04560) section 3.2 and big_vision `MAPHead` (map); CLIP
(eos); SigLIP and LiT (last); timm's `fc_norm` (mean_norm); CCT (seq); DeiT, AST (cls_dist).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.types import Encoded


class TokenPool(nn.Module):
    """One token of each sample: "cls" the first, "last" the one at position N-1, "eos" the last real one.

    Raises:
        ValueError: another kind.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in ("cls", "last", "eos"):
            raise ValueError(f"pool is '{kind}', expected cls, last or eos")
        self.kind = kind

    def index(self, mask: Tensor | None) -> int | Tensor:
        """The position to read: one for all samples, or (B,) int64 when the mask (B,N) decides."""
        if self.kind == "cls":
            return 0
        if self.kind == "last" or mask is None:
            return -1
        # By the mask, never by the largest id: only one tokenizer has its end token there.
        return (mask * torch.arange(mask.shape[1], device=mask.device)).amax(dim=1)

    def forward(self, encoded: Encoded) -> Tensor:
        """Features (B,D)."""
        index = self.index(encoded.mask)
        if isinstance(index, int):
            return encoded.values[:, index]
        return encoded.values[torch.arange(index.shape[0], device=index.device), index]


class ClassDistPool(nn.Module):
    """The mean of the first two tokens, class and distillation token ("cls_dist").

    Args:
        norm: an optional module on the mean, (B,D) -> (B,D); AST's classifier begins with one.
    """

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, encoded: Encoded) -> Tensor:
        """Features (B,D)."""
        mean = (encoded.values[:, 0] + encoded.values[:, 1]) / 2
        return mean if self.norm is None else self.norm(mean)


class TanhPool(nn.Module):
    """A linear map and tanh on the first token ("cls_tanh"): BERT's pooler.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform, zero bias."""
        nn.init.xavier_uniform_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, encoded: Encoded) -> Tensor:
        """Features (B,D), -1..1."""
        return torch.tanh(self.dense(encoded.values[:, 0]))


class MeanPool(nn.Module):
    """The mean over real grid tokens; special tokens are left out.

    Args:
        norm: an optional module on the mean, (B,D) -> (B,D). LN(mean) is not mean(LN): timm norms the mean.
    """

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, encoded: Encoded) -> Tensor:
        """Features (B,D)."""
        grid = encoded.values[:, encoded.prefix :]
        if encoded.mask is None:
            mean = grid.mean(dim=1)
        else:
            real = encoded.mask[:, encoded.prefix :, None]
            mean = grid.masked_fill(~real, 0).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return mean if self.norm is None else self.norm(mean)


class AttentionPool(nn.Module):
    """Multi-head attention pooling ("map"): one learned query attends all tokens, then x + MLP(LN(x)).

    Same parameters as timm's `AttentionPoolLatent` and transformers' `SiglipMultiheadAttentionPoolingHead`;
    neither a residual from the query nor a norm on it.

    Args:
        width: D.
        num_heads: H, a divisor of D.
        mlp_dim: M.
        activation: of the MLP.
        norm_eps: LayerNorm epsilon.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width is {width}, expected a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = _PoolMlp(width, mlp_dim, activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform per (D,D) kernel and for the query (as 1 row by D), zero attention biases."""
        D = self.latent.shape[-1]
        limit = math.sqrt(6.0 / (1 + D))
        nn.init.uniform_(self.latent, -limit, limit)
        for weight in (self.q.weight, *self.kv.weight.chunk(2), self.proj.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (self.q, self.kv, self.proj):
            nn.init.zeros_(layer.bias)
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, encoded: Encoded) -> Tensor:
        """Features (B,D); masked tokens are not attended."""
        x, H = encoded.values, self.num_heads
        B, N, D = x.shape
        # The query is the same for every sample: project it once.
        q = self.q(self.latent).view(1, 1, H, D // H).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = self.kv(x).view(B, N, 2, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if encoded.mask is None else encoded.mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)
        out = self.proj(out.transpose(1, 2).reshape(B, D))
        return out + self.mlp(self.norm(out))


class SeqPool(nn.Module):
    """A weighted mean of all real tokens ("seq"), the weights a softmax over a linear score of each token.

    Args:
        width: D.

    Source: CCT (arXiv:2104.05704) section 3.2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal at 0.02, zero bias: close to the plain mean."""
        nn.init.trunc_normal_(self.attention.weight, std=0.02)
        nn.init.zeros_(self.attention.bias)

    def weights(self, encoded: Encoded) -> Tensor:
        """The weight of each token (B,N), 0..1, summing to 1; masked tokens have none."""
        scores = self.attention(encoded.values).squeeze(-1)
        if encoded.mask is not None:
            scores = scores.masked_fill(~encoded.mask, -torch.inf)
        return scores.softmax(-1)

    def forward(self, encoded: Encoded) -> Tensor:
        """Features (B,D)."""
        weights = self.weights(encoded).to(encoded.values.dtype)
        return (weights[:, None] @ encoded.values).squeeze(1)


class _PoolMlp(nn.Module):
    """Linear -> activation -> Linear on the pooled vector, (B,D) -> (B,D)."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The transformed vector, same shape."""
        return self.fc2(self.activation(self.fc1(x)))


def build_pool(
    name: str,
    width: int,
    num_heads: int,
    mlp_dim: int,
    *,
    activation: Callable[[Tensor], Tensor] = F.gelu,
    norm_eps: float = 1e-6,
) -> nn.Module:
    """The pooling called `name`: a module Encoded -> (B,D).

    Args:
        name: cls | cls_tanh | last | eos | mean | mean_norm | cls_dist | cls_dist_norm | map | seq.
        width: D.
        num_heads: of the map pooling.
        mlp_dim: likewise.
        activation: likewise.
        norm_eps: of the norms of map and mean_norm.

    Raises:
        ValueError: the name is unknown.
    """
    if name in ("cls", "last", "eos"):
        return TokenPool(name)
    if name == "cls_tanh":
        return TanhPool(width)
    if name == "mean":
        return MeanPool()
    if name == "mean_norm":
        return MeanPool(nn.LayerNorm(width, eps=norm_eps))
    if name in ("cls_dist", "cls_dist_norm"):
        return ClassDistPool(nn.LayerNorm(width, eps=norm_eps) if name == "cls_dist_norm" else None)
    if name == "map":
        return AttentionPool(width, num_heads, mlp_dim, activation=activation, norm_eps=norm_eps)
    if name == "seq":
        return SeqPool(width)
    valid = "cls, last, eos, mean, mean_norm, cls_dist, cls_dist_norm, map, seq, cls_tanh"
    raise ValueError(f"pool is '{name}', expected one of {valid}")
