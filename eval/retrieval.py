"""Retrieval between pictures, clips, sounds and captions, both ways, over full rankings.

    python eval/retrieval.py --model runs/lit/model --data data/corpus/test_style/emoji --out retrieval.json
    python eval/retrieval.py … --captions all --group-by sample    several captions a picture, as for COCO
    python eval/retrieval.py … --index IVF64,Flat                  also: how close an approximate index comes
    python eval/retrieval.py --model runs/vatt/shared/model --data data/corpus/val/clips --out clips.json
        --pairs video-text,audio-video:label,audio-image:label

A model of more than pictures and texts is measured on every pair that it and the data have, or on --pairs.
A caption is right for a picture when --group-by says they belong together. By default that is the caption's
text: where several pictures share a caption (one concept drawn by several artists) each of them is right
for it, and R@K asks whether ANY right one is among the first K. --dedup-captions asks each distinct caption
once. Ties count against the model. Source: Karpathy & Fei-Fei 2015; metric names as in CLIP_benchmark.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from mmvit.cli.media import Media, Reading, embed_shards, media_of
from mmvit.cli.pair import Pair, embed, is_pair, open_saved, pair_of, texts_of
from mmvit.errors import UserError, one_line
from mmvit.evaluators.image_text import retrieval
from mmvit.evaluators.media import modalities_in, who_has
from mmvit.evaluators.pairs import (
    PairOf,
    PairRetrieved,
    pair_retrieval,
    parse_pairs,
    possible_pairs,
    space_of,
)
from mmvit.evaluators.results import result, write_results
from mmvit.evaluators.table import comparison_table
from mmvit.hub.fingerprint import fingerprint
from mmvit.models.towers import bare
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved model: an image-text pair, or one of video, audio and text.
        data: shards: folders or quoted patterns; each is measured on its own.
        out: result JSON: one object, or a list when there are several.
        pairs: of video, audio, image, text, such as video-text,audio-video; :FIELD behind a pair is its own
            --group-by. Empty = all that model and data have.
        space: va or vt, for models with several spaces; empty = the finest that both sides are in.
        captions: first = the main caption of each sample, all = every English one.
        group_by: text, sample, or a field of the samples' JSON such as label.
        dedup_captions: ask each distinct caption once.
        distinct: sides, such as audio, that keep one row of each group: where one sound serves many clips.
        still: middle = pictures are the middle frames of clips, picture = the shards' own where they have
            some.
        views: windows of a clip or a sound, averaged before they are normalised.
        index: flat = exact, or a FAISS factory string that is compared with it.
        batch_size: samples at once on each process; of clips and sounds a quarter of it.
        device: auto, cpu, cuda, cuda:1, ….
        precision: of the towers; scores and ranks are always exact.
        workers: processes that decode ahead, per process.
        cache: folder that keeps embeddings for the next program; the report looks in RUN/embeddings.
        dataset: name in the result; empty = from the path.
        split: name in the result; empty = from the path.
    """

    model: str
    data: tuple[str, ...]
    out: str
    pairs: str = ""
    space: str = ""
    captions: Literal["first", "all"] = "first"
    group_by: str = "text"
    dedup_captions: bool = False
    distinct: tuple[str, ...] = ()
    still: Literal["picture", "middle"] = "picture"
    views: int = 1
    index: str = "flat"
    batch_size: int = 64
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 0
    cache: str = ""
    dataset: str = ""
    split: str = ""


def evaluate(config: Config, pair: Pair, urls: str) -> dict:
    """The result object of one set of shards, for pictures and captions."""
    started = time.perf_counter()
    pictures = embed(
        pair,
        urls,
        fingerprint(bare(pair.model.image), pair.preprocess),
        batch_size=config.batch_size,
        precision=config.precision,
        workers=config.workers,
        captions=config.captions,
        cache=config.cache,
    )
    texts = texts_of(pair, config.precision, config.cache)
    try:
        found = retrieval(
            pair.model,
            pair.tokenizer,
            pictures,
            group_by=config.group_by,
            dedup=config.dedup_captions,
            index=config.index,
            encode=texts,
        )
        texts.save()
    except ValueError as error:
        raise UserError(str(error)) from None
    return result(
        model=config.model,
        config=pair.config,
        data=urls,
        task="zero_shot_retrieval",
        metrics=found.metrics,
        n=len(pictures),
        dataset=config.dataset,
        split=config.split,
        protocol={
            "captions": config.captions,
            "group_by": config.group_by,
            "dedup_captions": config.dedup_captions,
            "ties": "pessimistic",
            "texts": len(found.texts),
        },
        approximate=found.approximate,
        precision=config.precision,
        skipped=pictures.skipped,
        seconds=round(time.perf_counter() - started, 1),
    )


