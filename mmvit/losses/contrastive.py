"""Softmax (CLIP) and sigmoid (SigLIP) contrastive losses over the global batch.

Shape letters: b pairs of this rank, B = W*b pairs of all W ranks, E embedding dim, R rows of a tile.
The logits are s * cos(a_i, b_j) + c. Each rank owns the strip of logits (b,B) of its own rows; it is walked
in tiles of R rows and never kept whole, and the statistics of the columns are completed over the ranks.
Source: CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023, section 3), LiT (Zhai et al. 2022, appendix F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mmvit.losses.gather import Group, gather, gather_with_grad, world
from mmvit.losses.strip import Duplicates, Strip, sigmoid_strip, softmax_strip

# Logits of a tile when `block` is None: 4 MiB of float32 stay in a processor's caches, GPUs want large tiles.
TILE_CPU, TILE_GPU = 1 << 20, 1 << 26


@dataclass(frozen=True)
class ContrastiveTerms:
    """One rank's loss and what the logits tell besides.

    Attributes:
        loss: scalar; its mean over the ranks is the loss of the global batch, as DDP's mean gradients are.
        hits_a: (b,) bool, row i of a: no row of b that does not belong to it scores as high as its own.
        hits_b: (b,) bool, the same from b to a. Ties count as misses, so collapsed embeddings score zero.
    """

    loss: Tensor
    hits_a: Tensor
    hits_b: Tensor


def contrastive_loss(
    z_a: Tensor,
    z_b: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    kind: Literal["softmax", "sigmoid"] = "softmax",
    block: int | None = None,
    group: Group = None,
    same: Tensor | None = None,
    duplicates: Duplicates = "negative",
) -> Tensor:
    """Scalar loss of the pairs (z_a[i], z_b[i]) against all pairs of all ranks.

    Softmax: the mean of both directions' cross entropies, chance level ln B. Sigmoid: the sum of all pairs'
    binary logistic losses divided by B. When torch.distributed runs, every rank must call this with the same
    b; the returned value is this rank's share: its mean over ranks is the global loss, and after DDP's mean
    the gradients of towers, scale and bias are those of one process with the whole batch.

    Args:
        z_a: (b,E) embeddings, any float type, need not be normalised.
        z_b: (b,E), likewise.
        logit_scale: scalar, the LOG of the scale s.
        logit_bias: scalar c, sigmoid only; None = 0.
        kind: "softmax" (CLIP) or "sigmoid" (SigLIP).
        block: rows of a tile (1..b); None chooses. Memory beside the embeddings is a few tiles of block x B.
        group: process group; None = all ranks.
        same: (b,) int64; equal ids, on any rank, mark pairs that show the same thing.
        duplicates: what a pair (i,j), i != j, with equal ids is: "negative" like any other; "mask": left out;
            "positive": softmax target uniform over the equal ones, sigmoid label +1.

    Returns:
        Scalar, float32 (float64 when the embeddings are). Computed with autocast off.

    Raises:
        ValueError: shapes that do not match, an unknown kind or mode, ids missing for a mode that needs them.

    Source: open_clip's ClipLoss(local_loss=True, gather_with_grad=True) and SigLipLoss give the same values.
    Differs: tiles with recomputation, one logits strip for both directions, an option for duplicates.
    """
    return contrastive_terms(
        z_a, z_b, logit_scale, logit_bias, kind, block, group, same, duplicates, hits=False
    ).loss


def contrastive_terms(
    z_a: Tensor,
    z_b: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    kind: Literal["softmax", "sigmoid"] = "softmax",
    block: int | None = None,
    group: Group = None,
    same: Tensor | None = None,
    duplicates: Duplicates = "negative",
    hits: bool = True,
) -> ContrastiveTerms:
    """The loss of `contrastive_loss` and the in-batch retrieval hits, from one pass over the logits."""
    _check(z_a, z_b, logit_bias, kind, block, same, duplicates)
    if not z_a.requires_grad and z_b.requires_grad:
        # Locked side a: own the rows of b instead, so that the gathered side needs no backward at all.
        terms = contrastive_terms(
            z_b, z_a, logit_scale, logit_bias, kind, block, group, same, duplicates, hits
        )
        return ContrastiveTerms(terms.loss, terms.hits_b, terms.hits_a)
    rank, _ = world(group)
    with torch.autocast(z_a.device.type, enabled=False):
        dtype = torch.float64 if z_a.dtype == torch.float64 else torch.float32
        rows = F.normalize(z_a.to(dtype), dim=-1)
        own = F.normalize(z_b.to(dtype), dim=-1)
        columns = gather_with_grad(own, group) if own.requires_grad else gather(own, group)
        scale = logit_scale.to(dtype).exp()
        bias = torch.zeros_like(scale) if logit_bias is None else logit_bias.to(dtype)
        if same is not None:
            same = same.to(rows.device)
        tile = TILE_CPU if rows.device.type == "cpu" else TILE_GPU
        strip = Strip(
            offset=rank * rows.shape[0],
            block=block or max(1, min(rows.shape[0], tile // columns.shape[0])),
            ids=None if same is None else gather(same, group),
            duplicates=duplicates,
            group=group,
            hits=hits,
        )
        run = softmax_strip if kind == "softmax" else sigmoid_strip
        loss, hits_a, hits_b = run(rows, columns, scale, bias, strip)
    return ContrastiveTerms(loss, hits_a, hits_b)


def chance_level(kind: Literal["softmax", "sigmoid"], batch_size: int) -> float:
    """The loss of embeddings that know nothing, with the best temperature and bias, for B distinct pairs.

    Softmax: ln B. Sigmoid: every pair gets the probability 1/B of a match, ln B + (B-1) ln(B / (B-1)).

    Args:
        kind: "softmax" or "sigmoid".
        batch_size: B, over all ranks.
    """
    B = batch_size
    if kind == "softmax" or B == 1:
        return math.log(B)
    return math.log(B) + (B - 1) * math.log(B / (B - 1))


def _check(
    z_a: Tensor,
    z_b: Tensor,
    logit_bias: Tensor | None,
    kind: str,
    block: int | None,
    same: Tensor | None,
    duplicates: str,
) -> None:
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        raise ValueError(
            "contrastive_loss needs two (b,E) tensors of one shape, "
            f"got {tuple(z_a.shape)} and {tuple(z_b.shape)}"
        )
    if kind not in ("softmax", "sigmoid"):
        raise ValueError(f"kind is 'softmax' or 'sigmoid', got '{kind}'")
    if kind == "softmax" and logit_bias is not None:
        raise ValueError("logit_bias belongs to kind='sigmoid'; it has no effect on a softmax, pass None")
    if duplicates not in ("negative", "mask", "positive"):
        raise ValueError(f"duplicates is 'negative', 'mask' or 'positive', got '{duplicates}'")
    if duplicates != "negative" and same is None:
        raise ValueError(f"duplicates='{duplicates}' needs the ids `same` (b,)")
    if same is not None and same.shape != z_a.shape[:1]:
        raise ValueError(f"`same` holds one id per row: expected ({z_a.shape[0]},), got {tuple(same.shape)}")
    if block is not None and block < 1:
        raise ValueError(f"block is the number of rows of a tile, at least 1, got {block}")
