"""Supervised classification of pictures, clips and sounds: fine-tuning of a tower, or a linear head on it.

Source: VATT, Akbari et al. 2021 (arXiv:2104.11178), section 4.2.1 and appendix A.2.5, A.3.

    python recipes/classify.py --preset tiny --data.train 'SHARDS' --model.tower FOLDER --out runs/tiny
    accelerate launch recipes/classify.py --preset corpus --data.modality video --data.label motion …
    accelerate launch recipes/classify.py --preset audio --data.label labels --model.tower FOLDER …
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 recipes/classify.py …

--model.tower is a folder with a tower, a pair (its first tower), a VATT model (its video or audio tower) or a
classifier, or a preset's name. The classes stand in a field of the samples' JSON; a list there makes the
task multi-label. Test with eval/classify.py, which averages over several views of each sample.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmvit.data.audio import AudioAugment
from mmvit.data.classes import ClassList, class_list
from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.loader import Loader, make_loader
from mmvit.data.video import ClipAugment
from mmvit.errors import UserError, one_line
from mmvit.evaluators.classes import read_classes
from mmvit.evaluators.classify import classification_metrics, classify_split
from mmvit.hub.pick_classifier import pick_classifier
from mmvit.hub.result import trained_for, write_result
from mmvit.models.classifier import Classifier
from mmvit.options import parse
from mmvit.tasks.classify import ClassifyTask
from mmvit.train import freeze as freezing
from mmvit.train.checkpoint import Checkpoints
from mmvit.train.manifest import newest_step
from mmvit.train.meters import Meters
from mmvit.train.optim import OptimConfig, build_optimizer, summary
from mmvit.train.prepare import prepare
from mmvit.train.profile import profiled
from mmvit.train.schedule import ScheduleConfig, build_schedule
from mmvit.train.setup import Run, TrainConfig, start
from mmvit.train.step import Engine, train_step


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data options.

    Attributes:
        train: shard pattern(s); several sources are separated by "::".
        val: shard pattern(s) for evaluation during training; empty = none.
        weights: how often each source of `train` is drawn; empty = all samples equally often.
        workers: processes that read and decode ahead, per rank; 0 = in the training process.
        modality: what is classified: image, video or audio.
        label: field of the JSON that names a sample's class, or lists its classes.
        classes: file with the classes, one a line, in the order of the logits; empty = those in `train`.
        size: side in pixels of pictures and clips; 0 = the tower's own.
        frames, fps: of clips; 0 = the tower's own.
        seconds, sample_rate: of sounds, in Hz; 0 = the tower's own.
        augment: random crops and colours of pictures and clips, noise on sounds.
        flip: probability of a left-right flip with augment; 0 where left and right mean something.
        crop: smallest share of a picture's area that a random crop keeps.
        color: probability that the colours of a clip change.
        views: windows of a sample, evenly spaced, at evaluation; their logits are averaged.
        crops: of each of these windows, left to right or top to bottom: 1 or 3.
        shuffle_block: samples that are shuffled together, after the shards.
        max_bad_rate: share of unusable samples, 0..1, above which the run stops.
    """

    train: str = ""
    val: str = ""
    weights: tuple[float, ...] = ()
    workers: int = 1
    modality: Literal["image", "video", "audio"] = "video"
    label: str = "label"
    classes: str = ""
    size: int = 0
    frames: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    sample_rate: int = 0
    augment: bool = True
    flip: float = 0.0
    crop: float = 0.3
    color: float = 1.0
    views: int = 1
    crops: int = 1
    shuffle_block: int = 65536
    max_bad_rate: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Model:
    """The classifier.

    Attributes:
        tower: folder of a saved model that has a tower of the modality, or a preset (mmvit.list_models).
        learn: all, or head: the tower is locked (a linear probe).
        options: NAME=VALUE changes of a preset, e.g. image_size=64.
        frozen: patterns of further parameters that do not learn, e.g. 'model.tower.patch_embed.*'.
        checkpointing: recompute blocks in the backward pass, to save memory.
    """

    tower: str = ""
    learn: Literal["all", "head"] = "all"
    options: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss.

    Attributes:
        kind: softmax (one class a sample), sigmoid (any number); auto = as the labels are.
        smoothing: share of a label that is spread over all classes, softmax only.
        dropout: on the features before the head.
        mixup: alpha of Beta(alpha, alpha) for mixtures of samples and of their labels; 0 = off.
        balance: what a sample's loss is divided by: none, own (how many labels it has), batch (how often its
            labels occur in the batch, in the mean over them).
    """

    kind: Literal["auto", "softmax", "sigmoid"] = "auto"
    smoothing: float = 0.0
    dropout: float = 0.0
    mixup: float = 0.0
    balance: Literal["none", "own", "batch"] = "none"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run needs; written to OUT/config.yaml.

    Attributes:
        preset: named defaults below all other options.
        out: the run folder.
        resume: auto = go on from the newest whole checkpoint in --out; never; or a checkpoint's folder.
    """

    preset: str = "tiny"
    out: str = "runs/classify"
    resume: str = "auto"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


