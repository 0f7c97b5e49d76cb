"""Video, audio and text in common spaces, from raw pixels and raw sound, on three cores or on one.

Source: VATT, Akbari et al. 2021 (arXiv:2104.11178). All figures: docs/vatt.md.

    python recipes/vatt.py --preset tiny --data.train 'SHARDS' --model.tokenizer FOLDER --out runs/tiny
    accelerate launch recipes/vatt.py --preset corpus --data.train 'A::B::C' --data.weights 4 1 1 … --out …
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 recipes/vatt.py … --train.world-size 2

Samples may lack modalities: clips with or without sound, sounds and pictures with or without captions stand
in one mixture, and a picture is a clip that stands still. --loss.va, vt and at weigh the three comparisons.
Reached by `scripts/vatt.sh` (--preset corpus, 1,200 steps of 96 samples, 48 minutes on one core) on objects
never seen or named in training, percent: R@10 there / back (chance 3.3), motions by text prompts (8.3).
                   one core      three cores   every token   no sound      no pictures
text, clip         26.9 / 22.7   27.3 / 26.3   37.0 / 32.0   18.5 / 18.7   -
text, sound        26.9 / 32.0   17.8 / 15.0   31.0 / 27.0   -             29.0 / 28.0
clip, sound        17.0 / 13.0   15.7 / 10.0   21.7 / 18.7   -             -
picture, sound     16.8 / 8.6    7.6 / 5.9     20.4 / 8.9    -             -
motion, eye / ear  63.7 / 42.0   68.3 / 33.0   78.0 / 48.7   45.7 / -      - / 42.3
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mmvit.data.audio import AudioAugment
from mmvit.data.clip import ClipPreprocess
from mmvit.data.loader import DataConfig, Loader, make_loader
from mmvit.data.text import Tokenizer
from mmvit.data.video import ClipAugment
from mmvit.errors import UserError, one_line
from mmvit.evaluators.vatt import recall_of_pairs
from mmvit.hub.pick import is_preset
from mmvit.hub.pick_vatt import pick_vatt
from mmvit.hub.result import trained_for, write_result
from mmvit.models.vatt import Vatt
from mmvit.options import parse
from mmvit.tasks.vatt import VattTask
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

ADAM = OptimConfig(name="adam", lr=1e-4, weight_decay=0.0, beta2=0.999, eps=1e-7)


@dataclass(frozen=True, kw_only=True)
class Data(DataConfig):
    """The data options.

    Attributes:
        use: what is read of the samples, where they have it.
        candidates: P, captions near a clip in time that may be its own (MIL-NCE).
        fps: frames per second that a clip is sampled at; 0 = the video tower's own.
        sample_rate: of sounds, in Hz; 0 = the audio tower's own.
        crop: smallest share of a frame's area that a training view shows, 1 = whole frames. Views keep their
            width over height within 1/2..2.
        flip: probability of a left-right flip; 0 where left and right mean something.
        color: probability that a clip's colours are changed.
        noise: deviation of noise on training sounds, as a fraction of their largest value.
        frequency_mask, time_mask: widest band and stretch of a training spectrogram that is blanked; 0 = off.
    """

    use: tuple[str, ...] = ("video", "audio", "image", "text")
    candidates: int = 5
    fps: float = 0.0
    sample_rate: int = 0
    crop: float = 0.08
    flip: float = 0.5
    color: float = 1.0
    noise: float = 0.01
    frequency_mask: int = 0
    time_mask: int = 0


@dataclass(frozen=True, kw_only=True)
class Model:
    """The three towers.

    Attributes:
        name: a preset (mmvit.list_models("vatt_*")), or the folder of a saved model to go on from.
        options: NAME=VALUE changes of the preset, e.g. core.depth=4 video.clip_size=(16,64,64).
        video, audio: folders of saved towers, or "transformers:FOLDER", in place of the preset's.
        tokenizer: folder of a tokenizer, or "clip"; empty = the one saved with the model.
        frozen: patterns of parameters that do not learn, e.g. 'model.text.tok_embed.*'.
        checkpointing: recompute blocks in the backward pass, to save memory.
    """

    name: str = "vatt_tiny_ma"
    options: tuple[str, ...] = ()
    video: str = ""
    audio: str = ""
    tokenizer: str = ""
    frozen: tuple[str, ...] = ()
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Contrast over the global batch, and what is dropped.

    Attributes:
        va, vt, at: weights of video-audio, video-text and audio-text; 0 = none.
        symmetric: sum of both directions in place of one logarithm over the union.
        duplicates: samples that are the same (--data.group-by) are each other's negatives, or masked.
        keep_rate: share of a clip's tokens that a step computes, above 0, to 1 (DropToken).
        audio_keep_rate: likewise of a sound's.
        shared_drop: one subset of tokens for the whole batch.
    """

    va: float = 1.0
    vt: float = 1.0
    at: float = 0.0
    symmetric: bool = False
    duplicates: Literal["negative", "mask"] = "negative"
    keep_rate: float = 0.5
    audio_keep_rate: float = 0.5
    shared_drop: bool = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run needs; written to OUT/config.yaml.

    Attributes:
        preset: named defaults below all other options.
        out: the run folder.
        resume: auto = go on from the newest whole checkpoint in --out; never; or a checkpoint's folder.
    """

    preset: str = "tiny"
    out: str = "runs/vatt"
    resume: str = "auto"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: OptimConfig = field(default_factory=lambda: ADAM)
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(name="quarter_cosine", warmup=0.02, floor=0.5)
    )
    train: TrainConfig = field(default_factory=TrainConfig)


PRESETS = {
    "tiny": Config(
        model=Model(
            options=(
                "core.width=64",
                "core.depth=2",
                "core.num_heads=2",
                "core.mlp_dim=128",
                "video.post_projection=64",
                "audio.post_projection=64",
                "text.post_projection=64",
                "clip_size=(4,32,32)",
                "video.patch_size=(2,16,16)",
                "samples=8000",
                "audio.patch_size=80",
            )
        ),
        data=Data(workers=0, fps=4.0, sample_rate=8000),
        optim=replace(ADAM, lr=1e-3),
        train=TrainConfig(steps=20, batch_size=16, save_every=10, eval_every=0, log_every=1),
    ),
    # Clips of 2 s at 8 frames a second. A tubelet spans the clip: what moves is seen by the first layer.
    "corpus": Config(
        model=Model(
            name="vatt_tiny_ma_mel",
            options=(
                "clip_size=(16,64,64)",
                "video.patch_size=(16,8,8)",
                "core.width=192",
                "core.depth=4",
                "core.num_heads=3",
                "core.mlp_dim=768",
                "video.post_projection=192",
                "audio.post_projection=192",
                "text.post_projection=192",
            ),
        ),
        data=Data(fps=8.0, candidates=1, crop=1.0, flip=0.0, color=0.0),
        loss=Loss(at=1.0, duplicates="mask"),
        optim=replace(ADAM, lr=1e-3),
        schedule=ScheduleConfig(name="quarter_cosine", warmup=0.03, floor=0.1),
        train=TrainConfig(steps=1200, batch_size=96, save_every=200, eval_every=0, log_every=20),
    ),
    "medium": Config(
        model=Model(name="vatt_ma_medium"),
        schedule=ScheduleConfig(name="quarter_cosine", warmup=10_000, floor=0.5),
        train=TrainConfig(steps=500_000, batch_size=2048, save_every=1000, eval_every=5000, log_every=50),
        data=Data(workers=8),
    ),
}


@dataclass
class Parts:
    """The model and how to feed it."""

    model: Vatt
    preprocess: ClipPreprocess
    tokenizer: Tokenizer


def build_parts(config: Config) -> Parts:
    """The model with its preprocessing and tokenizer; equal on all ranks."""
    model, data = config.model, config.data
    own = PRESETS[config.preset].model.options  # of the preset's own model: a saved one is taken as it is
    options = () if not is_preset(model.name) and model.options == own else model.options
    vatt, preprocess, tokenizer = pick_vatt(
        model.name,
        tokenizer=model.tokenizer,
        options=options,
        video=model.video,
        audio=model.audio,
        fps=data.fps,
        sample_rate=data.sample_rate,
    )
    vatt.set_checkpointing(model.checkpointing)
    return Parts(vatt, preprocess, tokenizer)


def build_task(config: Config, parts: Parts) -> VattTask:
    """The method with its options."""
    loss = config.loss
    try:
        return VattTask(
            parts.model,
            {"va": loss.va, "vt": loss.vt, "at": loss.at},
            keep_rate=loss.keep_rate,
            audio_keep_rate=loss.audio_keep_rate,
            shared_drop=loss.shared_drop,
            symmetric=loss.symmetric,
            duplicates=loss.duplicates,
            num_candidates=config.data.candidates,
            seed=config.train.seed,
        )
    except ValueError as error:
        raise UserError(f"--loss or --data.candidates: {error}") from None


def fields_of(config: Config) -> tuple[str, ...]:
    """What the loader reads: modalities without a term in the loss are not decoded."""
    loss, wanted = config.loss, set(config.data.use)
    if unknown := wanted - {"video", "audio", "image", "text"}:
        raise UserError(f"--data.use is of video, audio, image and text, got '{sorted(unknown)[0]}'")
    needed = {"video": loss.va + loss.vt, "image": loss.va + loss.vt, "audio": loss.va + loss.at}
    needed["text"] = loss.vt + loss.at
    names = {"text": "candidates"}
    return tuple(names.get(name, name) for name, weight in needed.items() if weight > 0 and name in wanted)


def open_loader(config: Config, parts: Parts, run: Run, engine: Engine) -> Loader:
    """This rank's batches, from the engine's position in the global stream to the run's end."""
    data, fields = config.data, fields_of(config)
    views = ClipAugment(crop_scale=(data.crop, 1.0), flip=data.flip, color=data.color)
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
        fields=fields,
        optional=fields,
        clip=parts.preprocess,
        clip_augment=views if data.crop < 1 or data.flip or data.color else None,
        audio_augment=AudioAugment(
            noise=data.noise, frequency_mask=data.frequency_mask, time_mask=data.time_mask
        ),
        num_candidates=data.candidates,
        tokenizer=parts.tokenizer,
        caption=data.caption,
        first_caption_rate=data.first_caption_rate,
        languages=data.languages,
        group_by=data.group_by,
        shuffle_block=data.shuffle_block,
        max_bad_rate=data.max_bad_rate,
        read=data.read,
        samples=data.samples,
    )