def evaluate_pairs(config: Config, media: Media, urls: str) -> list[dict]:
    """The result objects of one set of shards, one for each pair of modalities; embedded once for all."""
    started = time.perf_counter()
    try:
        pairs = _pairs(config, media, urls)
        chosen = {pair: space_of(pair, media.spaces, config.space) for pair in pairs}
        seen = {side for pair in pairs for side in (pair.a, pair.b)}
        samples = embed_shards(
            media,
            urls,
            Reading(
                tuple(sorted(seen - {"text"})),
                views=config.views,
                still=config.still == "middle",
                captions=config.captions if {"text"} & {*seen, *(pair.group_by for pair in pairs)} else None,
            ),
            batch_size=max(1, config.batch_size // 4),
            workers=config.workers,
            cache=config.cache,
        )
        if not config.pairs:  # a clip that might have held sound may turn out to be silent
            there = {pair: space for pair, space in chosen.items() if who_has(samples, *pair.needs).any()}
            chosen = there or chosen
        texts = media.texts(config.cache) if "text" in seen else None
        found = {
            pair: pair_retrieval(
                samples,
                pair,
                space,
                encode=texts,
                dedup=config.dedup_captions,
                distinct=config.distinct,
                index=config.index,
            )
            for pair, space in chosen.items()
        }
        if texts is not None:
            texts.save()
    except ValueError as error:
        raise UserError(str(error)) from None
    return [
        result(
            model=config.model,
            config=media.config,
            data=urls,
            task="zero_shot_retrieval",
            metrics=one.metrics,
            n=one.n,
            dataset=config.dataset,
            split=config.split,
            pair=pair.name,
            protocol=_protocol(config, pair, chosen[pair], one),
            approximate=one.approximate,
            precision=config.precision,
            skipped=samples.skipped,
            seconds=round(time.perf_counter() - started, 1),
        )
        for pair, one in found.items()
    ]


def _pairs(config: Config, media: Media, urls: str) -> list[PairOf]:
    """The pairs that --pairs names, or all that there are."""
    if config.pairs:
        return parse_pairs(config.pairs, config.group_by)
    data = {*modalities_in(urls), *(["image"] if config.still == "middle" else [])}
    pairs = possible_pairs(media.spaces, data, config.group_by)
    if not pairs:
        raise UserError(
            f"'{config.model}' embeds {', '.join(media.ways)} and {urls} holds {', '.join(sorted(data))}: "
            "no pair that both have"
        )
    return pairs


def _protocol(config: Config, pair: PairOf, space: str, found: PairRetrieved) -> dict[str, Any]:
    """How a pair was measured."""
    return {
        "captions": config.captions,
        "group_by": pair.group_by,
        "dedup_captions": config.dedup_captions,
        "distinct": list(config.distinct),
        "still": config.still,
        "views": config.views,
        "space": space,
        "ties": "pessimistic",
        "rows": dict(zip((pair.a, pair.b), found.rows, strict=True)),
        "shared": found.shared,
    }


def shared_lines(found: dict) -> str:
    """Which rows nobody could tell apart, and what to do about it; "" where there are none."""
    rows, shared = found["protocol"].get("rows", {}), found["protocol"].get("shared", {})
    return "\n".join(
        f"{found['split']} {found['pair']}: {count} of {rows[side]} rows of {side} equal one of another "
        f"group, and ties count against the model: group by what they share, --pairs {found['pair']}:FIELD"
        for side, count in shared.items()
        if count
    )


def index_lines(found: dict) -> str:
    """What the approximate index found of the exact answers, and at what cost; "" for an exact run."""
    lines = []
    for direction, a in found["approximate"].items():
        asked = ", ".join(f"{name}={value}" for name, value in a["parameters"].items())
        cost = f"{a['ms_per_query']:.3f} ms a query, {a['bytes_per_vector']:.0f} bytes a vector"
        share = f"finds {100 * a['overlap@10']:.1f} % of the exact top 10, R@10 {100 * a['recall@10']:.1f}"
        lines.append(f"{direction} with {a['factory']} ({asked}): {share}, {cost}")
    return "\n".join(lines)


@one_line
def main() -> None:
    """Measures every --data, prints the table, writes --out."""
    config = parse(Config, description=__doc__ or "")
    if not config.data:
        raise UserError("--data names no shards")
    opened = open_saved(config.model, config.device, nn.Module, "a model that embeds")
    asks_more = config.space or config.distinct or config.still != "picture"
    if is_pair(opened) and config.pairs in ("", "image-text") and not asks_more:
        pair = pair_of(opened, config.model)
        results = [evaluate(config, pair, urls) for urls in config.data]
    else:
        media = media_of(opened, config.model, config.precision)
        results = [found for urls in config.data for found in evaluate_pairs(config, media, urls)]
    if opened[1][0] == 0:
        write_results(results, config.out)
        print(comparison_table(results))
        for found in results:
            print(index_lines(found), end="\n" if found["approximate"] else "")
            if lines := shared_lines(found):
                print(lines)
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
