"""CaiT's core: deep blocks with talking heads, then a class token that alone attends what they made.

Place in the path: as `core/vit.py`; tokens come without special ones, the class token is the core's own.
Shape letters: B batch, N tokens, D width, H heads, K width of a head, L depth.
Source: CaiT (arXiv:2103.17239) sections 2-3; talking heads: arXiv:2003.02436. Parameter names follow timm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.attention import Attention, attend, attendable
from mmvit.core.block import LayerScale, add_branch
from mmvit.core.mlp import Mlp
from mmvit.core.stack import Stack
from mmvit.types import Encoded, Tokens


class TalkingHeads(Attention):
    """Self-attention whose heads are mixed before and after the softmax: (B,N,D) -> (B,N,D).

    The mixing across heads has no fused kernel: scores (B,H,N,N) are held in memory.

    Args:
        width: D.
        num_heads: H, a divisor of D.
        dropout: on the output projection, 0..1.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__(width, num_heads, dropout=dropout)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The attended tokens (B,N,D).

        Args:
            x: (B,N,D).
            mask: bool, broadcastable to (B,H,N,N), True = may be attended; None = everything may.
        """
        B, N, D = x.shape
        q, k, v = self._heads(self.qkv(x), 3)
        scores = _mix((q * (D // self.num_heads) ** -0.5) @ k.transpose(-2, -1), self.proj_l)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = _mix(scores.softmax(-1).to(v.dtype), self.proj_w)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)  # the bias gave hidden tokens a weight again
        out = self.proj((weights @ v).transpose(1, 2).reshape(B, N, D))
        return F.dropout(out, self.dropout, self.training) if self.dropout else out


def _mix(scores: Tensor, layer: nn.Linear) -> Tensor:
    """A linear layer over the heads of (B,H,N,N).

    One product that adds the bias as it goes and leaves the heads where they are: on a CPU at most two thirds
    of the time that a linear layer takes with the heads moved to the last axis and back.
    """
    weight = layer.weight.expand(len(scores), -1, -1)
    return torch.baddbmm(layer.bias[:, None], weight, scores.flatten(2)).view(scores.shape)


class ClassAttention(nn.Module):
    """Attention of the class token over all tokens: (B,1+N,D) -> (B,1,D).

    Args:
        width: D.
        num_heads: H, a divisor of D.
        dropout: on the output projection, 0..1.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the first token reads (B,1,D) from all of `x`, itself included.

        Args:
            x: (B,1+N,D), class token first.
            mask: bool, broadcastable to (B,H,1,1+N), True = may be attended; None = everything may.
        """
        q, k, v = (
            layer(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, t in ((self.q, x[:, :1]), (self.k, x), (self.v, x))
        )
        out = self.proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return F.dropout(out, self.dropout, self.training) if self.dropout else out


class CaitBlock(nn.Module):
    """A pre-norm block with LayerScale: talking heads for all tokens, or class attention for the first.

    Args:
        width: D.
        num_heads: H.
        mlp_dim: hidden width of the feed-forward part.
        class_only: only the class token attends and goes on.
        norm_eps: LayerNorm epsilon.
        activation: a name in `core.mlp.ACTIVATIONS`.
        layer_scale: initial gain of each branch.
        drop_path: probability that a sample skips a branch while training, 0 <= p < 1.
        dropout: after the attention projection and in the feed-forward part.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        class_only: bool = False,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        attention = ClassAttention if class_only else TalkingHeads
        self.class_only = class_only
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = attention(width, num_heads, dropout=dropout)
        self.ls1 = LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_dim, activation=activation, dropout=dropout)
        self.ls2 = LayerScale(width, layer_scale)
        self.drop_path = drop_path

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The block's output: (B,N,D), or the class token (B,1,D) of x (B,1+N,D).

        Args:
            x: (B,N,D), class token first in a block for it alone.
            mask: bool, broadcastable to (B,H,N,N), True = may be attended.
        """
        rate = self.drop_path if self.training else 0.0
        branch = self.attn(self.norm1(x), mask)
        x = add_branch(x[:, :1] if self.class_only else x, branch, self.ls1, rate)
        return add_branch(x, self.mlp(self.norm2(x)), self.ls2, rate)


class Cait(Stack):
    """Talking-heads blocks on the tokens, class-attention blocks on the class token, one final LayerNorm.

    Masked tokens are attended in neither stage; dropped tokens are simply absent.

    Args:
        width: D.
        depth: L, number of talking-heads blocks.
        num_heads: H, a divisor of D.
        mlp_dim: hidden width of the feed-forward parts.
        class_depth: number of class-attention blocks, at least 1; they have no stochastic depth.
        norm_eps: LayerNorm epsilon.
        activation: gelu | gelu_tanh | quick_gelu.
        layer_scale: initial gain per channel of every branch; the paper's 0.1 to 1e-6, smaller when deeper.
        drop_path: stochastic depth, the same for all L blocks.
        dropout: after attention projections and in the feed-forward parts.

    Raises:
        ValueError: `depth` or `class_depth` is below 1, or `drop_path` outside [0, 1).
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        class_depth: int = 2,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, depth)
        if class_depth < 1:
            raise ValueError(f"class_depth is {class_depth}, expected at least 1")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, expected 0 <= drop_path < 1")

        def block(class_only: bool) -> CaitBlock:
            return CaitBlock(
                width,
                num_heads,
                mlp_dim,
                class_only=class_only,
                norm_eps=norm_eps,
                activation=activation,
                layer_scale=layer_scale,
                drop_path=0.0 if class_only else drop_path,
                dropout=dropout,
            )

        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(block(False) for _ in range(depth))
        self.class_blocks = nn.ModuleList(block(True) for _ in range(class_depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernels and class token truncated normal at 0.02, biases zero, as published."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tokens, layers: Sequence[int] = ()) -> Encoded:
        """The class token and the tokens (B,1+N,D), final norm applied, and the layers asked for.

        Args:
            tokens: (B,N,D) values with their bookkeeping, no special tokens among them.
            layers: numbers of talking-heads blocks, 1..L from the first, -1..-L from the last. Their outputs
                (B,1+N,D) are led by the class token as it enters the second stage.

        Raises:
            ValueError: a width other than D, special tokens, or a layer out of range.
        """
        wanted = self._wanted(layers)
        x = tokens.values
        self._check_width(x)
        if tokens.prefix:
            raise ValueError(
                f"tokens are led by {tokens.prefix} special ones, expected none: this core brings its own "
                "class token (class_token=False, registers=0)"
            )
        cls = self.cls_token.to(x.dtype).expand(len(x), -1, -1)
        kept: dict[int, Tensor] = {}
        seen = attendable(tokens.mask, False, x.shape[1], x.device)
        for number, block in enumerate(self.blocks, start=1):
            x = self._step(block, x, seen)
            if number in wanted:
                kept[number] = torch.cat([cls, x], dim=1)
        mask = None if tokens.mask is None else F.pad(tokens.mask, (1, 0), value=True)
        seen = attendable(mask, False, x.shape[1] + 1, x.device)
        for block in self.class_blocks:
            cls = self._step(block, torch.cat([cls, x], dim=1), seen)
        values = self.norm(torch.cat([cls, x], dim=1))
        return Encoded(values=values, grid=tokens.grid, prefix=1, mask=mask, kept=tokens.kept, layers=kept)
