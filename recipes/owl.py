"""Open-vocabulary detection: an image-text pair becomes a detector and learns boxes (OWL-ViT).

Source: OWL-ViT, Minderer et al. 2022 (arXiv:2205.06230); OWLv2, Minderer et al. 2023 (arXiv:2306.09683).

    python recipes/owl.py --preset tiny --data.train 'SHARDS' --model.pair FOLDER --out runs/tiny
    accelerate launch recipes/owl.py --preset corpus --model.pair runs/lit/model --data.train … --out …
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 recipes/owl.py … --train.world-size 2
    accelerate launch --config_file recipes/accelerate/8gpu_ddp.yaml recipes/owl.py …

--model.pair is what recipes/lit.py wrote, a converted CLIP or SigLIP, or a detector (its heads are kept).
Shards carry boxes in their JSON (docs/data.md); scripts/make_shards.py makes them from COCO and LVIS files.
Reached by `scripts/quickstart.sh` (preset corpus, 400 steps, 8.5 minutes on 2 cores), AP / AP50 in percent:
labels of training drawn in an unseen style 2.8 / 6.9, labels never trained 1.0 / 2.4; from random weights
(--model.weights random) 0.00 / 0.01 and 0.01 / 0.04.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmvit.data.detection import make_detection_loader
from mmvit.data.image import ImagePreprocess
from mmvit.data.loader import Loader
from mmvit.data.text import Tokenizer
from mmvit.errors import UserError, one_line
from mmvit.evaluators.detection import evaluate as average_precision
from mmvit.evaluators.detection_split import detect_split, labels_of
from mmvit.hub.pick import pick_detector
from mmvit.hub.result import trained_for, write_result
from mmvit.models.owl import OwlDetector
from mmvit.options import parse
from mmvit.tasks.detection import DetectionTask
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
        train: shard pattern(s) with boxes; several sources are separated by "::".
        val: shard pattern(s) for average precision during training; empty = none.
        weights: how often each source of `train` is drawn; empty = all samples equally often.
        workers: processes that read and decode ahead, per rank; 0 = in the training process.
        shuffle_block: samples that are shuffled together, after the shards.
        max_bad_rate: share of unusable samples, 0..1, above which the run stops.
        num_queries: queries of a picture at most: its labels, verified negatives, pseudo-negatives.
        min_negatives: pseudo-negatives are drawn until a picture has this many negatives.
        max_boxes: boxes of a picture at most.
        mosaics: probability of a grid of 1x1, 2x2, 3x3 … pictures in one.
        flip: probability of a left-right flip of each picture.
        crop: smallest share of a picture's area that a random crop keeps; 1 = no crops.
        color: strength of random brightness, contrast and saturation, 0 = off.
        templates: prompts that training labels get one of: plain, clip80, owl (the bare name or clip80).
        forbid: file with names, one a line, that are never trained on (LVIS's rare classes).
    """

    train: str = ""
    val: str = ""
    weights: tuple[float, ...] = ()
    workers: int = 1
    shuffle_block: int = 65536
    max_bad_rate: float = 0.05
    num_queries: int = 100
    min_negatives: int = 50
    max_boxes: int = 100
    mosaics: tuple[float, ...] = (0.4, 0.3, 0.3)
    flip: float = 0.5
    crop: float = 0.3
    color: float = 0.0
    templates: str = "owl"
    forbid: str = ""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The detector.

    Attributes:
        pair: folder of an image-text pair, or of a detector that learns on with its size, padding and heads.
        weights: pair, or random: the same architecture from scratch, nothing frozen, for comparison.
        image_size: side of the square that pictures are padded to, in pixels; 0 = the pair's own.
        query_length: tokens of a query; at most the text tower's context.
        pad: value 0..255 around pictures that are not square; grey 128 as in OWL-ViT's training, 0 in OWLv2.
        class_init: class embeddings start at zero, or as the pair's image projection of each token.
        merge: what becomes of a class token: mul_ln multiplies every token with it, drop leaves it out, norm
            leaves it out and norms the tokens; auto = as the pair was pooled.
        box_bias: boxes start at the corner (as released) or the center of their patch.
        objectness: a further head that tells objects from background (OWLv2).
        hide_padding: tokens that see only padding are hidden from attention.
        frozen: patterns of parameters that do not learn, e.g. 'model.text.*'.
        drop_path: of the image and the text tower.
        checkpointing: recompute blocks in the backward pass, to save memory.
    """

    pair: str = ""
    weights: Literal["pair", "random"] = "pair"
    image_size: int = 0
    query_length: int = 16
    pad: int = 128
    class_init: Literal["zeros", "projection"] = "zeros"
    merge: Literal["auto", "mul_ln", "norm", "drop"] = "auto"
    box_bias: Literal["corner", "center"] = "corner"
    objectness: bool = False
    hide_padding: bool = False
    frozen: tuple[str, ...] = ()
    drop_path: tuple[float, float] = (0.0, 0.0)
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of the matched boxes and of all queries at all tokens.

    Attributes:
        normalization: global = by the numbers of the whole batch; per_example = by each picture's own, which
            belongs together with --train.per-example-clip 1.
        alpha, gamma: of the focal loss.
        weights: of classes, L1 and GIoU.
        objectness: weight of that head's loss, where the model has one.
    """

    normalization: Literal["global", "per_example"] = "global"
    alpha: float = 0.3
    gamma: float = 2.0
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    objectness: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run needs; written to OUT/config.yaml.

    Attributes:
        preset: named defaults below all other options.
        out: the run folder.
        resume: auto = go on from the newest whole checkpoint in --out; never; or a checkpoint's folder.
    """

    preset: str = "tiny"
    out: str = "runs/owl"
    resume: str = "auto"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


# The text tower learns 100 times slower: open vocabulary is lost where it forgets (the paper's Table 3).
_ADAM = OptimConfig(
    lr=2e-4, weight_decay=0.0, beta2=0.999, eps=1e-8, lr_multipliers=(r"model\.text\..*=0.01",)
)
_PUBLISHED = TrainConfig(steps=140_000, batch_size=256, per_example_clip=1.0, clip_norm=0.0, save_every=2000)
PRESETS = {
    "tiny": Config(
        data=Data(workers=0, num_queries=20, min_negatives=5, mosaics=(1.0,)),
        optim=_ADAM,
        train=TrainConfig(steps=20, batch_size=4, save_every=10, eval_every=0, log_every=1),
    ),
    # A pair over DINOv2 ViT-S/14 on the default corpus's scenes: minutes on two cores.
    "corpus": Config(
        data=Data(mosaics=(0.5, 0.5), crop=0.6, templates="plain"),
        model=Model(
            image_size=252,
            class_init="projection",
            box_bias="center",
            frozen=(
                r"model\.text\..*",
                r"model\.image\.(cls_token|pos_embed|patch_embed).*",
                r"model\.image\.core\.blocks\.[0-5]\..*",
            ),
        ),
        optim=dataclasses.replace(_ADAM, lr_multipliers=(r"model\.image\..*=0.3",)),
        train=TrainConfig(steps=400, batch_size=8, save_every=100, eval_every=0, log_every=20),
    ),
    # Table A3's CLIP B/32 and B/16; L/14: --optim.lr 2e-5 --train.steps 70000 --model.image-size 840.
    "clip": Config(
        data=Data(workers=8),
        model=Model(image_size=768, drop_path=(0.2, 0.1)),
        loss=Loss(normalization="per_example"),
        optim=dataclasses.replace(_ADAM, lr=5e-5, lr_multipliers=(r"model\.text\..*=0.04",)),
        schedule=ScheduleConfig(warmup=1000),
        train=_PUBLISHED,
    ),
    # The same table's LiT B/32 and B/16.
    "lit": Config(
        data=Data(workers=8),
        model=Model(image_size=768),
        loss=Loss(normalization="per_example"),
        optim=_ADAM,
        schedule=ScheduleConfig(warmup=1000),
        train=_PUBLISHED,
    ),
}


@dataclass
class Parts:
    """The detector, how to feed it, and the labels that --data.val is asked for."""

    model: OwlDetector
    preprocess: ImagePreprocess
    tokenizer: Tokenizer
    val_labels: list[str]


def build_parts(config: Config) -> Parts:
    """The detector out of --model.pair; equal on all ranks."""
    model, val = config.model, config.data.val
    val_labels = labels_of(val) if val else []  # first: shards without boxes are not found after hours
    fields = {name: getattr(model, name) for name in ("class_init", "drop_path", "box_bias", "objectness")}
    if model.merge != "auto":
        fields["merge"] = model.merge
    detector, preprocess, tokenizer = pick_detector(
        model.pair,
        image_size=model.image_size,
        pad=model.pad,
        query_length=model.query_length,
        hide_padding=model.hide_padding,
        **fields,
    )
    if model.weights == "random":
        detector = OwlDetector(detector.config)
    detector.set_checkpointing(model.checkpointing)
    return Parts(detector, preprocess, tokenizer, val_labels)


def open_loader(config: Config, parts: Parts, run: Run, engine: Engine) -> Loader:
    """This rank's batches, from the engine's position in the global stream to the run's end."""
    data = config.data
    return make_detection_loader(
        data.train,
        tokenizer=parts.tokenizer,
        preprocess=parts.preprocess,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        weights=data.weights or None,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        workers=data.workers,
        start_position=engine.samples_seen,
        num_batches=max(0, config.train.steps - engine.step),
        num_queries=data.num_queries,
        min_negatives=data.min_negatives,
        mosaics=[(side, rate) for side, rate in enumerate(data.mosaics, 1) if rate],
        flip=data.flip,
        crop=(data.crop, 1.0),
        color=data.color,
        templates=data.templates,
        forbid=_names(data.forbid),
        max_boxes=data.max_boxes,
        shuffle_block=data.shuffle_block,
        max_bad_rate=data.max_bad_rate,
    )


