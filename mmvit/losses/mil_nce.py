"""NCE between two modalities of which the second may have several candidates: MIL-NCE over the global batch.

Shape letters: b rows of this rank, B = W*b rows of all W ranks, P candidates, E embedding dim, R rows of a
tile. A row's negatives: its own video with all other rows' candidates, all other videos with its own.
Source: MIL-NCE (arXiv:1912.06430); VATT (arXiv:2104.11178) section 3.4 and its repository
(`utils/train/objectives.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmvit.losses.gather import Group, gather, gather_with_grad, world
from mmvit.losses.strip import TIE

Normalization = Literal["global", "local"]
Equals = Literal["negative", "mask"]
TILE = 1 << 24  # similarities of a tile and one direction when `block` is None: 64 MiB of float32


@dataclass(frozen=True)
class MilNceTerms:
    """One rank's loss and what the similarities tell besides.

    Attributes:
        loss: scalar; its mean over the ranks is the loss of the global batch.
        hits: (b,) bool, video i to texts: no other row's candidate scores as high as the best of its own.
        hits_back: (b,) bool, texts to video: with none of row i's candidates scores another video as high as
            its own does with the best. Rows that do not count and ties are False.
        counted: (b,) bool, True = the row has both modalities.
        share: scalar; what the sum over this rank's counted rows of a value times it has as its mean over the
            ranks: the value's mean over the counted rows of the global batch.
    """

    loss: Tensor
    hits: Tensor
    hits_back: Tensor
    counted: Tensor
    share: Tensor


def mil_nce_loss(
    video: Tensor,
    texts: Tensor,
    valid: Tensor | None = None,
    candidates: Tensor | None = None,
    temperature: float = 0.07,
    symmetric: bool = False,
    group: Group = None,
    *,
    video_valid: Tensor | None = None,
    normalization: Normalization = "global",
    same: Tensor | None = None,
    duplicates: Equals = "negative",
    block: int | None = None,
) -> Tensor:
    """Scalar loss: the mean over the rows that have both modalities of log(all pairs) - log(own pairs).

    With s(i,j,p) = cos(video_i, texts_jp) / temperature, own(i) = the log-sum-exp over p of s(i,i,p), row(i)
    the one over all j, p of s(i,j,p) and col(i) the one over all j, p of s(j,i,p), a row's loss is
    log(exp row + exp col) - own, and row + col - 2 own with `symmetric`. Own pairs are in both sums, so the
    first form is never below ln 2; all vectors equal give ln 2B. P = 1 is NCE of two single vectors; with
    `symmetric` it is then the sum of both directions' cross entropies.

    When torch.distributed runs, every rank must call this with the same b and P, also without a row that
    counts. With normalization "global" the mean over ranks is the loss of one process with the whole batch,
    and so are DDP's mean gradients, however unequally the rows that count lie on the ranks.

    Args:
        video: (b,E) of the first modality, any float type, need not be normalised.
        texts: (b,P,E) of the second, likewise.
        valid: (b,) bool, True = the row has its second modality; None = all. What others hold is not read.
        candidates: (b,P) bool, True = a real candidate; None = all. A row without any is as one not valid.
        temperature: of the cosines.
        symmetric: the sum of both directions' losses in place of one logarithm over the union.
        group: process group; None = all ranks.
        video_valid: (b,) bool, True = the row has its first modality; None = all. What a row has of one
            modality only counts among the others' negatives; a row with neither changes nothing.
        normalization: what the sum over the rows is divided by. "global": their number on all ranks over W;
            "local": their number on this rank, so that rows weigh more on ranks that have few.
        same: (b,) int64; equal ids, on any rank, mark rows that show the same thing.
        duplicates: what rows with equal ids are to each other: "negative" like any other; "mask": left out.
        block: rows of a tile (1..b); None chooses. Where there is more than one tile, the backward pass
            computes them anew: memory beside the embeddings is a few times 2 x block x B x P.

    Returns:
        Scalar, float32 (float64 when the embeddings are), with autocast off; 0 with zero gradients where no
        row counts.

    Raises:
        ValueError: shapes that do not match, masks that are not bool, an unknown mode, ids missing.

    Source: google-research/vatt gives the same values on one rank.
    Differs: counts rows over all ranks, masks empty candidates, divides by no mask, an option for duplicates.
    """
    return mil_nce_terms(
        video,
        texts,
        valid,
        candidates,
        temperature,
        symmetric,
        group,
        video_valid=video_valid,
        normalization=normalization,
        same=same,
        duplicates=duplicates,
        block=block,
        hits=False,
    ).loss


def mil_nce_terms(
    video: Tensor,
    texts: Tensor,
    valid: Tensor | None = None,
    candidates: Tensor | None = None,
    temperature: float = 0.07,
    symmetric: bool = False,
    group: Group = None,
    *,
    video_valid: Tensor | None = None,
    normalization: Normalization = "global",
    same: Tensor | None = None,
    duplicates: Equals = "negative",
    block: int | None = None,
    hits: bool = True,
) -> MilNceTerms:
    """The loss of `mil_nce_loss` and the in-batch retrieval hits, from one pass over the similarities."""
    _check(video, texts, temperature, normalization, duplicates, same, block)
    has = _real(video, texts, valid, candidates, video_valid)
    (rank, ranks), (b, P, _) = world(group), texts.shape
    with torch.autocast(video.device.type, enabled=False):
        v, t = _unit(video, has[:, 0]), _unit(texts, has[:, 1:])
        V, T = (gather_with_grad(x, group) if x.requires_grad else gather(x, group) for x in (v, t))
        everyone = gather(has.to(torch.uint8), group).bool()
        ids = None if same is None else gather(same.to(v.device), group)
        counts = has[:, 0] & has[:, 1:].any(1)
        total = (everyone[:, 0] & everyone[:, 1:].any(1)).sum().clamp(min=1).to(v.dtype)
        tile = _Tile(V, T, everyone, ids, rank * b, temperature, symmetric, duplicates == "mask", hits)
        own = counts.nonzero().squeeze(1)
        size = block or max(1, TILE // (len(V) * P))
        parts = (
            [tile(v, t, rows) for rows in own.split(size)]
            if size >= len(own)
            else [
                checkpoint(tile, v, t, rows, use_reentrant=False, preserve_rng_state=False)
                for rows in own.split(size)
            ]
        )
        share = ranks / total
        weight = share if normalization == "global" else 1 / counts.sum().clamp(min=1).to(v.dtype)
        # Every rank takes part in the backward of the gathers, also one without a row that counts.
        loss = sum((part[0].sum() for part in parts), 0.0 * (V.sum() + T.sum())) * weight
    won = torch.zeros(2, b, dtype=torch.bool, device=v.device)
    won[:, own] = torch.cat([part[1] for part in parts], 1)
    return MilNceTerms(loss, won[0], won[1], counts, share)


def mil_nce_chance(batch_size: int, symmetric: bool = False) -> float:
    """The loss of vectors that are all equal, B rows that all count: ln 2B, symmetric 2 ln B."""
    return 2 * math.log(batch_size) if symmetric else math.log(2 * batch_size)


@dataclass(frozen=True)
class _Tile:
    """Losses and hits of some of this rank's rows against the global batch.

    Attributes:
        V: (B,E) unit rows.
        T: (B,P,E) likewise.
        has: (B,1+P) bool, the video and each candidate that are real.
        ids: (B,) int64 or None.
        offset: global index of this rank's first row.
    """

    V: Tensor
    T: Tensor
    has: Tensor
    ids: Tensor | None
    offset: int
    temperature: float
    symmetric: bool
    masked: bool
    hits: bool

    def __call__(self, v: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (R,) and hits (2,R) bool of the rows (R,) int64 of v (b,E) and t (b,P,E)."""
        (R, (B, P, _)), at = (len(rows), self.T.shape), rows + self.offset
        row = (v[rows] @ self.T.flatten(0, 1).T).view(R, B, P) / self.temperature
        col = (t[rows].flatten(0, 1) @ self.V.T).view(R, P, B).transpose(1, 2) / self.temperature
        away_row = ~self.has[None, :, 1:]
        away_col = ~(self.has[None, :, :1] & self.has[at, None, 1:])
        own = torch.zeros(R, B, 1, dtype=torch.bool, device=v.device)
        own[torch.arange(R, device=v.device), at] = True
        equal = own if self.ids is None else (self.ids[at, None] == self.ids)[..., None]
        if self.masked:
            away_row, away_col = away_row | (equal & ~own), away_col | (equal & ~own)
        row, col = row.masked_fill(away_row, -torch.inf), col.masked_fill(away_col, -torch.inf)
        positive = row[torch.arange(R, device=v.device), at]
        over_row, over_col, over_own = (
            row.flatten(1).logsumexp(1),
            col.flatten(1).logsumexp(1),
            positive.logsumexp(1),
        )
        if self.symmetric:
            nll = over_row + over_col - 2 * over_own
        else:
            nll = torch.logaddexp(over_row, over_col) - over_own
        with torch.no_grad():
            won = torch.zeros(2, R, dtype=torch.bool, device=v.device)
            if self.hits:
                bar = positive.amax(1) - TIE / self.temperature
                rivals = [x.masked_fill(equal, -torch.inf).flatten(1).amax(1) for x in (row, col)]
                won = torch.stack(rivals) < bar
        return nll, won


