"""Shards with boxes -> batches: `make_detection_loader` for training, `read_detection` for evaluation.

What comes is decided by (seed, position) alone, as for pairs: see `mmvit.data.loader`.
B pictures, M boxes, Q queries of L tokens, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmvit.data.decode import Decoder
from mmvit.data.draws import Source
from mmvit.data.feed import Loader
from mmvit.data.image import ImagePreprocess
from mmvit.data.labels import count_labels
from mmvit.data.loader import check_batch, check_ranks, open_sources
from mmvit.data.query_sets import QuerySets
from mmvit.data.scene_batches import PictureBatches, SceneBatches
from mmvit.data.scenes import SceneDraws
from mmvit.data.shards import is_remote
from mmvit.data.tiles import BoxAugment
from mmvit.data.tokenizer import Tokenizer
from mmvit.errors import UserError

Grids = Sequence[tuple[int, float]]


def make_detection_loader(
    urls: str,
    *,
    tokenizer: Tokenizer,
    preprocess: ImagePreprocess,
    batch_size: int,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    start_position: int = 0,
    num_batches: int | None = None,
    num_queries: int = 100,
    min_negatives: int = 50,
    mosaics: Grids = ((1, 0.4), (2, 0.3), (3, 0.3)),
    flip: float = 0.5,
    crop: tuple[float, float] = (0.3, 1.0),
    crop_ratio: tuple[float, float] = (0.75, 1.33),
    min_area: float = 0.6,
    color: float = 0.0,
    draft: bool = True,
    merge_iou: float = 0.9,
    templates: str | Sequence[str] = "owl",
    forbid: Sequence[str] = (),
    max_boxes: int = 100,
    fixed_shapes: bool = False,
    shuffle_block: int = 65536,
    max_bad_rate: float = 0.05,
    prefetch: int = 2,
    start_method: str | None = None,
) -> Loader:
    """Endless (or `num_batches`) training batches of pictures with boxes and each picture's own queries.

    A batch has image (B,3,H,W), queries (B,Q,L), queries_mask, query_mask (B,Q), boxes (B,M,4), box_mask
    (B,M), box_labels (B,M,Q), regions (B,R,4), and per picture meta["labels"], ["queries"] and ["tiles"] (the
    keys). Padded queries hold the tokens of the empty text. Order, ranks and restart are as in
    `make_loader`: every sample of the shards is the main tile of one scene per epoch.

    Args:
        urls: shard pattern(s), several sources separated by "::"; local shards only.
        tokenizer: of the queries.
        preprocess: size of the tensor, and how a picture is resized into it or into its tile.
        batch_size: GLOBAL batch; a multiple of `world_size`.
        seed: of order, views, mosaics, queries, prompts.
        weights: one per source: how often each is drawn; None = one common order over all samples.
        rank: this process, 0..world_size-1; it gets the rank-th slice of every global batch.
        world_size: processes.
        workers: processes that read ahead, for this rank.
        start_position: `samples_seen` of the run that is continued.
        num_batches: None = endless.
        num_queries: see `QuerySets`.
        min_negatives: see `QuerySets`.
        mosaics: see `BoxAugment`.
        flip: see `BoxAugment`.
        crop: `BoxAugment.crop_scale`; (1, 1) = whole pictures.
        crop_ratio: see `BoxAugment`.
        min_area: see `BoxAugment`.
        color: see `BoxAugment`.
        draft: see `BoxAugment`.
        merge_iou: see `BoxAugment`.
        templates: see `QuerySets`.
        forbid: see `QuerySets`.
        max_boxes: see `BoxAugment`.
        fixed_shapes: pad to num_queries, max_boxes and the largest mosaic's regions in every batch.
        shuffle_block: samples shuffled together.
        max_bad_rate: share of bad samples above which iteration stops with an error.
        prefetch: batches that each worker prepares ahead.
        start_method: fork, forkserver or spawn; None = the system's default.

    Raises:
        UserError: no shards, streams, shards without JSON, a batch that the ranks cannot share, a size that a
            mosaic does not divide.
    """
    check_ranks(rank, world_size)
    check_batch(batch_size, world_size)
    augment = BoxAugment(
        flip=flip,
        crop_scale=crop,
        crop_ratio=crop_ratio,
        min_area=min_area,
        mosaics=mosaics,
        color=color,
        merge_iou=merge_iou,
        max_boxes=max_boxes,
        draft=draft,
    )
    queries = QuerySets(
        num_queries=num_queries, min_negatives=min_negatives, templates=templates, forbid=forbid
    )
    sources = _open(urls, preprocess)
    labels = [count_labels(source.index) for source in sources]
    draws = SceneDraws(sources, weights or None, preprocess, augment, queries, labels, seed, shuffle_block)
    dataset = SceneBatches(draws, batch_size, rank, world_size, start_position, tokenizer, fixed_shapes)
    return Loader(
        dataset,
        num_batches,
        samples=sum(s.index.samples for s in sources),
        batch_size=batch_size,
        start=start_position,
        workers=workers,
        max_bad_rate=max_bad_rate,
        prefetch=prefetch,
        start_method=start_method,
    )


def read_detection(
    urls: str,
    *,
    preprocess: ImagePreprocess,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    max_bad_rate: float = 1.0,
    prefetch: int = 2,
    start_method: str | None = None,
) -> Loader:
    """Every sample exactly once over all ranks, in index order: image, regions (B,1,4) and meta.

    meta is the sample's JSON with the frame made sure of: "width" and "height" are the upright picture's in
    pixels, "objects" are those with a usable box (crowds too), stated in that frame; meta["__index__"] is
    the sample's number over all of `urls`. `preprocess.placement(height, width)` leads to the tensor and
    back.

    Args:
        urls: shard pattern(s), several separated by "::"; local shards only.
        preprocess: size of the tensor, and how a picture is resized into it.
        batch_size: of this process.
        rank: this process, 0..world_size-1; it reads samples N*r//W .. N*(r+1)//W - 1.
        world_size: processes that share the samples.
        workers: processes that read ahead, for this rank.
        max_bad_rate: share of bad samples above which iteration stops with an error.
        prefetch: batches that each worker prepares ahead.
        start_method: fork, forkserver or spawn; None = the system's default.

    Raises:
        UserError: no shards, streams, or shards without JSON.
    """
    check_ranks(rank, world_size)
    check_batch(batch_size, 1)
    sources = _open(urls, preprocess)
    total = sum(s.index.samples for s in sources)
    first, stop = total * rank // world_size, total * (rank + 1) // world_size
    dataset = PictureBatches(sources, preprocess, batch_size, first, stop)
    return Loader(
        dataset,
        len(dataset),
        samples=total,
        batch_size=batch_size,
        start=first,
        workers=workers,
        max_bad_rate=max_bad_rate,
        prefetch=prefetch,
        start_method=start_method,
    )


def _open(urls: str, preprocess: ImagePreprocess) -> list[Source]:
    """The sources, which must be local shards with pictures and JSON."""
    if any(is_remote(url) for url in urls.split("::")):
        raise UserError(f"{urls}: pictures with boxes need local shards (mosaics read them in any order)")
    sources = open_sources(urls, Decoder(fields=("image", "meta"), preprocess=preprocess))
    for source in sources:
        if "json" not in source.index.fields:
            raise UserError(
                f"{source.name} has no boxes: they stand in KEY.json, these shards hold "
                f"{', '.join(sorted(source.index.fields))}; see docs/data.md"
            )
    return sources