def evaluate(config: Config, parts: Parts, run: Run, engine: Engine) -> dict[str, float]:
    """eval/… average precision on --data.val, asked for every label in it; all ranks share the work."""
    if not config.data.val:
        return {}
    with engine.result():
        found = detect_split(
            parts.model,
            parts.tokenizer,
            config.data.val,
            preprocess=parts.preprocess,
            classes=parts.val_labels,
            templates="plain",
            precision=run.precision,
            workers=config.data.workers,
            rank=run.accelerator.process_index,
            world_size=run.accelerator.num_processes,
        )
    metrics = average_precision(found.predictions, found.truths, found.categories).metrics
    return {f"eval/{name}": metrics[name] for name in ("AP", "AP50", "AP75", "AR100") if name in metrics}


def main(config: Config) -> None:
    """One run from options to OUT/model."""
    out, steps = Path(config.out), config.train.steps
    if config.resume == "auto" and newest_step(out) >= steps and trained_for(out / "model", steps):
        print(f"{out} is finished: {steps} steps, the model is in {out / 'model'}")
        return
    if not config.data.train:
        raise UserError(
            "--data.train is missing: a shard pattern in quotes, or a folder of shards with boxes"
        )
    if not config.model.pair:
        raise UserError("--model.pair is missing: the folder of an image-text pair, or of a detector")
    run = start(config, config.train, config.out, config.resume, name="owl")
    try:
        train(config, run)
    finally:
        run.close()


