"""Contrastive tuning of a tower of pictures, sounds or clips and a text tower: LiT, its relatives, CLIP.

Source: LiT, Zhai et al. 2022 (arXiv:2111.07991); CLIP, Radford et al. 2021; SigLIP, Zhai et al. 2023.

    python recipes/lit.py --preset tiny --data.train 'SHARDS' --model.tokenizer FOLDER --out runs/tiny
    accelerate launch recipes/lit.py --preset small --model.image FOLDER --data.train … --data.val … --out …
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 recipes/lit.py … --train.world-size 2
    accelerate launch --config_file recipes/accelerate/8gpu_ddp.yaml recipes/lit.py …

What the tower --model.image takes decides what is read of the samples: LiT with a locked AUDIO tower is
`--model.image data/towers/whisper_base --data.train data/corpus/train/speech`.
The two letters of --model.lock are that tower and the text's: L locked, U unlocked (both pretrained,
folders), u from scratch (a preset's name). Lu is LiT, LU starts from a pretrained text tower, uu is CLIP.
Reached by `scripts/quickstart.sh` (200 steps of 256, EfficientNet-Lite0 at 160 px; 1,648 classes in an unseen
art style, top-1): LU 26.3 %, Lu 21.2 %, uu 0.4 %, chance 0.06 %.
Shards whose index.json names cached embeddings (recipes/embed_shards.py) train from these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmvit.data.cache import Cache, read_cache, read_mean
from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.loader import DataConfig, Loader, make_loader
from mmvit.data.text import Tokenizer
from mmvit.errors import UserError, one_line
from mmvit.evaluators.image_text import embed_pictures, retrieval, zero_shot
from mmvit.hub.fingerprint import fingerprint
from mmvit.hub.pick import pick_text_tower, pick_tower
from mmvit.hub.result import trained_for, write_result
from mmvit.models.lit import DualEncoder
from mmvit.models.towers import bare, join
from mmvit.options import parse
from mmvit.tasks.contrastive import ContrastiveTask
from mmvit.tasks.lock import Lock
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
class Data(DataConfig):
    """The data options.

    Attributes:
        augment: random views of live pictures: none, or crop (area 0.9..1, random background, flip as below).
        flip: probability of a left-right flip with augment=crop.
        label: field of the JSON that names a validation sample's class for zero-shot evaluation.
    """

    augment: Literal["none", "crop"] = "none"
    flip: float = 0.0
    label: str = "label"


@dataclass(frozen=True, kw_only=True)
class Model:
    """The pair of towers.

    Attributes:
        image: the tower beside the text's: folder of a saved tower or pair (of pictures, sounds or clips), a
            peer's "library:folder", or a preset (mmvit.list_models).
        text: folder of a saved tower or pair, or a preset.
        lock: two letters, text last: L locked, U pretrained and learning, u from scratch.
        tokenizer: folder of a tokenizer, or "clip"; empty = the one saved with the text tower.
        embed_dim: width of the common space with a linear head on both towers; 0 = the first tower's width
            and no head on it, LiT's default.
        frozen: patterns of further parameters that do not learn, e.g. 'model.text.tok_embed.*'.
        image_center: features' mean that is subtracted: auto (the cache's), none, or an .npy file (D,).
        image_size: side in pixels to feed a pretrained tower; 0 = its own.
        seconds: length of the sounds or clips to feed it; 0 = its own.
        context_length: tokens of a caption; 0 = the tokenizer's.
        image_options, text_options: NAME=VALUE changes of a preset, e.g. image_size=64 depth=6.
        checkpointing: recompute blocks in the backward pass, to save memory.
    """

    image: str = "vit_tiny_patch16_224"
    text: str = "text_tiny"
    lock: str = "uu"
    tokenizer: str = ""
    embed_dim: int = 0
    frozen: tuple[str, ...] = ()
    image_center: str = "auto"
    image_size: int = 0
    seconds: float = 0.0
    context_length: int = 0
    image_options: tuple[str, ...] = ()
    text_options: tuple[str, ...] = ()
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss over the global batch.

    Attributes:
        kind: softmax (CLIP) or sigmoid (SigLIP).
        duplicates: samples that are the same (--data.group-by) are each other's negatives, masked or
            positives.
        scale, bias: initial factor of the cosines (not its logarithm), and the sigmoid's initial bias.
        scale_max: the factor's upper limit, 0 = none.
        block: rows of a tile of the logits, 0 = choose.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    duplicates: Literal["negative", "mask", "positive"] = "negative"
    scale: float = 10.0
    bias: float = -10.0
    scale_max: float = 100.0
    block: int = 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run needs; written to OUT/config.yaml.

    Attributes:
        preset: named defaults below all other options.
        out: the run folder.
        resume: auto = go on from the newest whole checkpoint in --out; never; or a checkpoint's folder.
    """

    preset: str = "tiny"
    out: str = "runs/lit"
    resume: str = "auto"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


