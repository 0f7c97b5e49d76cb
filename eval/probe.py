"""Linear probe: what frozen features of pictures, clips or sounds know, by a linear classifier of them.

    python eval/probe.py --model runs/vatt/shared/model --data data/corpus/test_concept/clips --out probe.json
        --train data/corpus/train/clips --modality video --label motion
    python eval/probe.py --model runs/vatt/shared/model --data data/corpus/train/clips --out folds.json
        --modality video --label motion --folds 5 --group-by label        no object on both sides
    python eval/probe.py … --data esc50 --modality audio --folds fold     the folds that the JSON states

Without --train the samples of each --data are split into folds, each named by a probe of the others. The
strength of the classifier is chosen on a part of the training samples, never on those that are tested. A
sample is named once, from the mean over its views. Labels that are lists are several right answers each, and
mAP, AUC and d' are measured. --min-samples leaves out labels that too few samples have.
Source: CLIP (arXiv:2103.00020) appendix A.3; VATT (arXiv:2104.11178) A.3.2 for --head low_rank.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmvit.cli.media import Media, Reading, choose, embed_shards, media_of
from mmvit.cli.pair import open_saved
from mmvit.errors import UserError, one_line
from mmvit.evaluators.classification import by_class
from mmvit.evaluators.embed import Embedded
from mmvit.evaluators.folds import crossing, given_folds, k_folds
from mmvit.evaluators.media import FEATURES, having, name_of
from mmvit.evaluators.probe_split import Probed, cross_validate, hold_out
from mmvit.evaluators.results import result, write_results
from mmvit.evaluators.samples import distinct_labels, drawn_rows, group_names, labels_of, names_in, row_groups
from mmvit.evaluators.table import comparison_table
from mmvit.evaluators.zero_shot import label_numbers
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of a saved model: a tower, a pair, or one of video, audio and text.
        data: shards that are tested: folders or quoted patterns; each is measured on its own.
        out: result JSON: one object, or a list when there are several shards.
        train: shards that the probe is fitted to; empty = folds of each --data.
        folds: how many, or the field of the JSON that states them.
        group_by: what must not stand on both sides of a fold, nor where the strength is chosen: sample, text,
            or a field of the JSON such as label, source or a recording's name.
        modality: image, video or audio; empty = the first that model and data have.
        label: field of the samples' JSON that holds the right label, or a list of right labels.
        min_samples: labels that fewer of the samples to fit have are left out, with samples of no other.
        head: logistic regression, or VATT's head of low rank.
        views: windows of a clip or a sound.
        crops: of every window of a clip.
        agg: what is averaged over views: logits or probabilities.
        seed: of folds, and of what is random in the head.
        batch_size: samples at once on each process; of clips and sounds a quarter of it.
        device: auto, cpu, cuda, cuda:1, ….
        precision: of the towers; the probe is float64.
        workers: processes that decode ahead, per process.
        cache: folder that keeps features for the next program.
        dataset: name in the result; empty = from the path.
        split: name in the result; empty = from the path.
    """

    model: str
    data: tuple[str, ...]
    out: str
    train: str = ""
    folds: str = "5"
    group_by: str = "sample"
    modality: Literal["", "image", "video", "audio"] = ""
    label: str = "label"
    min_samples: int = 1
    head: Literal["logistic", "low_rank"] = "logistic"
    views: int = 1
    crops: int = 1
    agg: Literal["logits", "probs"] = "logits"
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 0
    cache: str = ""
    dataset: str = ""
    split: str = ""


@dataclass
class Labelled:
    """Samples that have the modality and a label, and their features (N,V,D)."""

    samples: Embedded
    modality: str
    features: Tensor
    labels: list[str | list[str] | None]

    def numbers(self, classes: list[str]) -> Tensor:
        """(N,) int64 or (N,C) bool."""
        return label_numbers(self.labels, classes)


