"""Retrieval between pictures and captions, both ways, over full rankings.

    python eval/retrieval.py --model runs/lit/model --data data/corpus/test_style/emoji --out retrieval.json
    python eval/retrieval.py … --captions all --group-by sample    several captions a picture, as for COCO
    python eval/retrieval.py … --index IVF64,Flat                  also: how close an approximate index comes

A caption is right for a picture when --group-by says they belong together. By default that is the caption's
text: where several pictures share a caption (one concept drawn by several artists) each of them is right
for it, and R@K asks whether ANY right one is among the first K. --dedup-captions asks each distinct caption
once. Ties count against the model. Source: Karpathy & Fei-Fei 2015; metric names as in CLIP_benchmark.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from mmvit.cli.pair import Pair, embed, open_pair, texts_of
from mmvit.errors import UserError, one_line
from mmvit.evaluators.image_text import retrieval
from mmvit.evaluators.results import result, write_results
from mmvit.evaluators.table import comparison_table
from mmvit.hub.fingerprint import fingerprint
from mmvit.models.towers import bare
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved image-text pair.
        data: shards: folders or quoted patterns; each is measured on its own.
        out: result JSON: one object, or a list when there are several shards.
        captions: first = the main caption of each sample, all = every English one.
        group_by: text, sample, or a field of the samples' JSON such as label.
        dedup_captions: ask each distinct caption once.
        index: flat = exact, or a FAISS factory string that is compared with it.
        batch_size: pictures at once on each process.
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
    captions: Literal["first", "all"] = "first"
    group_by: str = "text"
    dedup_captions: bool = False
    index: str = "flat"
    batch_size: int = 64
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 0
    cache: str = ""
    dataset: str = ""
    split: str = ""


def evaluate(config: Config, pair: Pair, urls: str) -> dict:
    """The result object of one set of shards."""
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
    pair = open_pair(config.model, config.device)
    results = [evaluate(config, pair, urls) for urls in config.data]
    if pair.rank == 0:
        write_results(results, config.out)
        print(comparison_table(results))
        for found in results:
            print(index_lines(found), end="\n" if found["approximate"] else "")
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
