"""Attention inside windows of a grid, with a learned bias for every offset in one.

Place in the path: inside the blocks of `core/swin.py`.
Shape letters: B batch, h/w grid, C channels, H heads, s side of a window, W windows, K width of a head.
Source: Swin (arXiv:2103.14030) section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.attention import attend
from mmvit.core.relative import relative_index


def side_of(grid: Sequence[int], window: int) -> int:
    """The side of the windows on a grid: `window`, or the grid's shorter side where that is less."""
    return min(window, *grid)


def seams(grid: Sequence[int], side: int, shift: int, device: torch.device) -> Tensor:
    """What keeps apart tokens that only the cyclic shift brought into one window: (W,1,s*s,s*s), 0 or -inf.

    Args:
        grid: extent in tokens, multiples of `side`.
        side: s.
        shift: by how many tokens the map was rolled up and to the left, 0 < shift < s.
        device: where it is made.
    """
    parts = []
    for n in grid:
        place = torch.arange(n, device=device)
        parts.append((place >= n - side).long() + (place >= n - shift).long())
    region = parts[0][:, None] * 3 + parts[1]
    region = region.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2).flatten(2).flatten(0, 1)
    apart = region[:, None, :] != region[:, :, None]
    return torch.zeros(apart.shape, device=device).masked_fill_(apart, -torch.inf)[:, None]


class WindowAttention(nn.Module):
    """Attention inside windows, with a learned bias for every offset in one: (B,h,w,C) -> (B,h,w,C).

    A map that windows do not fill is padded with zeros behind its ends; what stands there is attended, as in
    the published code.

    Args:
        width: C.
        num_heads: H, a divisor of C.
        window: side of a window in tokens; on a smaller grid the inner rows of the table are used.
        qkv_bias: whether q, k, v have biases.
        dropout: on the output projection, 0..1.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self, width: int, num_heads: int, window: int, *, qkv_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width is {width}, expected a multiple of num_heads={num_heads}")
        self.num_heads, self.window, self.dropout = num_heads, window, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))

    def forward(self, x: Tensor, shift: int = 0, mask: Tensor | None = None) -> Tensor:
        """The attended maps (B,h,w,C).

        Args:
            x: (B,h,w,C).
            shift: by how many tokens the windows lie further down and to the right.
            mask: `seams` of the padded grid, for shift > 0.
        """
        _, h, w, _ = x.shape
        side = side_of((h, w), self.window)
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
        x = x.roll((-shift, -shift), (1, 2)) if shift else x
        B, rows, columns, C = x.shape
        cut = (B, rows // side, side, columns // side, side)
        # Windows stand beside heads, so that bias and seams are stored once for all samples.
        parts = self.qkv(x).view(*cut, 3, self.num_heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = parts.reshape(3, B, -1, side * side, C // self.num_heads).unbind(0)
        windows = q.shape[1] // self.num_heads
        bias = self._bias(side).expand(windows, -1, -1, -1)
        bias = bias if mask is None else bias + mask.to(bias.dtype)
        out = attend(q, k, v, bias.reshape(1, *q.shape[1:3], side * side))
        out = out.reshape(B, cut[1], cut[3], self.num_heads, side, side, -1).permute(0, 1, 4, 2, 5, 3, 6)
        x = self.proj(out.reshape(B, rows, columns, C))
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        x = x.roll((shift, shift), (1, 2)) if shift else x
        return x[:, :h, :w]

    def _bias(self, side: int) -> Tensor:
        """What is added to the scores of a window (H,s*s,s*s)."""
        rows = relative_index((self.window, self.window), 0, self.table.device)
        if side < self.window:
            inner = torch.arange(side, device=rows.device)
            inner = (inner[:, None] * self.window + inner).flatten()
            rows = rows[inner[:, None], inner]
        return self.table.t()[:, rows]
