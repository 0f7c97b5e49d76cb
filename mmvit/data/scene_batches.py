"""Scenes -> padded batches, in a worker: `SceneBatches` for training, `PictureBatches` for evaluation.

B pictures, M boxes, Q queries of L tokens, R regions; padded rows are False in their masks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvit.data.annotations import usable_objects
from mmvit.data.batch import collate
from mmvit.data.captions import read_json
from mmvit.data.decode import Decoder
from mmvit.data.draws import EvalBatches, Packet, Skips, Source, TrainBatches, unusable
from mmvit.data.image import ImagePreprocess, draft_jpeg, to_tensor
from mmvit.data.pixels import BadSample, load_rgb, upright_size
from mmvit.data.scenes import Scene, SceneDraws, noting
from mmvit.data.tiles import open_member
from mmvit.data.tokenizer import TokenizedText, Tokenizer
from mmvit.types import Batch


class SceneBatches(TrainBatches):
    """Item k: this rank's slice of the k-th global batch of scenes; arguments as in `TrainBatches`."""

    def __init__(
        self,
        draws: SceneDraws,
        batch_size: int,
        rank: int,
        world_size: int,
        start: int,
        tokenizer: Tokenizer,
        fixed_shapes: bool,
    ):
        super().__init__(draws, batch_size, rank, world_size, start, tokenizer, "context")
        largest = max(grid for grid, probability in draws.augment.mosaics if probability)
        limits = (draws.queries.num_queries, draws.augment.max_boxes, largest**2)
        self.least = limits if fixed_shapes else (1, 1, 1)
        self.prompts = PromptTokens(tokenizer)

    def pack(self, samples: Sequence[Any], skips: Skips, position: int) -> Packet:
        """Scenes as one packet; every tile counts as drawn."""
        batch = collate_scenes(samples, self.prompts, self.least)
        drawn = sum(len(scene.meta["tiles"]) for scene in samples)
        return _packet(batch, drawn, skips, position)


class PictureBatches(EvalBatches):
    """Item k: the k-th batch of pictures first..stop-1 with their JSON; arguments as in `EvalBatches`."""

    def __init__(
        self, sources: Sequence[Source], preprocess: ImagePreprocess, batch_size: int, first: int, stop: int
    ):
        decoder = Decoder(fields=("image", "meta"), preprocess=preprocess)
        super().__init__(sources, decoder, batch_size, first, stop, None, "context")

    def load(self, source: Source, i: int, rng: random.Random, skips: Skips) -> Scene | None:
        """Sample i of a source, None where it is bad."""
        index, preprocess = source.index, self.decoder.preprocess
        where = f"{index.key(i)} in {index.shard_of(i)}"
        try:
            raw = index.read(i, self.decoder.wants)
            picture = open_member(raw, preprocess.max_pixels)
            width, height = upright_size(picture)
            if preprocess.draft:
                draft_jpeg(picture, preprocess.size, preprocess.crop_fraction)
            if "json" not in raw:
                raise BadSample("boxes-missing", "there is no JSON member")
            meta = usable_objects(read_json(raw["json"]), (height, width), noting(skips, where))
            image = to_tensor(preprocess.apply(load_rgb(picture, preprocess.background)))
        except BadSample as bad:
            skips.add(bad, where)
            return None
        region = preprocess.placement(height, width).region
        return Scene(key=index.key(i), source=source.name, image=image, meta=meta, regions=[region])

    def pack(self, samples: Sequence[Any], skips: Skips, position: int) -> Packet:
        """Pictures as one packet."""
        batch = collate(samples) if samples else None
        if batch is not None:
            batch.group = None
            batch.regions = torch.tensor([scene.regions for scene in samples], dtype=torch.float32)
        return _packet(batch, len(samples), skips, position)


class PromptTokens:
    """Prompts -> ids and mask; the tokens of prompts that were met before are kept.

    Labels x templates come again and again, and byte-pair encoding them costs as much as a picture.

    Args:
        tokenizer: of the prompts.
        limit: how many are kept.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int = 100_000):
        self.tokenizer = tokenizer
        self.limit = limit
        self.rows: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, texts: Sequence[str]) -> TokenizedText:
        """Ids (n,L) int64, mask (n,L) bool, and how many of those not met before were cut."""
        if len(self.rows) + len(texts) > self.limit:
            self.rows.clear()
        new = [text for text in texts if text not in self.rows]
        tokens = self.tokenizer(new)
        self.rows.update(zip(new, zip(tokens.ids, tokens.mask, strict=True), strict=True))
        ids, mask = zip(*(self.rows[text] for text in texts), strict=True)
        return TokenizedText(torch.stack(ids), torch.stack(mask), tokens.truncated)


def collate_scenes(
    scenes: Sequence[Scene], tokenizer: PromptTokens, least: tuple[int, int, int] = (1, 1, 1)
) -> Batch:
    """B scenes as one batch; every different prompt is tokenized once.

    Args:
        scenes: pictures of one size.
        tokenizer: of the prompts.
        least: Q, M and R are at least these.
    """
    texts = ["", *dict.fromkeys(prompt for scene in scenes for prompt in scene.prompts)]
    row = {text: i for i, text in enumerate(texts)}
    tokens = tokenizer(texts)
    Q = max(least[0], *(len(scene.prompts) for scene in scenes))
    M = max(least[1], *(len(scene.targets) for scene in scenes))
    R = max(least[2], *(len(scene.regions) for scene in scenes))
    B = len(scenes)
    asked = torch.zeros(B, Q, dtype=torch.int64)  # row 0, the empty text: a padded query has real tokens too
    query_mask, box_mask = torch.zeros(B, Q, dtype=torch.bool), torch.zeros(B, M, dtype=torch.bool)
    boxes, regions = torch.zeros(B, M, 4), torch.zeros(B, R, 4)
    answers = torch.zeros(B, M, Q, dtype=torch.bool)
    for b, scene in enumerate(scenes):
        q, m = len(scene.prompts), len(scene.targets)
        asked[b, :q] = torch.tensor([row[prompt] for prompt in scene.prompts], dtype=torch.int64)
        query_mask[b, :q] = box_mask[b, :m] = True
        boxes[b, :m] = scene.targets
        answers[b, :m, :q] = scene.answers
        regions[b, : len(scene.regions)] = torch.tensor(scene.regions)
    return Batch(
        keys=[scene.key for scene in scenes],
        image=torch.stack([scene.image for scene in scenes if scene.image is not None]),
        queries=tokens.ids[asked],
        queries_mask=tokens.mask[asked],
        query_mask=query_mask,
        boxes=boxes,
        box_mask=box_mask,
        box_labels=answers,
        regions=regions,
        meta=[scene.meta for scene in scenes],
        truncated=tokens.truncated,
    )


def _packet(batch: Batch | None, drawn: int, skips: Skips, position: int) -> Packet:
    counts = dict(skips.counts)
    if batch is not None:
        batch.position, batch.skipped = position, counts
    return Packet(batch, drawn + unusable(counts), counts, skips.examples)