def _unit(x: Tensor, real: Tensor) -> Tensor:
    """Rows at length 1, float32 or float64; zeros, and zero gradients, where they are not real.

    A row of zeros has no direction: the batch norm of a single row makes one, and the division by its length
    would blow up the gradients of what stands before it.
    """
    x = x if x.dtype == torch.float64 else x.float()
    return F.normalize(x.masked_fill((~real | (x == 0).all(-1))[..., None], 0.0), dim=-1)


def _real(
    video: Tensor, texts: Tensor, valid: Tensor | None, candidates: Tensor | None, video_valid: Tensor | None
) -> Tensor:
    """(b,1+P) bool: the video and each candidate that are real."""
    b, P, _ = texts.shape
    has = torch.ones(b, 1 + P, dtype=torch.bool, device=video.device)
    for name, mask, shape in (
        ("valid", valid, (b,)),
        ("candidates", candidates, (b, P)),
        ("video_valid", video_valid, (b,)),
    ):
        if mask is None:
            continue
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise ValueError(
                f"{name} is {tuple(mask.shape)} {mask.dtype}, expected {shape} torch.bool, True = present"
            )
        columns = slice(0, 1) if name == "video_valid" else slice(1, None)
        has[:, columns] &= mask.to(has.device).view(b, -1)
    return has