PRESETS = {
    "tiny": Config(
        model=Model(
            image="vit_mu_patch16_224", image_options=("image_size=32", "patch_size=8"), text="text_mu"
        ),
        train=TrainConfig(steps=20, batch_size=16, save_every=10, eval_every=0, log_every=1),
        data=Data(workers=0),
    ),
    "small": Config(
        model=Model(text="text_small", lock="Lu"),
        loss=Loss(duplicates="positive"),
        train=TrainConfig(steps=1500, batch_size=512),
    ),
    "quickstart": Config(
        model=Model(embed_dim=512),
        loss=Loss(duplicates="positive"),
        train=TrainConfig(steps=240, batch_size=256, save_every=120, eval_every=80, log_every=10),
    ),
    "large": Config(
        model=Model(text="text_base", lock="Lu"),
        optim=OptimConfig(name="adafactor", weight_decay=0.0, beta2=0.999),
        schedule=ScheduleConfig(warmup=10_000),
        train=TrainConfig(steps=55_000, batch_size=16_384, save_every=1000, eval_every=5000, log_every=50),
        data=Data(workers=8),
    ),
}


@dataclass
class Parts:
    """The pair, how to feed it, and the cache of its locked side."""

    pair: DualEncoder
    preprocess: ImagePreprocess | ClipPreprocess
    tokenizer: Tokenizer
    cache: Cache | None
    val_cached: bool


def build_parts(config: Config) -> Parts:
    """The pair with its heads and centre, checked against lock letters and cache; equal on all ranks."""
    model, loss = config.model, config.loss
    lock, cache = Lock.parse(model.lock), read_cache(config.data.train)
    image, preprocess, image_known = pick_tower(
        model.image, model.image_size, model.seconds, model.image_options
    )
    text, tokenizer, text_known = pick_text_tower(
        model.text, model.tokenizer, model.context_length, model.text_options
    )
    lock.check(image_known, text_known)
    if cache is not None and lock.image != "L":
        raise UserError(f"--data.train holds cached embeddings: they need a locked first tower, not '{lock}'")
    held = read_cache(config.data.val) if config.data.val else None
    for option, found in (("--data.train", cache), ("--data.val", held)):
        if found is not None and found.fingerprint != fingerprint(bare(image), preprocess):
            raise UserError(
                f"{option} was embedded by another tower or preprocessing than --model.image {model.image}: "
                "embed it again with recipes/embed_shards.py"
            )
    center = cache.mean if model.image_center == "auto" and cache is not None else None
    if model.image_center not in ("auto", "none"):
        center = read_mean(model.image_center)
    pair = join(
        image,
        text,
        embed_dim=model.embed_dim or None,
        center=center,
        kind=loss.kind,
        scale=loss.scale,
        bias=loss.bias,
        scale_max=loss.scale_max,
    )
    pair.set_checkpointing(model.checkpointing)
    return Parts(pair, preprocess, tokenizer, cache, held is not None)


def open_loader(config: Config, parts: Parts, run: Run, engine: Engine) -> Loader:
    """This rank's batches, from the engine's position in the global stream to the run's end."""
    data = config.data
    live = parts.cache is None
    seen = parts.pair.config.modality if live else "image_embedding"
    clip = parts.preprocess if live and isinstance(parts.preprocess, ClipPreprocess) else None
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
        fields=(seen, "text"),
        preprocess=parts.preprocess if isinstance(parts.preprocess, ImagePreprocess) else None,
        augment=ImageAugment(flip=data.flip) if data.augment == "crop" and seen == "image" else None,
        clip=clip,
        tokenizer=parts.tokenizer,
        pad_to="longest" if parts.pair.text.ignores_padding else "context",
        caption=data.caption,
        first_caption_rate=data.first_caption_rate,
        languages=data.languages,
        group_by=data.group_by,
        embedding_dim=None if parts.cache is None else parts.cache.dim,
        shuffle_block=data.shuffle_block,
        max_bad_rate=data.max_bad_rate,
        read=data.read,
        samples=data.samples,
    )


