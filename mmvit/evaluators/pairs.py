"""Retrieval between any two modalities of the same samples: which pairs, in which space, what is right.

Letters: N samples, T texts, E embedding dim.
Source: VATT (arXiv:2104.11178) section 3.3 for the spaces: video and audio meet in S_va, text and all others
in S_vt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.data.captions import group_of
from mmvit.errors import UserError, nearest
from mmvit.evaluators.embed import Embedded, TextEncoder
from mmvit.evaluators.media import having, name_of
from mmvit.evaluators.ranking import score_blocks
from mmvit.evaluators.retrieval import approximate_metrics, first_of_each, rank_chance, retrieval_metrics
from mmvit.evaluators.samples import drawn_rows, row_groups

# A cosine this near to 1 is equality: of one input in two batches float32 embeddings differ by about 1e-6.
SAME = 1e-9
SIDES = ("video", "audio", "image", "text")


@dataclass(frozen=True)
class PairOf:
    """What is looked for by what, and what is right.

    Attributes:
        a, b: video, audio, image or text; two different ones.
        group_by: "text", "sample" or a field of the JSON, as `row_groups` takes it.
    """

    a: str
    b: str
    group_by: str

    @property
    def name(self) -> str:
        """Both sides: audio-video."""
        return f"{self.a}-{self.b}"

    @property
    def needs(self) -> tuple[str, ...]:
        """What a sample must have to be compared."""
        return tuple(dict.fromkeys([self.a, self.b, *(["text"] if self.group_by == "text" else [])]))


@dataclass
class PairRetrieved:
    """What `pair_retrieval` found.

    Attributes:
        metrics: of `retrieval_metrics`, and of `rank_chance` for each direction.
        n: samples that have both.
        rows: (rows of a, rows of b) that were compared.
        shared: side -> rows that equal a row of another group (one sound of several clips, say). Nobody can
            tell these apart, and ties count against the model.
        approximate: of `approximate_metrics` per direction, empty when the index is exact.
    """

    metrics: dict[str, float]
    n: int
    rows: tuple[int, int]
    shared: dict[str, int]
    approximate: dict[str, Any]


def parse_pairs(words: str, group_by: str) -> list[PairOf]:
    """The pairs of "video-text,audio-video:label"; what follows a colon is that pair's own `group_by`.

    Raises:
        ValueError: not two modalities, or an unknown one.
    """
    found = []
    for word in (part.strip() for part in words.split(",")):
        pair, _, own = word.partition(":")
        sides = pair.split("-")
        if len(sides) != 2 or sides[0] == sides[1]:
            raise ValueError(f"pair {word!r}: expected two modalities such as audio-video")
        for side in sides:
            if side not in SIDES:
                raise ValueError(f"pair {word!r}: unknown modality {side!r}: {nearest(side, SIDES)}")
        found.append(PairOf(sides[0], sides[1], own or group_by))
    return found


def possible_pairs(
    spaces: Mapping[str, Collection[str]], data: Collection[str], group_by: str
) -> list[PairOf]:
    """Every pair that both the model and the data have, and that meets in a space.

    Args:
        spaces: modality -> the spaces in which the model has it.
        data: modalities of the shards.
        group_by: of all of them.
    """
    there = [side for side in SIDES if side in spaces and side in data]
    pairs = [(a, b) for i, a in enumerate(there) for b in there[i + 1 :]]
    # Audio asks first where it is one of two: the names of tables and results stay few.
    ordered = [(b, a) if b == "audio" else (a, b) for a, b in pairs]
    return [PairOf(a, b, group_by) for a, b in ordered if set(spaces[a]) & set(spaces[b])]


def space_of(pair: PairOf, spaces: Mapping[str, Collection[str]], wanted: str = "") -> str:
    """The space in which a pair is compared: the wanted one, else the finest that both are in.

    Args:
        pair: what is compared.
        spaces: modality -> the spaces in which the model has it, the default one first, the finer ones after.
        wanted: the name of a space, "" = choose.

    Raises:
        ValueError: the model lacks one of the two, or has them in no common space or not in the wanted one.
    """
    for side in (pair.a, pair.b):
        if side not in spaces:
            raise ValueError(f"pair {pair.name}: the model has no {side}, only {', '.join(spaces)}")
    common = [space for space in spaces[pair.a] if space in spaces[pair.b]]
    if not common or (wanted and wanted not in common):
        valid = " or ".join(filter(None, common)) or "none by name"
        raise ValueError(f"pair {pair.name}: space {wanted!r} does not hold both; valid: {valid}")
    return wanted or common[-1]


def pair_retrieval(
    samples: Embedded,
    pair: PairOf,
    space: str,
    *,
    encode: TextEncoder | None = None,
    dedup: bool = False,
    distinct: Collection[str] = (),
    index: str = "flat",
) -> PairRetrieved:
    """Retrieval both ways between two modalities of the samples that have both.

    Args:
        samples: of `embed_media`, with captions where a side is text.
        pair: what is compared and what is right.
        space: of `space_of`.
        encode: texts -> (T,E), needed where a side is text.
        dedup: keep each distinct caption once.
        distinct: sides that keep one row of each group (one sound serves several clips, say).
        index: "flat", or a FAISS factory string that is compared with it.

    Raises:
        UserError: no sample has both, several captions a sample under group_by="text", or no such field.
        ValueError: a factory string that FAISS cannot make.
    """
    rows = having(samples, *pair.needs)
    part = drawn_rows(samples, rows.nonzero()[:, 0].tolist())
    groups = row_groups(part, pair.group_by)
    if pair.group_by == "text" and any(len(captions) > 1 for captions in part.captions):
        raise UserError("several captions per sample: use --group-by sample, or a field such as label")
    sides = [_side(part, side, space, groups, encode, dedup, side in distinct) for side in (pair.a, pair.b)]
    (a, group_a), (b, group_b) = sides
    metrics = retrieval_metrics(a, b, group_a, group_b, (pair.a, pair.b))
    metrics |= {f"{pair.a}_retrieval_{k}": v for k, v in rank_chance(group_b, group_a).items()}
    metrics |= {f"{pair.b}_retrieval_{k}": v for k, v in rank_chance(group_a, group_b).items()}
    approximate = {}
    if index != "flat":
        approximate = {
            f"{pair.a}_retrieval": approximate_metrics(b, a, group_b, group_a, index),
            f"{pair.b}_retrieval": approximate_metrics(a, b, group_a, group_b, index),
        }
    shared = {pair.a: _shared(a, group_a), pair.b: _shared(b, group_b)}
    return PairRetrieved(metrics, len(part), (len(a), len(b)), shared, approximate)


def _shared(rows: Tensor, groups: Tensor) -> int:
    """How many rows equal a row of another group, to the precision of float32."""
    count = 0
    for start, scores in score_blocks(rows, rows):
        other = groups[start : start + len(scores), None] != groups[None]
        count += int(((scores > 1 - SAME) & other).any(1).sum())
    return count


def _side(
    part: Embedded,
    side: str,
    space: str,
    groups: Tensor,
    encode: TextEncoder | None,
    dedup: bool,
    distinct: bool,
) -> tuple[Tensor, Tensor]:
    """(embeddings, groups) of one side's rows."""
    if side != "text":
        rows = part.embeddings[name_of(side, space)]
    else:
        assert encode is not None, "texts need their encoder"
        texts = [text for captions in part.captions for text in captions]
        owner = torch.tensor([i for i, captions in enumerate(part.captions) for _ in captions])
        groups = groups[owner]
        if dedup:
            kept = first_of_each([group_of(text) for text in texts])
            texts, groups = [texts[i] for i in kept], groups[kept]
        rows = encode(texts)
    if distinct:
        kept = first_of_each(groups.tolist())
        rows, groups = rows[kept], groups[kept]
    return rows, groups
