"""One transformer block: attention and feed-forward, each on a residual branch.

Shape letters: B batch, N tokens, D width, M hidden width.
Source: ViT (arXiv:2010.11929) eq. 2-3 (pre-norm); BERT (arXiv:1810.04805) (post-norm); CCT (arXiv:2104.05704)
and its repository (mid-norm); LayerScale: CaiT (arXiv:2103.17239) section 2; stochastic depth:
arXiv:1603.09382, per sample and rescaled as in timm and DeiT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mmvit.core.attention import Attention, biased
from mmvit.core.mlp import Mlp
from mmvit.core.precision import never_half
from mmvit.core.relative import Places, RelativeBias


def survivors(x: Tensor, rate: float) -> Tensor:
    """The gain of each sample's branch (B,1,1): 0 with probability `rate`, otherwise 1/(1-rate)."""
    alive = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return alive / (1.0 - rate)


class LayerScale(nn.Module):
    """A learned gain per channel, `gamma` (D), applied by the block as it adds the branch.

    `gamma` stays float32 in a model cast to half.
    """

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), float(init)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerScale:
        return super()._apply(never_half(fn), recurse)


def add_branch(x: Tensor, branch: Tensor, scale: LayerScale | None, drop_path: float) -> Tensor:
    """The sum of a residual stream and its branch, scaled per channel and dropped per sample: (B,N,D).

    Args:
        x: (B,N,D).
        branch: (B,N,D).
        scale: gains per channel, None = none.
        drop_path: probability that a sample goes without the branch, 0 <= p < 1; 0 outside training.
    """
    gain: Tensor | None = None if scale is None else scale.gamma
    if drop_path:
        alive = survivors(x, drop_path)
        gain = alive if gain is None else alive * gain
    # One pass over the tokens instead of three: a scaled branch costs no more than a plain one.
    return x + branch if gain is None else torch.addcmul(x, branch, gain.to(x.dtype))


# The norms that a core may be made of; T5's has neither mean nor bias.
NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class Block(nn.Module):
    """Attention and feed-forward on residual branches: (B,N,D) -> (B,N,D).

    Args:
        width: D.
        num_heads: H.
        mlp_dim: M.
        norm: "pre": x + f(LN(x)); "post": LN(x + f(x)); "mid": x + attention(LN(x)), then y + mlp(y) with
            y = LN(x): the stream itself is normed between the halves.
        norm_type: a name in `NORMS`.
        norm_eps: the norms' epsilon.
        activation: a name in `core.mlp.ACTIVATIONS`.
        qkv_bias: whether q, k, v have biases.
        key_bias: whether k has one too, see `Attention`.
        proj_bias: whether the attention's output has a bias.
        mlp_bias: whether the feed-forward part has biases.
        attn_scale: of the attention scores, None = 1/sqrt(width of a head).
        relative: a bias table of this block's own (kept as it is), None = none.
        layer_scale: initial gain of each branch, None = no gains.
        drop_path: probability that a sample skips a branch while training, 0 <= p < 1.
        dropout: after the attention projection and in the feed-forward part.
        attn_dropout: on the attention weights.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        norm: Literal["pre", "post", "mid"] = "pre",
        norm_type: str = "layer",
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        qkv_bias: bool = True,
        key_bias: bool = True,
        proj_bias: bool = True,
        mlp_bias: bool = True,
        attn_scale: float | None = None,
        relative: RelativeBias | None = None,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.norm1 = NORMS[norm_type](width, eps=norm_eps)
        self.attn = Attention(
            width,
            num_heads,
            qkv_bias=qkv_bias,
            key_bias=key_bias,
            proj_bias=proj_bias,
            scale=attn_scale,
            attn_dropout=attn_dropout,
            dropout=dropout,
        )
        self.relative = relative
        self.ls1 = None if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = NORMS[norm_type](width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, activation=activation, dropout=dropout, bias=mlp_bias)
        self.ls2 = None if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = drop_path

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        index: Tensor | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """The block's output (B,N,D), or (B,Q,D) for the tokens at `index` alone.

        Args:
            x: (B,N,D).
            mask: broadcastable to (B,H,N,N), or to (B,H,Q,N) with an index: bool, True = may be attended, or
                floating point, added to the scores.
            causal: token n sees tokens 0..n only; not together with a mask or an index.
            index: (B,Q) int64 positions in 0..N-1: only these tokens go on, at a fraction of the cost.
            places: where the tokens lie (with an index: those that ask), for the block's own table.
        """
        if self.relative is not None:
            assert places is not None, "a block with a table of its own needs to know where its tokens lie"
            mask = biased(self.relative(places), mask)
        if self.norm != "post":
            normed = self.norm1(x)
            queries = None if index is None else _rows(normed, index)
            x = x if index is None else _rows(x, index)
            x = self._add(x, self.attn(normed, mask, causal, queries), self.ls1)
            normed = self.norm2(x)
            return self._add(normed if self.norm == "mid" else x, self.mlp(normed), self.ls2)
        queries = x if index is None else _rows(x, index)
        branch = self.attn(x, mask, causal, None if index is None else queries)
        x = self.norm1(self._add(queries, branch, self.ls1))
        return self.norm2(self._add(x, self.mlp(x), self.ls2))

    def _add(self, x: Tensor, branch: Tensor, scale: LayerScale | None) -> Tensor:
        """`x` plus its branch, scaled per channel and, while training, dropped per sample."""
        return add_branch(x, branch, scale, self.drop_path if self.training else 0.0)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """The tokens (B,Q,D) of x (B,N,D) at index (B,Q)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