def train(config: Config, run: Run) -> None:
    """The run between its start and its end: detector, freezing, optimizer, loop."""
    parts, meters, log, loss = build_parts(config), Meters(), run.log, config.loss
    task = DetectionTask(
        parts.model,
        loss.normalization,
        loss.alpha,
        loss.gamma,
        loss.weights,
        loss.objectness if parts.model.objectness_head is not None else 0.0,
    )
    listed = config.model.frozen if config.model.weights == "pair" else ()
    frozen = freezing.freeze_listed(task, listed, [(".*", 1.0)])
    log.line(freezing.table(task, frozen, depth=3))
    optimizer = build_optimizer(task, frozen, config.optim)
    log.line(summary(optimizer))
    schedule = build_schedule(config.schedule, config.train.steps)
    engine = prepare(run, task, frozen, optimizer, schedule)
    sources = dict.fromkeys([*frozen.locked, *frozen.multipliers], config.model.pair)
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
    """Writes OUT/model, what mmvit.load and mmvit.Detector read."""
    weights = engine.weights()
    if run.accelerator.is_main_process:
        card = {
            "data": config.data.train.split("::"),
            "steps": config.train.steps,
            "batch_size": config.train.batch_size,
            "base_models": [Path(config.model.pair).name] if config.model.weights == "pair" else [],
        }
        folder = run.out / "model"
        write_result(
            parts.model, weights, folder, preprocess=parts.preprocess, tokenizer=parts.tokenizer, card=card
        )
        run.log.line(f"done: the model is in {folder}")
    run.accelerator.wait_for_everyone()


def _names(file: str) -> list[str]:
    """The lines of a file of names, none for no file."""
    try:
        return [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line] if file else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data.forbid {file}: {error}") from None


@one_line
def command() -> None:
    """The command line."""
    main(parse(Config, PRESETS, description=__doc__ or ""))


if __name__ == "__main__":
    command()
