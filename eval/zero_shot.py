"""Zero-shot classification of shards: names pictures, clips or sounds with words never trained to be sorted.

    python eval/zero_shot.py --model runs/lit/model --data data/corpus/test_style/emoji --out zero_shot.json
    python eval/zero_shot.py … --data 'A-{000000..000004}.tar' --classes classes.txt --templates clip80
    torchrun --nproc_per_node 2 eval/zero_shot.py …     the processes share the pictures
    python eval/zero_shot.py --model runs/vatt/shared/model --data data/corpus/val/clips --out motions.json
        --modality video --label motion --templates motion --interval label

Right answers stand in the samples' JSON (--label); --classes auto takes every label that occurs. Each class
is the mean of its prompts' embeddings. Source: Radford et al. 2021 (CLIP), section 3.1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmvit.cli.media import Media, Reading, choose, embed_shards, media_of
from mmvit.cli.pair import Pair, embed, is_pair, open_saved, pair_of, texts_of
from mmvit.errors import UserError, one_line
from mmvit.evaluators.classes import read_classes, read_templates
from mmvit.evaluators.classification import best_ranks, by_class, interval
from mmvit.evaluators.embed import Embedded
from mmvit.evaluators.image_text import Named, named, zero_shot
from mmvit.evaluators.media import having, name_of
from mmvit.evaluators.ranking import score_blocks
from mmvit.evaluators.results import result, write_results
from mmvit.evaluators.samples import drawn, drawn_rows, row_groups
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
        out: result JSON: one object, or a list when there are several shards.
        classes: auto = the labels in the data, or a file: one class a line, or JSON {label: [names]}.
        templates: default, plain, photo, motion, sound, clip7, clip80, or a file with one template a line.
        label: field of the samples' JSON that holds the right label, or a list of right labels.
        modality: what is named: image, video or audio; empty = the first that model and data have.
        views: windows of a clip or a sound, averaged before they are normalised.
        interval: what is drawn again, with replacement, for the 95 % interval of top-1: sample, text, or a
            field of the JSON, such as the object that several clips show; empty = no interval.
        batch_size: pictures at once on each process; of clips and sounds a quarter of it.
        device: auto, cpu, cuda, cuda:1, ….
        precision: of the towers; scores and ranks are always exact.
        workers: processes that decode ahead, per process.
        cache: folder that keeps embeddings for the next program; the report looks in RUN/embeddings.
        dataset: name in the result; empty = from the path.
        split: name in the result; empty = from the path.
        limit: measure this many samples, drawn with a fixed seed, and with `--classes auto` only the labels
            among them; 0 = all.
    """

    model: str
    data: tuple[str, ...]
    out: str
    classes: str = "auto"
    templates: str = "default"
    label: str = "label"
    modality: Literal["", "image", "video", "audio"] = ""
    views: int = 1
    interval: str = ""
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
        captions="first" if config.interval == "text" else None,
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
    return _result(config, pair.config, urls, pictures, "image", found, started)


def evaluate_media(config: Config, media: Media, urls: str) -> dict:
    """The result object of one set of shards, of a model that may see clips or hear sounds."""
    started = time.perf_counter()
    classes = None if config.classes == "auto" else read_classes(config.classes)
    if "text" not in media.ways:
        raise UserError(f"'{config.model}' reads no text: classes cannot be given to it as words")
    modality = choose(media, urls, config.modality)
    samples = embed_shards(
        media,
        urls,
        Reading((modality,), views=config.views, captions="first" if config.interval == "text" else None),
        batch_size=max(1, config.batch_size // 4),
        workers=config.workers,
        cache=config.cache,
    )
    samples = drawn_rows(samples, having(samples, modality).nonzero()[:, 0].tolist())
    samples = drawn(samples, config.limit) if config.limit else samples
    space = media.ways["text"].spaces[0]
    texts = media.texts(config.cache)
    try:
        found = named(
            samples,
            texts,
            name_of(modality, space),
            classes=classes,
            templates=read_templates(config.templates),
            label=config.label,
        )
        texts.save()
    except ValueError as error:
        raise UserError(str(error)) from None
    # Pictures share a table with those of image-text pairs.
    facts: dict[str, Any] = {} if modality == "image" else {"modality": modality}
    facts |= {"views": config.views, "space": space}
    if found.labels.ndim == 1:
        scores = _scores(samples.embeddings[name_of(modality, space)], found)
        facts["per_class"] = by_class(scores, found.labels, found.classes)
    return _result(config, media.config, urls, samples, name_of(modality, space), found, started, **facts)


def _result(
    config: Config,
    saved: dict[str, Any],
    urls: str,
    samples: Embedded,
    embeddings: str,
    found: Named,
    started: float,
    **facts: Any,
) -> dict[str, Any]:
    """The result object of samples that were named, with the interval where --interval asks for it."""
    if config.interval:
        facts["acc1_interval"] = _interval(config, samples, embeddings, found)
    return result(
        model=config.model,
        config=saved,
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
        skipped=samples.skipped,
        seconds=round(time.perf_counter() - started, 1),
        **facts,
    )


def _scores(embeddings: Tensor, found: Named) -> Tensor:
    """(N,C) cosines."""
    return torch.cat([scores for _, scores in score_blocks(embeddings, found.bank)])


def _interval(config: Config, samples: Embedded, embeddings: str, found: Named) -> dict[str, Any]:
    """Where top-1 lies when groups of samples are drawn again."""
    best, _, known = best_ranks(_scores(samples.embeddings[embeddings], found), found.labels)
    groups = row_groups(samples, config.interval)[known].tolist()
    low, high = interval((best[known] == 1).double(), groups)
    return {"level": 0.95, "low": low, "high": high, "by": config.interval, "groups": len(set(groups))}


@one_line
def main() -> None:
    """Measures every --data, prints the table, writes --out."""
    config = parse(Config, description=__doc__ or "")
    if not config.data:
        raise UserError("--data names no shards")
    opened = open_saved(config.model, config.device, nn.Module, "a model that embeds")
    if is_pair(opened) and config.modality in ("", "image"):
        pair = pair_of(opened, config.model)
        results = [evaluate(config, pair, urls) for urls in config.data]
    else:
        media = media_of(opened, config.model, config.precision)
        results = [evaluate_media(config, media, urls) for urls in config.data]
    if opened[1][0] == 0:
        write_results(results, config.out)
        print(comparison_table(results))
        for found in results:
            if spread := found.get("acc1_interval"):
                edges = f"{100 * spread['low']:.1f} to {100 * spread['high']:.1f}"
                groups = f"{spread['groups']} groups by {spread['by']}"
                print(f"{found['split']}: top-1 lies in {edges} (95 %, {groups})")
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