# Of the paper's fine-tuning: plain momentum, the head free of the clipping that holds the tower.
_SGD = OptimConfig(name="sgd", lr=5e-3, weight_decay=0.0)
_LONG = TrainConfig(steps=100_000, batch_size=64, save_every=2000, eval_every=10_000, log_every=50)
PRESETS = {
    "tiny": Config(
        data=Data(workers=0),
        train=TrainConfig(steps=20, batch_size=8, save_every=10, eval_every=0, log_every=1),
    ),
    # The default corpus's clips and sounds: minutes on two cores.
    "corpus": Config(
        data=Data(crop=0.6),
        loss=Loss(smoothing=0.1),
        optim=OptimConfig(lr=5e-4, weight_decay=0.05),
        train=TrainConfig(steps=300, batch_size=32, save_every=100, eval_every=0, log_every=20),
    ),
    # The features as they are: only a linear head learns.
    "probe": Config(
        data=Data(augment=False),
        model=Model(learn="head"),
        optim=OptimConfig(name="adam", lr=5e-4, weight_decay=0.0, beta2=0.999, eps=1e-7),
        train=dataclasses.replace(_LONG, steps=50_000),
    ),
    # Kinetics and the like, 12 views at test time.
    "video": Config(
        data=Data(workers=8, size=320, frames=32, fps=12.5, crop=0.08, flip=0.5, views=4, crops=3),
        loss=Loss(smoothing=0.1, dropout=0.5),
        optim=_SGD,
        schedule=ScheduleConfig(warmup=2500),
        train=dataclasses.replace(_LONG, clip_norm=0.75, clip_spares=(r"model\.head\..*",)),
    ),
    # AudioSet: any number of labels.
    "audio": Config(
        data=Data(workers=8, modality="audio", seconds=6.4, sample_rate=24_000, views=4),
        loss=Loss(kind="sigmoid", mixup=5.0, balance="batch"),
        optim=dataclasses.replace(_SGD, lr=0.2),
        schedule=ScheduleConfig(warmup=5000),
        train=dataclasses.replace(_LONG, steps=50_000, batch_size=1024),
    ),
    # ImageNet on a video tower, 50 epochs.
    "image": Config(
        data=Data(workers=8, modality="image", size=384, crop=0.08, flip=0.5),
        loss=Loss(smoothing=0.1),
        optim=dataclasses.replace(_SGD, lr=8e-2),
        train=dataclasses.replace(_LONG, steps=125_000, batch_size=512),
    ),
}


@dataclass
class Parts:
    """The classifier, how to feed it, and what its logits mean."""

    model: Classifier
    preprocess: ImagePreprocess | ClipPreprocess
    classes: ClassList


def build_parts(config: Config) -> Parts:
    """The classifier out of --model.tower, for the classes of --data.train; equal on all ranks."""
    data, loss = config.data, config.loss
    listed = list(read_classes(data.classes)) if data.classes else ()
    classes = class_list(data.train, data.label, listed)
    if loss.kind != "auto":
        classes = dataclasses.replace(classes, multi=loss.kind == "sigmoid")
    model, preprocess, pretrained = pick_classifier(
        config.model.tower,
        data.modality,
        classes.names,
        bias_init=-math.log(len(classes.names)) if classes.multi else 0.0,
        options=config.model.options,
        **{name: getattr(data, name) for name in ("size", "frames", "fps", "seconds", "sample_rate")},
    )
    if config.model.learn == "head" and not pretrained:
        raise UserError(f"--model.learn head needs a trained tower; {config.model.tower} starts from scratch")
    model.set_checkpointing(config.model.checkpointing)
    return Parts(model, preprocess, classes)


def build_task(config: Config, parts: Parts) -> ClassifyTask:
    """The classifier with its loss."""
    loss = config.loss
    try:
        task = ClassifyTask(
            parts.model,
            parts.classes.targets,
            config.data.modality,
            "sigmoid" if parts.classes.multi else "softmax",
            loss.smoothing,
            loss.dropout,
            loss.mixup,
            loss.balance,
            config.train.seed,
        )
    except ValueError as error:
        raise UserError(f"--loss: {error}") from None
    if config.train.micro_batch and not task.separable:
        raise UserError(
            f"--train.micro-batch {config.train.micro_batch} does not go with --loss.mixup or --loss.balance "
            "batch: they look at the whole batch"
        )
    return task


def open_loader(config: Config, parts: Parts, run: Run, engine: Engine) -> Loader:
    """This rank's batches, from the engine's position in the global stream to the run's end."""
    data = config.data
    views: dict[str, Any] = {
        "augment": ImageAugment(flip=data.flip, crop_scale=(data.crop, 1.0)),
        "clip_augment": ClipAugment(flip=data.flip, crop_scale=(data.crop, 1.0), color=data.color),
        "audio_augment": AudioAugment(),
    }
    return make_loader(
        data.train,
        weights=data.weights or None,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        workers=data.workers,
        start_position=engine.samples_seen,
        num_batches=max(0, config.train.steps - engine.step),
        fields=(data.modality, "meta"),
        shuffle_block=data.shuffle_block,
        max_bad_rate=data.max_bad_rate,
        preprocess=parts.preprocess if isinstance(parts.preprocess, ImagePreprocess) else None,
        clip=parts.preprocess if isinstance(parts.preprocess, ClipPreprocess) else None,
        **(views if data.augment else {}),
    )


