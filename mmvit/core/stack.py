"""What every core has in common: blocks run one after the other, asked-for layers, recomputation.

Shape letters: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Stack(nn.Module):
    """A core: Tokens -> Encoded through `depth` blocks.

    Args:
        width: D of the tokens that come in.
        depth: how many blocks there are, counted from 1.

    Raises:
        ValueError: `depth` is below 1.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        self.width, self.depth = width, depth
        self.checkpointing = False

    def set_checkpointing(self, on: bool = True) -> None:
        """Recompute each block in the backward pass: same outputs and gradients, memory of one block."""
        self.checkpointing = on

    def _step(self, block: nn.Module, *inputs: object) -> Tensor:
        """One block's output, recomputed in the backward pass when checkpointing is on."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _wanted(self, layers: Sequence[int]) -> set[int]:
        """Block numbers 1..depth for `layers`, negatives counted from the end.

        Raises:
            ValueError: a number out of range.
        """
        for layer in layers:
            if not 1 <= abs(layer) <= self.depth:
                raise ValueError(
                    f"layer {layer} was asked for, expected 1..{self.depth} or -1..-{self.depth}"
                )
        return {layer if layer > 0 else self.depth + 1 + layer for layer in layers}

    def _check_width(self, x: Tensor) -> None:
        """Raises ValueError for tokens (B,N,D) of another width."""
        if x.shape[-1] != self.width:
            raise ValueError(f"tokens are {x.shape[-1]} wide, expected this core's width={self.width}")