def evaluate(config: Config, parts: Parts, run: Run, engine: Engine) -> dict[str, float]:
    """eval/… metrics of zero-shot classification and retrieval on --data.val; all ranks share the work."""
    if not config.data.val:
        return {}
    with engine.result():
        found = embed_pictures(
            parts.pair,
            config.data.val,
            preprocess=parts.preprocess,
            precision=run.precision,
            workers=config.data.workers,
            rank=run.accelerator.process_index,
            world_size=run.accelerator.num_processes,
            cached=parts.val_cached,
        )
        named = any(meta.get(config.data.label) for meta in found.meta)
        tools = (parts.pair, parts.tokenizer, found)
        metrics = retrieval(*tools, dedup=True, precision=run.precision).metrics
        if named:
            metrics |= zero_shot(*tools, label=config.data.label, precision=run.precision).metrics
    wanted = ["acc1", "acc5", "chance_acc1", "rsum", "text_retrieval_recall@1"]
    wanted.append(f"{parts.pair.config.modality}_retrieval_recall@1")
    return {f"eval/{name}": metrics[name] for name in wanted if name in metrics}


def main(config: Config) -> None:
    """One run from options to OUT/model."""
    out = Path(config.out)
    steps = config.train.steps
    if config.resume == "auto" and newest_step(out) >= steps and trained_for(out / "model", steps):
        print(f"{out} is finished: {steps} steps, the model is in {out / 'model'}")
        return
    if not config.data.train:
        raise UserError("--data.train is missing: a shard pattern in quotes, or a folder of shards")
    run = start(config, config.train, config.out, config.resume, name="lit")
    try:
        train(config, run)
    finally:
        run.close()


def train(config: Config, run: Run) -> None:
    """The run between its start and its end: towers, freezing, optimizer, loop."""
    parts, meters, log = build_parts(config), Meters(), run.log
    lock = Lock.parse(config.model.lock)
    task = ContrastiveTask(
        parts.pair, config.loss.kind, config.loss.duplicates, lock, config.loss.block or None
    )
    frozen = freezing.freeze_listed(task, config.model.frozen, lock.rules())
    log.line(freezing.table(task, frozen, depth=3))
    optimizer = build_optimizer(task, frozen, config.optim)
    log.line(summary(optimizer))
    schedule = build_schedule(config.schedule, config.train.steps)
    engine = prepare(run, task, frozen, optimizer, schedule, task.chance(config.train.batch_size))
    sources = {"model.image": config.model.image, "model.text": config.model.text}
    checkpoints = Checkpoints(run.out, engine, meters, config.train.keep, sources)
    if (found := checkpoints.resume(config.resume)) is not None:
        log.line(f"resumed from {found}: step {engine.step}, {engine.samples_seen} samples seen")
    log.rewind(engine.step)
    meters.pause()

    settings = config.train
    with open_loader(config, parts, run, engine) as loader:
        for batch in profiled(meters.timed(loader), run):
            meters.total(truncated=batch.truncated, **batch.skipped)
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
    """Writes OUT/model, what mmvit.load reads."""
    weights = engine.weights()
    if run.accelerator.is_main_process:
        facts = {
            "data": config.data.train.split("::"),
            "lock": config.model.lock,
            "steps": config.train.steps,
        }
        towers = [spec for spec in (config.model.image, config.model.text) if Path(spec).is_dir()]
        card = {**facts, "batch_size": config.train.batch_size, "base_models": [Path(t).name for t in towers]}
        write_result(
            parts.pair,
            weights,
            run.out / "model",
            preprocess=parts.preprocess,
            tokenizer=parts.tokenizer,
            card=card,
        )
        run.log.line(f"done: the model is in {run.out / 'model'}")
    run.accelerator.wait_for_everyone()


@one_line
def command() -> None:
    """The command line."""
    main(parse(Config, PRESETS, description=__doc__ or ""))


if __name__ == "__main__":
    command()
