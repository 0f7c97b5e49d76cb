"""Open-vocabulary detection on shards with boxes: average precision by the rules of COCO or of LVIS.

    python eval/detection.py --model runs/owl/model --data data/corpus/val/scenes --out detection.json
    python eval/detection.py … --seen data/corpus/train/scenes --one-shot 3 --picture scenes.png
    python eval/detection.py … --data 'lvis_val-{000000..000019}.tar' --protocol lvis
    torchrun --nproc_per_node 2 eval/detection.py …     the processes share the pictures

Every class is asked of every picture; the 300 best pairs of a token and a class count, without suppression
and without a threshold. Boxes are true as the samples' JSON states them, areas are those of its masks.
Source: OWL-ViT (arXiv:2205.06230), section 4; COCO's and LVIS's protocols as faster-coco-eval counts them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmvit.cli.detector import OpenDetector, open_detector
from mmvit.cli.pair import progress
from mmvit.cli.scenes import draw_sheet
from mmvit.data.shards import ShardIndex
from mmvit.errors import UserError, one_line, refusal
from mmvit.evaluators.classes import read_classes, read_templates
from mmvit.evaluators.detection import confused, evaluate
from mmvit.evaluators.detection_one_shot import one_shot, one_shot_metrics
from mmvit.evaluators.detection_split import Searched, detect_split, labels_of, stated_categories
from mmvit.evaluators.detection_truth import frequencies, label_counts
from mmvit.evaluators.image_text import read_facts
from mmvit.evaluators.prompts import Classes
from mmvit.evaluators.results import result, write_results
from mmvit.evaluators.table import comparison_table
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved detector.
        data: shards with boxes: folders or quoted patterns; each is measured on its own.
        out: result JSON: one object, or a list when there are several shards.
        classes: auto = the categories that the shards state (COCO, LVIS), else every label that has a box
            there; all = those of all --data and --seen, so that what was trained is asked too; or a file: one
            class a line, or JSON {label: [names]}.
        seen: shards the model was trained on: AP is given apart for labels that have a box there and for
            those that have none.
        templates: default, plain, photo, clip7, clip80, owl, or a file with one template a line.
        ensemble: what is averaged over a class's prompts: logit, prob (probabilities) or embed (embeddings).
        protocol: coco = what has no box is absent; lvis = only annotated classes are judged, 300 boxes a
            picture; lvis_fixed = 10,000 boxes a class instead.
        one_shot: also search with a box in place of a name, so many draws; 0 = not.
        top_k: boxes kept of each picture.
        batch_size: pictures at once on each process.
        device: auto, cpu, cuda, cuda:1, ….
        precision: of the towers; scores are always exact.
        workers: processes that decode ahead, per process.
        picture: PNG file with some pictures, found boxes and true ones; empty = none. For the first --data.
        picture_count: pictures on it.
        picture_threshold: lowest score of a box on it.
        dataset: name in the result; empty = from the path.
        split: name in the result; empty = from the path.
    """

    model: str
    data: tuple[str, ...]
    out: str
    classes: str = "auto"
    seen: str = ""
    templates: str = "clip7"
    ensemble: Literal["logit", "prob", "embed"] = "logit"
    protocol: Literal["coco", "lvis", "lvis_fixed"] = "coco"
    one_shot: int = 0
    top_k: int = 300
    batch_size: int = 16
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 0
    picture: str = ""
    picture_count: int = 10
    picture_threshold: float = 0.1
    dataset: str = ""
    split: str = ""


def search(config: Config, detector: OpenDetector, urls: str, classes: Classes | None) -> Searched:
    """What the detector finds in one set of shards."""
    with progress(f"searching {urls}", _share(detector, urls), quiet=detector.rank > 0) as step:
        return detect_split(
            detector.model,
            detector.tokenizer,
            urls,
            classes=classes,
            templates=read_templates(config.templates),
            ensemble=config.ensemble,
            **_reading(config, detector, step),
        )


def search_with_boxes(config: Config, detector: OpenDetector, urls: str) -> list[Searched]:
    """What boxes of other pictures find there, one entry a draw."""
    with progress(f"one-shot {urls}", 2 * _share(detector, urls), quiet=detector.rank > 0) as step:
        return one_shot(detector.model, urls, draws=config.one_shot, **_reading(config, detector, step))


def _reading(config: Config, detector: OpenDetector, step: Callable[[int], None]) -> dict[str, Any]:
    """How the pictures are read, computed and shared by the processes."""
    return {
        "preprocess": detector.preprocess,
        "top_k": config.top_k,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "workers": config.workers,
        "rank": detector.rank,
        "world_size": detector.world_size,
        "progress": step,
    }