def evaluate(config: Config, parts: Parts, run: Run, engine: Engine) -> dict[str, float]:
    """eval/… recall and chance for every pair of modalities in --data.val; all ranks share the work."""
    if not config.data.val:
        return {}
    with engine.result():
        found = recall_of_pairs(
            parts.model,
            parts.tokenizer,
            config.data.val,
            preprocess=parts.preprocess,
            precision=run.precision,
            workers=config.data.workers,
            rank=run.accelerator.process_index,
            world_size=run.accelerator.num_processes,
        )
    return {f"eval/{name}": value for name, value in found.items()}


def main(config: Config) -> None:
    """One run from options to OUT/model."""
    out = Path(config.out)
    steps = config.train.steps
    if config.resume == "auto" and newest_step(out) >= steps and trained_for(out / "model", steps):
        print(f"{out} is finished: {steps} steps, the model is in {out / 'model'}")
        return
    if not config.data.train:
        raise UserError("--data.train is missing: a shard pattern in quotes, or a folder of shards")
    run = start(config, config.train, config.out, config.resume, name="vatt")
    try:
        train(config, run)
    finally:
        run.close()


def train(config: Config, run: Run) -> None:
    """The run between its start and its end: towers, freezing, optimizer, loop."""
    parts, meters, log = build_parts(config), Meters(), run.log
    task = build_task(config, parts)
    idle = [(pattern, None) for pattern in task.idle()]
    frozen = freezing.freeze_listed(task, config.model.frozen, [*idle, (".*", 1.0)])
    log.line(freezing.table(task, frozen, depth=3))
    optimizer = build_optimizer(task, frozen, config.optim)
    log.line(summary(optimizer))
    schedule = build_schedule(config.schedule, config.train.steps)
    engine = prepare(run, task, frozen, optimizer, schedule, task.chance(config.train.batch_size))
    sources = {"model.video": config.model.video, "model.audio": config.model.audio}
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
        towers = [spec for spec in (config.model.video, config.model.audio) if Path(spec).is_dir()]
        card = {
            "data": config.data.train.split("::"),
            "steps": config.train.steps,
            "batch_size": config.train.batch_size,
            "base_models": [Path(t).name for t in towers],
        }
        write_result(
            parts.model,
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