def read(config: Config, media: Media, urls: str) -> Labelled:
    """The samples of shards, each with its features; those without a label are left out."""
    modality = choose(media, urls, config.modality)
    reading = Reading(
        (modality,),
        views=config.views,
        crops=config.crops if modality == "video" else 1,
        features=True,
        captions="first" if config.group_by == "text" else None,
    )
    samples = embed_shards(
        media,
        urls,
        reading,
        batch_size=max(1, config.batch_size // 4),
        workers=config.workers,
        cache=config.cache,
    )
    labels = labels_of(samples, config.label)
    there = having(samples, modality) & torch.tensor([bool(label) for label in labels])
    rows = there.nonzero()[:, 0].tolist()
    if not rows:
        raise UserError(f"{urls}: no sample has both {modality} and {config.label!r}")
    samples = drawn_rows(samples, rows)
    features = samples.embeddings[name_of(modality, FEATURES)]
    return Labelled(samples, modality, features, [labels[i] for i in rows])


def rare_labels(fitted: Labelled, least: int) -> set[str]:
    """Labels that fewer than `least` samples have."""
    names = Counter(name for label in fitted.labels for name in set(names_in(label)))
    return {name for name, count in names.items() if count < least}


def without(found: Labelled, rare: set[str]) -> Labelled:
    """`found` less the labels in `rare` and the samples that have no other."""

    def kept(label: str | list[str] | None) -> str | list[str] | None:
        if isinstance(label, list):
            return [name for name in label if name not in rare]
        return label if label not in rare else None

    labels = [kept(label) for label in found.labels]
    rows = [i for i, label in enumerate(labels) if label]
    samples = drawn_rows(found.samples, rows)
    return Labelled(samples, found.modality, found.features[rows], [labels[i] for i in rows])


def evaluate(config: Config, media: Media, urls: str, train: Labelled | None) -> dict[str, Any]:
    """The result object of one set of shards."""
    started = time.perf_counter()
    test = read(config, media, urls)
    rare = rare_labels(train or test, config.min_samples)
    if rare:
        test, train = without(test, rare), without(train, rare) if train else None
        if not test.labels:
            raise UserError(
                f"{urls}: no sample has a {config.label!r} that {config.min_samples} have (--min-samples)"
            )
    classes = sorted(distinct_labels((train or test).labels))
    try:
        facts: dict[str, Any] = {}
        if train is None:
            probed, facts = _folds(config, test, classes)
        else:
            if unknown := sorted(distinct_labels(test.labels) - set(classes)):
                raise UserError(
                    f"{urls}: {len(unknown)} labels do not occur in --train, the first is {unknown[0]!r}: "
                    "a probe cannot name them; use --folds"
                )
            probed = hold_out(
                train.features,
                train.numbers(classes),
                test.features,
                test.numbers(classes),
                len(classes),
                groups=row_groups(train.samples, config.group_by).tolist(),
                head=config.head,
                agg=config.agg,
                seed=config.seed,
            )
    except ValueError as error:
        raise UserError(str(error)) from None
    numbers = test.numbers(classes)
    one_label = numbers.ndim == 1
    return result(
        model=config.model,
        config=media.config,
        data=urls,
        task="linear_probe",
        metrics=probed.metrics,
        n=len(test.samples),
        dataset=config.dataset,
        split=config.split,
        modality=test.modality,
        label=config.label,
        protocol={
            "train": config.train or None,
            "group_by": config.group_by,
            "min_samples": config.min_samples,
            "labels_left_out": len(rare),
            "head": config.head,
            "strengths": probed.strengths,
            "views": config.views,
            "crops": config.crops,
            "agg": config.agg,
            "seed": config.seed,
            **facts,
        },
        per_class=by_class(probed.scores, numbers, classes) if one_label else {},
        precision=config.precision,
        skipped=test.samples.skipped,
        seconds=round(time.perf_counter() - started, 1),
    )


def _folds(config: Config, test: Labelled, classes: list[str]) -> tuple[Probed, dict[str, Any]]:
    """(what was found by folds, facts about them)."""
    groups = row_groups(test.samples, config.group_by).tolist()
    if config.folds.isdigit():
        # By name, so that the folds depend on no order of files.
        fold = k_folds(group_names(test.samples, config.group_by), int(config.folds), config.seed)
    else:
        fold = given_folds([meta.get(config.folds) for meta in test.samples.meta])
    probed = cross_validate(
        test.features,
        test.numbers(classes),
        len(classes),
        fold,
        groups=groups,
        head=config.head,
        agg=config.agg,
        seed=config.seed,
    )
    return probed, {"folds": config.folds, "groups": len(set(groups)), "groups_split": crossing(groups, fold)}


@one_line
def main() -> None:
    """Measures every --data, prints the table, writes --out."""
    config = parse(Config, description=__doc__ or "")
    if not config.data:
        raise UserError("--data names no shards")
    opened = open_saved(config.model, config.device, nn.Module, "a model that embeds")
    media = media_of(opened, config.model, config.precision)
    train = read(config, media, config.train) if config.train else None
    results = [evaluate(config, media, urls, train) for urls in config.data]
    if media.rank == 0:
        write_results(results, config.out)
        print(comparison_table(results))
        print(f"written: {config.out}")


if __name__ == "__main__":
    main()
