"""Detection heads on every token: a class embedding with its own shift and scale, a box, an objectness.

Place in the path: Encoded grid tokens -> `Candidates` -> logits against queries.
Shape letters: B batch, N = h*w grid tokens, D width, E embedding width, Q queries.
Source: OWL-ViT (arXiv:2205.06230) section 3 and appendix; OWLv2 (arXiv:2306.09683) for the objectness.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MISSING = -1e6  # logit of a query or token that is not there
_NORM_EPS = 1e-6  # added to the norms of embeddings, as the released models do
_EDGE = 1e-4


class MergeClass(nn.Module):
    """LayerNorm(token * class token), or LayerNorm(token) without a class token: (B,N,D) -> (B,N,D).

    Args:
        width: D.
        norm_eps: of the norm.
    """

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, tokens: Tensor, class_token: Tensor | None = None) -> Tensor:
        """Merged tokens (B,N,D) of grid tokens (B,N,D) and class tokens (B,D)."""
        return self.norm(tokens if class_token is None else tokens * class_token[:, None])


class ClassHead(nn.Module):
    """Tokens (B,N,D) -> class embeddings (B,N,E) with a shift and a scale for each token.

    Args:
        width: D.
        embed_dim: E.
        prior: probability of a query at a token at the start, 0..1.
    """

    def __init__(self, width: int, embed_dim: int, prior: float = 0.01) -> None:
        super().__init__()
        self.dense = nn.Linear(width, embed_dim)
        self.logit_shift = nn.Linear(width, 1)
        self.logit_scale = nn.Linear(width, 1)
        self.prior = prior
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Tiny embeddings, whose directions the first steps decide; shifts ln(prior / (1 - prior)), scales 1.

        Differs: the source draws the kernels of shift and scale. Tokens of a pre-trained tower share a large
        common part, which turns them into one random number for all tokens: probabilities of 0.1 to 0.35 at
        the start instead of 0.01, and scales near 0, at which nothing is learned.
        """
        nn.init.normal_(self.dense.weight, std=1e-6)
        nn.init.zeros_(self.dense.bias)
        for layer in (self.logit_shift, self.logit_scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.logit_shift.bias, math.log(self.prior / (1 - self.prior)))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class embeddings (B,N,E), shift (B,N) and scale (B,N) > 0, the last two at least float32."""
        shift, scale = (_full(layer(tokens)).squeeze(-1) for layer in (self.logit_shift, self.logit_scale))
        return self.dense(tokens), shift, F.elu(scale) + 1


class BoxHead(nn.Module):
    """Two hidden layers of the tokens' width, then `out` numbers: (B,N,D) -> (B,N,out).

    Args:
        width: D.
        out: 4 for boxes, 1 for objectness.
        activation: between the layers.
        zero: whether the last layer starts at zero: boxes then start at their bias.
    """

    def __init__(
        self, width: int, out: int, activation: Callable[[Tensor], Tensor], zero: bool = False
    ) -> None:
        super().__init__()
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.dense2 = nn.Linear(width, out)
        self.activation, self.zero = activation, zero
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun-normal kernels, zero biases; a zero last layer where it was asked for."""
        for layer in (self.dense0, self.dense1, self.dense2):
            _lecun_normal(layer)
        if self.zero:
            nn.init.zeros_(self.dense2.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,N,out), at least float32."""
        x = self.activation(self.dense0(tokens))
        return _full(self.dense2(self.activation(self.dense1(x))))


def box_bias(grid: tuple[int, int], kind: str, device: torch.device | None = None) -> Tensor:
    """(N,4) float32: what is added to the box head's output before the sigmoid, cxcywh, row-major.

    Args:
        grid: (h,w) tokens.
        kind: "corner", a box at the lower right corner of its patch as in the released models, or "center".
        device: of the result.

    Source: OWL-ViT appendix; scenic `compute_box_bias`.
    """
    h, w = grid
    shift = {"corner": 1.0, "center": 0.5}[kind]
    y = (torch.arange(h, dtype=torch.float32, device=device) + shift) / h
    x = (torch.arange(w, dtype=torch.float32, device=device) + shift) / w
    rows = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)
    size = rows.new_tensor([1.0 / w, 1.0 / h]).expand(h, w, 2)
    start = torch.cat([rows, size], dim=-1).reshape(h * w, 4)
    return torch.log(start + _EDGE) - torch.log1p(_EDGE - start)


def query_logits(embeddings: Tensor, shift: Tensor, scale: Tensor, queries: Tensor) -> Tensor:
    """Logits (B,N,Q), at least float32: (cosine of embedding and query + shift) * scale.

    Args:
        embeddings: (B,N,E), any length.
        shift: (B,N).
        scale: (B,N).
        queries: (Q,E), the same for all pictures, or (B,Q,E), each picture's own; any length.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        e, q = _unit(_full(embeddings)), _unit(_full(queries))
        cosine = e @ q.transpose(-1, -2)
        return (cosine + shift[..., None]) * scale[..., None]


def grid_mask(regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B,h*w) bool: which cells of a grid see some of the picture.

    Args:
        regions: (B,R,4) xyxy fractions of the tensor that pictures cover; rows of zeros are none.
        grid: (h,w).
    """
    h, w = grid
    y = torch.arange(h, device=regions.device, dtype=regions.dtype)
    x = torch.arange(w, device=regions.device, dtype=regions.dtype)
    x0, y0, x1, y1 = (regions[..., k, None] for k in range(4))  # each (B,R,1)
    slack = 1e-4  # of a cell: a region that ends on a border of cells must not gain one by rounding
    rows = (y0 * h < y + 1 - slack) & (y1 * h > y + slack)
    columns = (x0 * w < x + 1 - slack) & (x1 * w > x + slack)
    return (rows[..., :, None] & columns[..., None, :]).any(dim=1).flatten(1)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unit(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + _NORM_EPS)


def _lecun_normal(layer: nn.Linear) -> None:
    """Nothing; flax's default: truncated normal of variance 1/fan_in, zero bias."""
    std = math.sqrt(1.0 / layer.in_features) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
