"""Multi-head self-attention with one fused q, k, v projection.

Shape letters: B batch, N tokens, D width, H heads, K width of a head (D = H*K), Q queried tokens.
Source: ViT (arXiv:2010.11929) appendix A. Init: big_vision (xavier-uniform per (D,D) matrix, zero biases).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.plain_attention import PlainAttention
from mmvit.core.precision import HALF


class Attention(nn.Module):
    """Self-attention: (B,N,D) -> (B,N,D).

    The rows of `qkv.weight` are [q; k; v], each of them head-major, as in timm, open_clip and transformers.

    Args:
        width: D.
        num_heads: H, a divisor of D.
        qkv_bias: whether the q, k, v projections have a bias.
        key_bias: False: q and v have biases of their own (`q_bias`, `v_bias`) and k has none, as in BEiT; a
            bias of the keys shifts all scores of a query alike, which the softmax does not see.
        proj_bias: whether the output projection has a bias.
        scale: of the scores, None = 1/sqrt(K); T5 leaves them as they are, 1.
        attn_dropout: on the attention weights, 0..1.
        dropout: on the output projection, 0..1.

    Raises:
        ValueError: the heads do not divide the width.
    """

    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        key_bias: bool = True,
        proj_bias: bool = True,
        scale: float | None = None,
        attn_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width is {width}, expected a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias and key_bias)
        split = qkv_bias and not key_bias
        self.q_bias = nn.Parameter(torch.zeros(width)) if split else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if split else None
        self.proj = nn.Linear(width, width, bias=proj_bias)
        self.scale, self.attn_dropout, self.dropout = scale, attn_dropout, dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform for each of q, k, v and the output; on the fused (3D,D) its limit would be 0.71x."""
        for part in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.proj.weight)
        for bias in (self.qkv.bias, self.proj.bias, self.q_bias, self.v_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, queries: Tensor | None = None
    ) -> Tensor:
        """The attended tokens (B,N,D), or (B,Q,D) when only some of them ask.

        Args:
            x: (B,N,D).
            mask: broadcastable to (B,H,N,N): bool, True = may be attended, or floating point, added to the
                scores; None = everything may.
            causal: token n sees tokens 0..n only; a `mask` must then be None (merge the two beforehand).
            queries: (B,Q,D), a subset of `x` that asks; the mask is then (B,H,Q,N) wide. None = all of `x`.
        """
        weight, bias = self.qkv.weight, self._bias()
        if queries is None:
            q, k, v = self._heads(self.qkv(x) if self.q_bias is None else F.linear(x, weight, bias), 3)
        else:
            D = x.shape[-1]
            b_q, b_kv = (None, None) if bias is None else (bias[:D], bias[D:])
            (q,) = self._heads(F.linear(queries, weight[:D], b_q), 1)
            k, v = self._heads(F.linear(x, weight[D:], b_kv), 2)
        out = attend(q, k, v, mask, causal, self.scale, self.attn_dropout if self.training else 0.0)
        B, H, N, K = out.shape
        out = self.proj(out.transpose(1, 2).reshape(B, N, H * K))
        return F.dropout(out, self.dropout, self.training) if self.dropout else out

    def _bias(self) -> Tensor | None:
        """The bias (3D) of q, k, v, or None."""
        if self.q_bias is None or self.v_bias is None:
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """`parts` views (B,H,N,K) of x (B,N,parts*D), without a copy."""
        B, N, _ = x.shape
        return x.view(B, N, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention (B,H,Q,K) of queries (B,H,Q,K) over keys and values (B,H,N,K).

    torch's fused kernel, except where its backward is slow: in half types on a CPU the plain form takes a
    fifth of the time at 37 tokens and half at 197 (docs/benchmarks.md).

    Args:
        q: queries.
        k: keys.
        v: values, same shape as the keys.
        mask: broadcastable to (B,H,Q,N): bool, True = may be attended, or floating point, added to the
            scaled scores; None = everything may.
        causal: query n sees keys 0..n only; a `mask` must then be None.
        scale: of the scores, None = 1/sqrt(K).
        dropout: on the attention weights, 0..1.
    """
    plain = q.device.type == "cpu" and q.dtype in HALF and q.requires_grad and torch.is_grad_enabled()
    plain = plain and not dropout
    if not plain:
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)  # the fused kernel takes no other type
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
        )
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril_()
    if mask is not None:
        mask = mask.to(q.dtype) if mask.is_floating_point() else _added(mask, q)
    with torch.autocast("cpu", enabled=False):
        return PlainAttention.apply(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)


def biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    """One floating mask out of what is added to the scores and a bool mask, both as wide as (B,H,Q,N)."""
    return bias if mask is None else bias + _added(mask, bias)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A bool mask as what is added to scores: 0 where True, minus infinity elsewhere, typed as `like`."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -torch.inf)


def attendable(mask: Tensor | None, causal: bool, length: int, device: torch.device) -> Tensor | None:
    """The mask that every block shares: None, (B,1,1,N) for padding, (B,1,N,N) for padding under causality.

    Pure causality stays None, since the attention kernel's own flag skips half of the work.

    Args:
        mask: (B,N) bool, True = real token, or None.
        causal: whether token n sees tokens 0..n only.
        length: N.
        device: where the triangle is made.
    """
    if mask is None:
        return None
    keys = mask[:, None, None, :]
    if not causal:
        return keys
    return keys & torch.ones(length, length, dtype=torch.bool, device=device).tril_()
