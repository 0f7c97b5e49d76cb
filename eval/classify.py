"""A trained classifier on shards of pictures, clips or sounds: several views of a sample, one answer.

    python eval/classify.py --model runs/motions/model --data data/corpus/test_style/clips --out motions.json
    python eval/classify.py … --views 4 --crops 3        VATT's 12 views: 4 windows, 3 places in each
    torchrun --nproc_per_node 2 eval/classify.py …       the processes share the samples

Classes and the field with the right ones come from the model's card, as recipes/classify.py wrote it; a model
with several labels a sample gets mAP, AUC and d' too. Windows are evenly spaced over the whole sample, crops
lie left, centre, right or top, centre, bottom; the logits of all views are averaged before the softmax.
Source: VATT, Akbari et al. 2021 (arXiv:2104.11178), section 4.2.1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from mmvit.cli.pair import open_saved, progress
from mmvit.data.classes import ClassList
from mmvit.data.shards import ShardIndex
from mmvit.errors import UserError, one_line
from mmvit.evaluators.classification import by_class
from mmvit.evaluators.classify import classification_metrics, classify_split
from mmvit.evaluators.results import result, write_results
from mmvit.evaluators.table import comparison_table
from mmvit.hub.folder import Loaded
from mmvit.models.classifier import Classifier
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved classifier whose card names its classes.
        data: shards that are tested: folders or quoted patterns; each is measured on its own.
        out: result JSON: one object, or a list when there are several shards.
        label: field of the JSON with the right answer; empty = the one that was trained with.
        modality: what is classified; empty = what was trained with.
        views: windows of a clip or a sound.
        crops: of every window of a clip.
        agg: what is averaged over the views: logits or probabilities.
        batch_size: views at once on each process.
        device: auto, cpu, cuda, cuda:1, ….
        precision: of the tower.
        workers: processes that decode ahead, per process.
        dataset: name in the result; empty = from the path.
        split: name in the result; empty = from the path.
    """

    model: str
    data: tuple[str, ...]
    out: str
    label: str = ""
    modality: Literal["", "image", "video", "audio"] = ""
    views: int = 1
    crops: int = 1
    agg: Literal["logits", "probs"] = "logits"
    batch_size: int = 64
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 0
    dataset: str = ""
    split: str = ""


def card_of(loaded: Loaded, config: Config) -> tuple[Any, ClassList]:
    """(modality, classes) of a saved classifier.

    Raises:
        UserError: its card does not name them.
    """
    card = loaded.config.get("card") or {}
    modality = config.modality or card.get("modality") or loaded.config["kind"].removesuffix("_classifier")
    if not card.get("classes"):
        raise UserError(
            f"'{config.model}' does not name its classes: the card in its config.json has no 'classes'"
        )
    field = config.label or card.get("label", "label")
    return modality, ClassList(tuple(card["classes"]), field, bool(card.get("multi")))


def evaluate(config: Config, loaded: Loaded, rank: int, world_size: int, urls: str) -> dict[str, Any]:
    """The result object of one set of shards."""
    started = time.perf_counter()
    modality, classes = card_of(loaded, config)
    model: Any = loaded.model
    samples = sum(ShardIndex.open(pattern.strip()).samples for pattern in urls.split("::")) // world_size
    try:
        with progress(f"classifying {urls}", samples, quiet=rank > 0) as step:
            found = classify_split(
                model,
                urls,
                loaded.preprocess,
                modality,
                classes,
                views=config.views,
                crops=config.crops,
                agg=config.agg,
                precision=config.precision,
                at_once=config.batch_size,
                workers=config.workers,
                rank=rank,
                world_size=world_size,
                progress=step,
            )
        metrics = classification_metrics(found.scores, found.labels, classes.names)
    except ValueError as error:
        raise UserError(f"{urls}: {error}") from None
    return result(
        model=config.model,
        config=loaded.config,
        data=urls,
        task="classification",
        metrics=metrics,
        n=int(metrics["n"]),
        dataset=config.dataset,
        split=config.split,
        modality=modality,
        label=classes.field,
        protocol={"views": config.views, "crops": config.crops, "agg": config.agg},
        per_class=by_class(found.scores, found.labels, classes.names) if found.labels.ndim == 1 else {},
        precision=config.precision,
        skipped=found.found.skipped,
        seconds=round(time.perf_counter() - started, 1),
    )


@one_line
def main() -> None:
    """Measures every --data, prints the table, writes --out."""
    config = parse(Config, description=__doc__ or "")
    if not config.data:
        raise UserError("--data names no shards")
    loaded, (rank, world) = open_saved(config.model, config.device, Classifier, "a classifier")
    results = [evaluate(config, loaded, rank, world, urls) for urls in config.data]
    if rank == 0:
        write_results(results, config.out)
        print(comparison_table(results))
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
