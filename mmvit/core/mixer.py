"""MLP-Mixer's core: MLPs across tokens and MLPs across channels in turn, no attention.

Place in the path: as `core/vit.py`, for exactly S tokens: their number is built into the weights.
Shape letters: B batch, S tokens, D width.
Source: MLP-Mixer (arXiv:2105.01601) section 2; init as flax's Dense (LeCun normal kernels, zero biases).
Parameter names follow timm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from mmvit.core.block import add_branch
from mmvit.core.mlp import Mlp
from mmvit.core.stack import Stack
from mmvit.types import Encoded, Tokens


class MixerBlock(nn.Module):
    """Two pre-norm branches, one MLP along the tokens and one along the channels: (B,S,D) -> (B,S,D).

    Args:
        width: D.
        tokens: S.
        token_dim: hidden width of the MLP along the tokens.
        mlp_dim: hidden width of the MLP along the channels.
        norm_eps: LayerNorm epsilon.
        activation: a name in `core.mlp.ACTIVATIONS`.
        drop_path: probability that a sample skips a branch while training, 0 <= p < 1.
        dropout: in both MLPs.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        token_dim: int,
        mlp_dim: int,
        *,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp_tokens = Mlp(tokens, token_dim, activation=activation, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp_channels = Mlp(width, mlp_dim, activation=activation, dropout=dropout)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """The block's output (B,S,D)."""
        rate = self.drop_path if self.training else 0.0
        branch = self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = add_branch(x, branch, None, rate)
        return add_branch(x, self.mlp_channels(self.norm2(x)), None, rate)


class Mixer(Stack):
    """A stack of mixer blocks and a final LayerNorm, for S tokens, all of them real.

    Args:
        width: D.
        depth: L, number of blocks.
        tokens: S.
        token_dim: hidden width of the MLPs along the tokens.
        mlp_dim: hidden width of the MLPs along the channels.
        norm_eps: LayerNorm epsilon.
        activation: gelu | gelu_tanh | quick_gelu.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, depth)[i].
        dropout: in all MLPs.

    Raises:
        ValueError: `depth` or `tokens` is below 1, or `drop_path` outside [0, 1).
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        tokens: int,
        token_dim: int,
        mlp_dim: int,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, depth)
        if tokens < 1:
            raise ValueError(f"tokens is {tokens}, expected at least 1")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}, expected 0 <= drop_path < 1")
        self.tokens = tokens
        self.blocks = nn.ModuleList(
            MixerBlock(
                width,
                tokens,
                token_dim,
                mlp_dim,
                norm_eps=norm_eps,
                activation=activation,
                drop_path=drop_path * i / max(depth - 1, 1),
                dropout=dropout,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal kernels, truncated at two deviations and corrected; zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = math.sqrt(1.0 / module.in_features) / 0.87962566103423978
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tokens, layers: Sequence[int] = ()) -> Encoded:
        """The encoded tokens (B,S,D), final norm applied, and the outputs of the blocks asked for.

        Args:
            tokens: (B,S,D) values; neither special, padded nor dropped tokens.
            layers: block numbers, 1..L from the first, -1..-L from the last.

        Raises:
            ValueError: a width other than D, a number of tokens other than S, special, padded or dropped
                tokens, or a layer out of range.
        """
        wanted = self._wanted(layers)
        self._check(tokens)
        x = tokens.values
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            x = self._step(block, x)
            if number in wanted:
                found[number] = x
        return Encoded(values=self.norm(x), grid=tokens.grid, layers=found)

    def _check(self, tokens: Tokens) -> None:
        """Raises ValueError for tokens that the weights along them do not fit."""
        self._check_width(tokens.values)
        if tokens.prefix:
            raise ValueError(
                f"tokens are led by {tokens.prefix} special ones, expected none: this core has no place for "
                "them (class_token=False, registers=0)"
            )
        if tokens.mask is not None or tokens.kept is not None:
            what = "padded" if tokens.mask is not None else "dropped"
            raise ValueError(f"some tokens are {what}: MLPs along the tokens need all {self.tokens} of them")
        count = tokens.values.shape[1]
        if count == self.tokens:
            return
        times = math.isqrt(count // self.tokens)
        why = (
            f"; {times}x{times} times as many would need its token MLPs tiled block-diagonally"
            if times > 1 and times * times * self.tokens == count
            else ""
        )
        raise ValueError(f"there are {count} tokens, expected this core's tokens={self.tokens}{why}")
