"""Keeping a subset of the grid tokens: one gather that all sparse methods share.

Shape letters: B batch, N grid tokens, K kept grid tokens, P leading special tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, cat

from mmvit.types import Tokens


def select(tokens: Tokens, keep: Tensor) -> Tokens:
    """`tokens` with only the grid tokens `keep`, in that order; special tokens all stay.

    Positions must already be added. `kept` of the result always indexes the full grid, also when tokens were
    dropped before.

    Args:
        tokens: (B,P+N,D).
        keep: (B,K) int64, indices 0..N-1 into the grid tokens that are present.

    Raises:
        ValueError: `keep` is not (B,K) int64.
    """
    B, _, D = tokens.values.shape
    if keep.ndim != 2 or keep.shape[0] != B or keep.dtype.is_floating_point:
        raise ValueError(f"keep is {tuple(keep.shape)} {keep.dtype}, expected (B,K) int64 indices with B={B}")
    P = tokens.prefix
    grid = tokens.values[:, P:].gather(1, keep[..., None].expand(-1, -1, D))
    mask = tokens.mask
    if mask is not None:
        mask = cat([mask[:, :P], mask[:, P:].gather(1, keep)], dim=1)
    values = cat([tokens.values[:, :P], grid], dim=1) if P else grid
    kept = keep if tokens.kept is None else tokens.kept.gather(1, keep)
    return Tokens(values, tokens.grid, P, mask, kept)


def drop_tokens(noise: Tensor, keep_rate: float) -> Tensor:
    """DropToken's (B,K) int64 indices of kept grid tokens, ascending: the K = int(keep_rate * N) least noisy.

    A function of the noise and of nothing else. Rows of their own noise keep subsets of their own; one row of
    noise, expanded to (B,N), gives all samples one subset, as VATT's repository has it.

    Args:
        noise: (B,N) uniform.
        keep_rate: share of the tokens that stay, above 0, to 1. (The paper quotes the share that is dropped.)

    Raises:
        ValueError: a rate outside that range, or one at which no token stays.

    Source: VATT (arXiv:2104.11178) section 3.1.2.
    """
    if noise.ndim != 2 or not 0 < keep_rate <= 1:
        raise ValueError(
            f"keep_rate is {keep_rate} and noise {tuple(noise.shape)}, expected 0 < keep_rate <= 1 and (B,N)"
        )
    N = noise.shape[1]
    K = int(keep_rate * N + 1e-6)  # 0.29 * 100 is less than 29
    if K < 1:
        raise ValueError(f"keep_rate is {keep_rate}, which keeps none of {N} tokens: at least {1 / N:.2g}")
    return noise.argsort(dim=1, stable=True)[:, :K].sort(dim=1).values
