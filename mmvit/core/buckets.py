"""A learned bias for every pair of tokens by their distance in the sequence, far distances in common buckets.

Shape letters: P leading special tokens, N all tokens, Q queried tokens, H heads.
Source: T5 (arXiv:1910.10683) section 2.1 and its code: one table, used by all blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmvit.core.relative import Places


class BucketBias(nn.Module):
    """The table of all blocks: places -> (1 or B,H,Q,N).

    A token's place is its index in the whole sequence, special tokens in front included: the first of them is
    at 0 and is as far from the first grid token as neighbours are.

    Args:
        num_heads: H.
        buckets: rows of the table, half for either direction.
        max_distance: from which on all distances share a bucket.

    Raises:
        ValueError: less than 4 or an odd number of buckets, or a distance below the buckets of one distance.
    """

    def __init__(self, num_heads: int, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        if buckets < 4 or buckets % 2 or max_distance <= buckets // 4:
            raise ValueError(
                f"relative_buckets is {buckets} and relative_distance {max_distance}, expected an even "
                "number of at least 4 and a distance above a quarter of it"
            )
        self.buckets, self.max_distance = buckets, max_distance
        self.table = nn.Parameter(torch.empty(buckets, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros: at the start, attention knows nothing of order."""
        nn.init.zeros_(self.table)

    def places(self, grid: tuple[int, ...], prefix: int, kept: Tensor | None, device: torch.device) -> Places:
        """The bucket of every pair of tokens, (N,N), or (B,N,N) when some grid tokens were dropped.

        Args:
            grid: extent of the full grid, row-major.
            prefix: P.
            kept: (B,K) int64 index of each grid token in the full grid, None = all are there.
            device: where the index is made.
        """
        special = torch.arange(prefix, device=device)
        if kept is None:
            place = torch.arange(prefix + math.prod(grid), device=device)
        else:
            place = torch.cat([special.expand(len(kept), -1), kept + prefix], dim=1)
        offset = place[..., None, :] - place[..., :, None]
        return Places(grid, bucket_of(offset, self.buckets, self.max_distance))

    def forward(self, places: Places) -> Tensor:
        """What is added to the attention scores: (1,H,Q,N), or (B,H,Q,N) when samples differ."""
        bias = self.table.t()[:, places.rows]
        return bias[None] if places.rows.ndim == 2 else bias.transpose(0, 1)


def bucket_of(offset: Tensor, buckets: int, max_distance: int) -> Tensor:
    """The bucket (...) int64 of each offset (...), the key's place minus the query's.

    Half of the buckets are for keys behind the query; of either half, half are for one distance each and the
    rest grow logarithmically up to `max_distance`.
    """
    half = buckets // 2
    single = half // 2
    distance = offset.abs()
    growth = torch.log(distance.clamp(min=1).float() / single) / math.log(max_distance / single)
    far = (single + (growth * (half - single)).long()).clamp(max=half - 1)
    return half * (offset > 0) + torch.where(distance < single, distance, far)
