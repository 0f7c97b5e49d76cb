"""The one transformer of the project: Tokens -> Encoded.

Place in the path: after a modality's adapter, before the heads; it sees tokens and a padding mask.
Shape letters: B batch, N tokens, D width, L depth.
Source: ViT (arXiv:2010.11929) section 3.1; init and final norm as big_vision `models/vit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvit.core.attention import attendable
from mmvit.core.block import Block
from mmvit.types import Encoded, Tokens


class ViT(nn.Module):
    """A stack of blocks between two optional LayerNorms.

    Args:
        width: D.
        depth: L, number of blocks.
        num_heads: H, a divisor of D.
        mlp_dim: hidden width of the feed-forward parts.
        norm: "pre" (ViT) or "post" (BERT).
        norm_eps: LayerNorm epsilon.
        activation: gelu | gelu_tanh | quick_gelu.
        qkv_bias: whether q, k, v have biases.
        layer_scale: initial gain per channel of every branch, None = none.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, depth)[i].
        dropout: after attention projections and in the feed-forward parts.
        norm_first: one more LayerNorm on the incoming tokens.
        norm_last: the final LayerNorm; there is none in a post-norm stack, whatever is said here.
        causal: each token attends to itself and earlier ones only.

    Raises:
        ValueError: `norm` is neither "pre" nor "post", `depth` is below 1, or `drop_path` outside [0, 1).
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        norm: Literal["pre", "post"] = "pre",
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_first: bool = False,
        norm_last: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm is '{norm}', expected 'pre' or 'post'")
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, expected 0 <= drop_path < 1")
        self.width, self.depth, self.num_heads, self.causal = width, depth, num_heads, causal
        self.checkpointing = False
        self.norm_pre = nn.LayerNorm(width, eps=norm_eps) if norm_first else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads,
                mlp_dim,
                norm=norm,
                norm_eps=norm_eps,
                activation=activation,
                qkv_bias=qkv_bias,
                layer_scale=layer_scale,
                drop_path=drop_path * i / max(depth - 1, 1),
                dropout=dropout,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps) if norm_last and norm == "pre" else None

    def set_checkpointing(self, on: bool = True) -> None:
        """Recompute each block in the backward pass: same outputs and gradients, memory of one block."""
        self.checkpointing = on

    def forward(self, tokens: Tokens, layers: Sequence[int] = ()) -> Encoded:
        """The encoded tokens (B,N,D), final norm applied, and the outputs of the blocks asked for.

        Args:
            tokens: (B,N,D) values with their bookkeeping; masked tokens are never attended.
            layers: block numbers, 1..L from the first, -1..-L from the last.

        Raises:
            ValueError: a width other than D, or a layer out of range.
        """
        wanted = self._layers(layers)
        x, mask = self._enter(tokens)
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            x = self._step(block, x, mask)
            if number in wanted:
                kept[number] = x
        x = x if self.norm is None else self.norm(x)
        return Encoded(
            values=x, grid=tokens.grid, prefix=tokens.prefix, mask=tokens.mask, kept=tokens.kept, layers=kept
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
        x, mask = self._enter(tokens)
        B, N, _ = x.shape
        if isinstance(index, int):
            if not -N <= index < N:
                raise ValueError(f"token {index} was asked for, expected {-N}..{N - 1}")
            index = torch.full((B,), index % N, device=x.device)
        for block in self.blocks[:-1]:
            x = self._step(block, x, mask)
        rows = index[:, None]
        seen = None if tokens.mask is None else tokens.mask[:, None, None, :]
        if self.causal:
            past = (torch.arange(N, device=x.device) <= rows)[:, None, None, :]
            seen = past if seen is None else seen & past
        x = self._step(self.blocks[-1], x, seen, rows)
        return (x if self.norm is None else self.norm(x))[:, 0]

    def _enter(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """The normed input (B,N,D) and the attention mask that all blocks share."""
        x = tokens.values
        if x.shape[-1] != self.width:
            raise ValueError(f"tokens are {x.shape[-1]} wide, expected this core's width={self.width}")
        x = x if self.norm_pre is None else self.norm_pre(x)
        return x, attendable(tokens.mask, self.causal, x.shape[1], x.device)

    def _step(self, block: nn.Module, x: Tensor, mask: Tensor | None, index: Tensor | None = None) -> Tensor:
        """One block's output, recomputed in the backward pass when checkpointing is on."""
        causal = self.causal and mask is None and index is None
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, mask, causal, index, use_reentrant=False)
        return block(x, mask, causal, index)

    def _layers(self, layers: Sequence[int]) -> set[int]:
        """Block numbers 1..L for `layers`, negatives resolved."""
        for layer in layers:
            if not 1 <= abs(layer) <= self.depth:
                raise ValueError(
                    f"layer {layer} was asked for, expected 1..{self.depth} or -1..-{self.depth}"
                )
        return {layer if layer > 0 else self.depth + 1 + layer for layer in layers}