def evaluate(config: Config, parts: Parts, run: Run, engine: Engine) -> dict[str, float]:
    """eval/… metrics on --data.val, the views of a sample averaged; all ranks share the work."""
    data = config.data
    if not data.val:
        return {}
    with engine.result():
        found = classify_split(
            parts.model,
            data.val,
            parts.preprocess,
            data.modality,
            parts.classes,
            views=data.views,
            crops=data.crops,
            precision=run.precision,
            workers=data.workers,
            rank=run.accelerator.process_index,
            world_size=run.accelerator.num_processes,
        )
    try:
        metrics = classification_metrics(found.scores, found.labels, parts.classes.names)
    except ValueError as error:
        raise UserError(f"--data.val {data.val}: {error}") from None
    wanted = ("acc1", "acc5", "chance_acc1", "mean_per_class_recall", "map", "chance_map", "auc", "d_prime")
    return {f"eval/{name}": metrics[name] for name in wanted if name in metrics}


def main(config: Config) -> None:
    """One run from options to OUT/model."""
    out, steps = Path(config.out), config.train.steps
    if config.resume == "auto" and newest_step(out) >= steps and trained_for(out / "model", steps):
        print(f"{out} is finished: {steps} steps, the model is in {out / 'model'}")
        return
    if not config.data.train:
        raise UserError("--data.train is missing: a shard pattern in quotes, or a folder of shards")
    if not config.model.tower:
        raise UserError("--model.tower is missing: the folder of a trained tower, or a preset's name")
    run = start(config, config.train, config.out, config.resume, name="classify")
    try:
        train(config, run)
    finally:
        run.close()


def train(config: Config, run: Run) -> None:
    """The run between its start and its end: classifier, freezing, optimizer, loop."""
    parts, meters, log = build_parts(config), Meters(), run.log
    log.line(f"{len(parts.classes.names)} classes, {'any number' if parts.classes.multi else 'one'} a sample")
    task = build_task(config, parts)
    locked: list[tuple[str, float | None]] = [(r"model\.tower\..*", None)]
    rules = [*(locked if config.model.learn == "head" else []), (".*", 1.0)]
    frozen = freezing.freeze_listed(task, config.model.frozen, rules)
    log.line(freezing.table(task, frozen, depth=3))
    optimizer = build_optimizer(task, frozen, config.optim)
    log.line(summary(optimizer))
    schedule = build_schedule(config.schedule, config.train.steps)
    engine = prepare(run, task, frozen, optimizer, schedule, task.chance(config.train.batch_size))
    sources = dict.fromkeys([*frozen.locked, *frozen.multipliers], config.model.tower)
    checkpoints = Checkpoints(run.out, engine, meters, config.train.keep, sources)
    if (found := checkpoints.resume(config.resume)) is not None:
        log.line(f"resumed from {found}: step {engine.step}, {engine.samples_seen} samples seen")
    log.rewind(engine.step)
    meters.pause()

    settings = config.train
    with open_loader(config, parts, run, engine) as loader:
        for batch in profiled(meters.timed(loader), run):
            meters.total(**batch.skipped)
            meters.add(train_step(engine, batch), settings.batch_size)
            log.progress(engine.step)
            last = engine.step == settings.steps
            if engine.step % settings.log_every == 0 or last:
                log.metrics(engine.step, engine.samples_seen, meters.read())
            if last or (settings.eval_every and engine.step % settings.eval_every == 0):
                if metrics := evaluate(config, parts, run, engine):
                    log.metrics(engine.step, engine.samples_seen, metrics)
                meters.pause()
            stopping = engine.health.stop_agreed and not last
            if last or stopping or (settings.save_every and engine.step % settings.save_every == 0):
                path = checkpoints.save()
                meters.pause()
            if stopping:
                log.line(f"stopped by {run.stop.name or 'a signal'}, saved {path}; the same command goes on")
                return
    finish(config, parts, run, engine)


def finish(config: Config, parts: Parts, run: Run, engine: Engine) -> None:
    """Writes OUT/model, what mmvit.hub.load and eval/classify.py read; its card names the classes."""
    weights = engine.weights()
    if run.accelerator.is_main_process:
        card = {
            "data": config.data.train.split("::"),
            "steps": config.train.steps,
            "batch_size": config.train.batch_size,
            "base_models": [Path(config.model.tower).name] if Path(config.model.tower).is_dir() else [],
            "modality": config.data.modality,
            "label": config.data.label,
            "multi": parts.classes.multi,
            "classes": list(parts.classes.names),
        }
        write_result(parts.model, weights, run.out / "model", preprocess=parts.preprocess, card=card)
        run.log.line(f"done: the model is in {run.out / 'model'}")
    run.accelerator.wait_for_everyone()


@one_line
def command() -> None:
    """The command line."""
    main(parse(Config, PRESETS, description=__doc__ or ""))


if __name__ == "__main__":
    command()
