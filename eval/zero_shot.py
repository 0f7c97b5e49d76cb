"""Zero-shot classification of shards: names the pictures with words the model was never trained to sort.

    python eval/zero_shot.py --model runs/lit/model --data data/corpus/test_style/emoji --out zero_shot.json
    python eval/zero_shot.py … --data 'A-{000000..000004}.tar' --classes classes.txt --templates clip80
    torchrun --nproc_per_node 2 eval/zero_shot.py …     the processes share the pictures

Right answers stand in the samples' JSON (--label); --classes auto takes every label that occurs. Each class
is the mean of its prompts' embeddings. Source: Radford et al. 2021 (CLIP), section 3.1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from mmvit.cli.pair import Pair, embed, open_pair, texts_of
from mmvit.errors import UserError, one_line
from mmvit.evaluators.classes import read_classes, read_templates
from mmvit.evaluators.image_text import drawn, zero_shot
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
        classes: auto = the labels in the data, or a file: one class a line, or JSON {label: [names]}.
        templates: default, plain, photo, clip7, clip80, or a file with one template a line.
        label: field of the samples' JSON that holds the right label, or a list of right labels.
        batch_size: pictures at once on each process.
        device: auto, cpu, cuda, cuda:1, ….
        precision: of the towers; scores and ranks are always exact.
        workers: processes that decode ahead, per process.
        cache: folder that keeps embeddings for the next program; the report looks in RUN/embeddings.
        dataset: name in the result; empty = from the path.
        split: name in the result; empty = from the path.
        limit: measure this many pictures, drawn with a fixed seed, and with `--classes auto` only the labels
            among them; 0 = all.
    """

    model: str
    data: tuple[str, ...]
    out: str
    classes: str = "auto"
    templates: str = "default"
    label: str = "label"
    batch_size: int = 64
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 0
    cache: str = ""
    dataset: str = ""
    split: str = ""
    limit: int = 0


def evaluate(config: Config, pair: Pair, urls: str) -> dict:
    """The result object of one set of shards."""
    started = time.perf_counter()
    classes = None if config.classes == "auto" else read_classes(config.classes)
    templates = read_templates(config.templates)
    pictures = embed(
        pair,
        urls,
        fingerprint(bare(pair.model.image), pair.preprocess),
        batch_size=config.batch_size,
        precision=config.precision,
        workers=config.workers,
        captions=None,
        cache=config.cache,
    )
    if config.limit:
        pictures = drawn(pictures, config.limit)
    texts = texts_of(pair, config.precision, config.cache)
    try:
        found = zero_shot(
            pair.model,
            pair.tokenizer,
            pictures,
            classes=classes,
            templates=templates,
            label=config.label,
            encode=texts,
        )
        texts.save()
    except ValueError as error:
        raise UserError(str(error)) from None
    return result(
        model=config.model,
        config=pair.config,
        data=urls,
        task="zero_shot_classification",
        metrics=found.metrics,
        n=int(found.metrics["n"]),
        dataset=config.dataset,
        split=config.split,
        templates=list(found.templates),
        classes=config.classes,
        label=config.label,
        limit=config.limit,
        precision=config.precision,
        skipped=pictures.skipped,
        seconds=round(time.perf_counter() - started, 1),
    )


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
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