def measure(
    config: Config, detector: OpenDetector, urls: str, classes: Classes | None, seen: Mapping[str, int] | None
) -> tuple[dict, Searched]:
    """The result object of one set of shards, and what was found."""
    started = time.perf_counter()
    searched = search(config, detector, urls, classes)
    shots = search_with_boxes(config, detector, urls) if config.one_shot else []
    if detector.rank:
        return {}, searched
    names, rules = searched.categories, config.protocol
    graded = grades(urls, names, seen) if rules != "coco" else None
    found = evaluate(
        searched.predictions, searched.truths, names, protocol=rules, frequency=graded, seen=seen
    )
    metrics = dict(found.metrics)
    if len(names) > 1:
        wrong = confused(searched.predictions, len(names))
        chance = evaluate(wrong, searched.truths, names, protocol=rules).metrics
        metrics |= {f"chance_{name}": chance[name] for name in ("AP", "AP50")}
    if shots:
        told = one_shot_metrics(shots, rules, seen)
        metrics |= {f"one_shot_{name}": value for name, value in told.items()}
    left_out = sum((Counter(truth.left_out) for truth in searched.truths), Counter())
    entry = result(
        model=config.model,
        config=detector.config,
        data=urls,
        task="object_detection",
        metrics=metrics,
        n=int(metrics["n"]),
        dataset=config.dataset,
        split=config.split,
        protocol=rules,
        classes=config.classes,
        classes_asked=len(names),
        seen=config.seen,
        templates=config.templates,
        ensemble=config.ensemble,
        top_k=config.top_k,
        precision=config.precision,
        skipped=searched.skipped,
        left_out=dict(left_out),
        per_class=found.classes,
        seconds=round(time.perf_counter() - started, 1),
    )
    return entry, searched


def grades(urls: str, names: Sequence[str], seen: Mapping[str, int] | None) -> list[str] | None:
    """r, c or f for each category: as the shards state it, else by its training pictures; None = unknown."""
    stated = stated_categories(urls)
    if all(stated.get(name) for name in names):
        return [stated[name] for name in names]
    return None if seen is None else frequencies(names, seen)


def save_sheet(config: Config, urls: str, searched: Searched) -> None:
    """Nothing; writes --picture."""
    sheet = draw_sheet(urls, searched, config.picture_count, config.picture_threshold)
    try:
        Path(config.picture).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(config.picture)
    except (OSError, ValueError) as error:  # ValueError: an extension that Pillow does not know
        raise UserError(f"cannot write --picture {config.picture}: {refusal(error)}") from None


def asked(config: Config) -> Classes | None:
    """What --classes names; None = each data set's own labels."""
    if config.classes == "auto":
        return None
    if config.classes != "all":
        return read_classes(config.classes)
    shards = [*config.data, *([config.seen] if config.seen else [])]
    return sorted({label for urls in shards for label in labels_of(urls)})


def _share(detector: OpenDetector, urls: str) -> int:
    """How many pictures this process searches."""
    total = sum(ShardIndex.open(pattern.strip()).samples for pattern in urls.split("::"))
    first, stop = (total * r // detector.world_size for r in (detector.rank, detector.rank + 1))
    return stop - first


@one_line
def main() -> None:
    """Measures every --data, prints the table, writes --out."""
    config = parse(Config, description=__doc__ or "")
    if not config.data:
        raise UserError("--data names no shards")
    if config.one_shot < 0 or config.top_k < 1 or config.picture_count < 1:
        raise UserError(
            f"--one-shot {config.one_shot} must be 0 or more, --top-k {config.top_k} and "
            f"--picture-count {config.picture_count} at least 1"
        )
    detector = open_detector(config.model, config.device)
    classes = asked(config)
    seen = label_counts(read_facts(config.seen, captions=None).meta) if config.seen else None
    results = []
    for number, urls in enumerate(config.data):
        try:
            entry, searched = measure(config, detector, urls, classes, seen)
        except ValueError as error:
            raise UserError(f"{urls}: {error}") from None
        results.append(entry)
        if config.picture and not number and not detector.rank:
            save_sheet(config, urls, searched)
    if detector.rank == 0:
        write_results(results, config.out)
        print(comparison_table(results))
        print("chance: the same boxes and scores under wrong names")
        print(f"written: {config.out}{f', {config.picture}' if config.picture else ''}")


if __name__ == "__main__":
    main()