def _check(
    video: Tensor,
    texts: Tensor,
    temperature: float,
    normalization: str,
    duplicates: str,
    same: Tensor | None,
    block: int | None,
) -> None:
    if (
        video.ndim != 2
        or texts.ndim != 3
        or video.shape != (texts.shape[0], texts.shape[2])
        or not texts.shape[1]
    ):
        raise ValueError(
            "mil_nce_loss needs video (b,E) and texts (b,P,E) of P >= 1 candidates (one: texts[:, None]), "
            f"got {tuple(video.shape)} and {tuple(texts.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is what cosines are divided by, above 0, got {temperature}")
    if normalization not in ("global", "local"):
        raise ValueError(f"normalization is 'global' or 'local', got '{normalization}'")
    if duplicates not in ("negative", "mask"):
        raise ValueError(f"duplicates is 'negative' or 'mask', got '{duplicates}'")
    if duplicates == "mask" and same is None:
        raise ValueError("duplicates='mask' needs the ids `same` (b,)")
    if same is not None and same.shape != video.shape[:1]:
        raise ValueError(f"`same` holds one id per row: expected ({len(video)},), got {tuple(same.shape)}")
    if block is not None and block < 1:
        raise ValueError(f"block is the number of rows of a tile, at least 1, got {block}")
