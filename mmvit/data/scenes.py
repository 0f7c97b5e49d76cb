"""Position in the stream -> `Scene`: a picture or a mosaic of pictures with its boxes and its queries.

Everything is a function of (seed, position): which pictures, their views, the queries and their prompts.
M boxes, Q queries.
Source: OWL-ViT (arXiv:2205.06230) section 3.2 and appendix A1.5.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmvit.data.annotations import Note
from mmvit.data.decode import Decoder
from mmvit.data.draws import TRIES, Draws, Skips, Source
from mmvit.data.image import ImagePreprocess
from mmvit.data.labels import LabelCounts
from mmvit.data.pixels import BadSample
from mmvit.data.query_sets import QuerySets
from mmvit.data.tiles import BoxAugment, Tile, into_grid
from mmvit.errors import UserError
from mmvit.types import Sample

Region = tuple[float, float, float, float]


@dataclass(slots=True)
class Scene(Sample):
    """One picture tensor with its boxes and what is asked of it.

    Attributes:
        targets: (M,4) float32 xyxy, fractions 0..1 of the tensor.
        answers: (M,Q) bool, which queries a box answers (one or more).
        asked: Q canonical labels, all different.
        prompts: the text of each.
        regions: the parts of the tensor that pictures cover, xyxy fractions; the rest is padding.
    """

    targets: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    answers: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    asked: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)


class SceneDraws(Draws):
    """The endless stream of training scenes.

    Args:
        sources: one or more.
        weights: how often each is drawn, None = one common order.
        preprocess: size of the tensor, and how a picture is resized into it or into its tile.
        augment: views, mosaics, limits.
        queries: what is asked.
        labels: of each source its labels.
        seed: of everything that is drawn.
        shuffle_block: samples shuffled together.

    Raises:
        UserError: a size that a mosaic does not divide.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None,
        preprocess: ImagePreprocess,
        augment: BoxAugment,
        queries: QuerySets,
        labels: Sequence[LabelCounts],
        seed: int,
        shuffle_block: int,
    ):
        decoder = Decoder(fields=("image", "meta"), preprocess=preprocess)
        super().__init__(sources, weights, decoder, seed, shuffle_block)
        augment.check_size(preprocess.size)
        self.preprocess = preprocess
        self.augment = augment
        self.queries = queries
        self.labels = list(labels)

    def sample(self, position: int, skips: Skips) -> Scene:
        """The scene at a position: its own sample is one tile, others of the source are the rest.

        Raises:
            UserError: a hundred samples in a row are bad.
        """
        number, own = self.locate(position)
        source = self.sources[number]
        rng = random.Random(f"{self.seed}:{number}:{position}:boxes")
        grid = self.augment.draw_grid(rng)
        height, width = self.preprocess.size
        preprocess = dataclasses.replace(self.preprocess, size=(height // grid, width // grid))
        place = rng.randrange(grid * grid)
        tiles = []
        for k in range(grid * grid):
            i = own if k == place else rng.randrange(source.index.samples)
            tiles.append(self._tile(source, i, preprocess, rng, skips))
        scene = self._compose(tiles, grid, rng, skips, self.labels[number])
        scene.key, scene.source = tiles[place].key, source.name
        scene.meta = {"tiles": [tile.key for tile in tiles], "labels": scene.asked, "queries": scene.prompts}
        return scene

    def _tile(
        self, source: Source, i: int, preprocess: ImagePreprocess, rng: random.Random, skips: Skips
    ) -> Tile:
        """A view of sample i, or of another one where it is bad."""
        index = source.index
        for _ in range(TRIES):
            where = f"{index.key(i)} in {index.shard_of(i)}"
            try:
                raw = index.read(i, self.decoder.wants)
                return self.augment.tile(raw, preprocess, rng, noting(skips, where))
            except BadSample as bad:
                skips.add(bad, where)
                i = rng.randrange(index.samples)
        seen = "; ".join(skips.examples.values())
        raise UserError(f"{TRIES} samples of {source.name} in a row cannot be used: {seen}")

    def _compose(
        self, tiles: list[Tile], grid: int, rng: random.Random, skips: Skips, source: LabelCounts
    ) -> Scene:
        """The tiles side by side with all their boxes, and the queries of the whole."""
        places = [divmod(k, grid) for k in range(len(tiles))]
        boxes = torch.cat([into_grid(t.boxes, grid, *at) for t, at in zip(tiles, places, strict=True)])
        allowed = [
            tuple(n for n in names if n not in self.queries.forbid) for t in tiles for names in t.labels
        ]
        boxes, labels = boxes[[bool(names) for names in allowed]], [names for names in allowed if names]
        note = noting(skips, tiles[0].key)
        chosen, left_out = self.augment.cut(labels, rng, note)
        asked = self.queries.choose(
            [name for i in chosen for name in labels[i]],
            [name for t in tiles for name in t.known.negatives],
            [name for t in tiles for name in t.known.unsure] + [n for names in left_out for n in names],
            all(t.known.exhaustive for t in tiles),
            source,
            rng,
        )
        column = {name: q for q, name in enumerate(asked)}
        answered = [i for i in chosen if any(name in column for name in labels[i])]
        for _ in range(len(chosen) - len(answered)):
            note(BadSample("box-over-limit", f"more than {self.queries.num_queries} labels (num_queries)"))
        answers = torch.zeros(len(answered), len(asked), dtype=torch.bool)
        for row, i in enumerate(answered):
            answers[row, [column[name] for name in labels[i] if name in column]] = True
        fixed = source.fixed.union(*(t.known.fixed for t in tiles))
        regions = [into_grid(torch.tensor(t.region, dtype=torch.float64), grid, *at).tolist()
                   for t, at in zip(tiles, places, strict=True)]  # fmt: skip
        return Scene(
            key="",
            image=_lay([t.pixels for t in tiles], grid),
            targets=boxes[answered].float(),
            asked=asked,
            prompts=self.queries.prompts(asked, fixed, rng),
            answers=answers,
            regions=[tuple(region) for region in regions],
        )


def _lay(tiles: list[Tensor], grid: int) -> Tensor:
    """(3,H,W) uint8 of grid x grid tiles (3,h,w), row by row."""
    rows = [torch.cat(tiles[r * grid : (r + 1) * grid], dim=2) for r in range(grid)]
    return torch.cat(rows, dim=1)


def noting(skips: Skips, where: str) -> Note:
    """What counts a box or a sample that is left out, found at `where`."""

    def note(bad: BadSample) -> None:
        skips.add(bad, where)

    return note
