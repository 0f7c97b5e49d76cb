"""The start of a run: processes, device, precision, threads, seeds, and the run folder.

Accelerate starts and joins the processes; the data loader is never given to it (it would drop samples that
the loader has split over ranks already).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from mmvit.errors import UserError
from mmvit.train.log import RunLog, flatten
from mmvit.train.memory import keep_memory
from mmvit.train.rng import seed_all
from mmvit.train.signals import StopRequest, follow_launcher

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PACKAGES = ("mmvit", "torch", "torchvision", "accelerate", "safetensors", "numpy", "webdataset", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how large, how exact, how often.

    Attributes:
        steps: optimizer steps of the whole run.
        batch_size: GLOBAL batch, all ranks together.
        micro_batch: rows of one forward per rank; smaller than the rank's batch = exact gradient cache. 0 =
            off.
        precision: auto takes bf16 where the processor or GPU has it, else fp32.
        seed: of weights, data order and augmentation.
        clip_norm: largest global gradient norm, 0 = no clipping.
        clip_spares: patterns of parameters that are neither cut by it nor counted in that norm.
        per_example_clip: largest norm of one example's gradient, before the mean over the batch; one example
            at a time. 0 = off.
        average: decay of the running mean of the weights, e.g. 0.999; 0 = off.
        save_every, eval_every: steps between checkpoints and evaluations; 0 = at the end only.
        log_every: steps between log lines.
        keep: how many checkpoints stay.
        world_size: fail when fewer processes than this have started; 0 = take what there is.
        threads: CPU threads of a process; 0 = the machine's cores shared by its processes.
        compile: compile the models' repeated blocks at their first use, which takes minutes.
        profile: record this many steps, after three, in OUT/profile and print what took longest; 0 = off.
        trackers: any of tensorboard, wandb, trackio; metrics.jsonl is always written.
    """

    steps: int = 1000
    batch_size: int = 256
    micro_batch: int = 0
    precision: Precision = "auto"
    seed: int = 0
    clip_norm: float = 1.0
    clip_spares: tuple[str, ...] = ()
    per_example_clip: float = 0.0
    average: float = 0.0
    save_every: int = 500
    eval_every: int = 500
    log_every: int = 10
    keep: int = 2
    world_size: int = 0
    threads: int = 0
    compile: bool = False
    profile: int = 0
    trackers: tuple[str, ...] = ()


@dataclass
class Run:
    """What `start` hands to the recipe.

    Attributes:
        accelerator: processes, device, precision.
        out: the run folder.
        log: its lines and metrics.
        stop: whether a signal asked for the end.
        train: the options.
        precision: what auto became.
    """

    accelerator: Accelerator
    out: Path
    log: RunLog
    stop: StopRequest
    train: TrainConfig
    precision: str

    def close(self) -> None:
        """Ends logs, trackers and signal handling."""
        self.log.close()
        self.stop.remove()


def start(config: Any, train: TrainConfig, out: str | Path, resume: str = "auto", name: str = "run") -> Run:
    """Starts or joins the run: afterwards every rank has its device, seeds, threads and logs.

    Args:
        config: the recipe's whole config, written to config.yaml.
        train: its training options.
        out: the run folder.
        resume: the recipe's --resume; "never" refuses a folder with checkpoints in it.
        name: of the project in trackers.

    Raises:
        UserError: fewer processes than asked for, a batch that does not divide, an unavailable precision.
    """
    precision = choose_precision(train.precision)
    mixed = {"fp32": "no"}.get(precision, precision)
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=not torch.cuda.is_available(),
        log_with=list(train.trackers) or None,
        project_dir=str(out),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    _check(train, accelerator.num_processes)
    out = Path(out)
    problem = _open_folder(out, config, resume) if accelerator.is_main_process else None
    problem = broadcast_object_list([problem])[0]
    if problem:
        raise UserError(problem)
    threads = set_threads(train.threads, accelerator.device)
    if accelerator.device.type == "cpu":
        keep_memory()
    seed_all(train.seed)
    log = RunLog(out, accelerator, train.steps).open()
    if train.trackers:
        accelerator.init_trackers(name, config=flatten(config))
    if accelerator.is_main_process:
        facts = environment(accelerator, precision, threads)
        try:
            (out / "env.json").write_text(json.dumps(facts, indent=2) + "\n")
        except OSError as error:
            log.close()
            raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
        log.line(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {precision}, "
            f"{threads} thread(s) each, global batch {train.batch_size}"
        )
    stop = StopRequest().install()
    follow_launcher()
    return Run(accelerator, out, log, stop, train, precision)


def choose_precision(wanted: Precision) -> str:
    """fp32, bf16 or fp16; "auto" is bf16 where it is fast in hardware.

    Raises:
        UserError: fp16 without a GPU (its range needs a loss scaler that CPUs lack), or an unknown word.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted == "auto" and launcher in ("bf16", "fp16"):
        return launcher
    if wanted == "auto":
        return "bf16" if has_fast_bf16() else "fp32"
    if wanted == "fp16" and not torch.cuda.is_available():
        raise UserError("--train.precision fp16 needs a GPU; on a CPU use bf16 or fp32")
    if wanted not in ("fp32", "bf16", "fp16"):
        raise UserError(f"--train.precision is auto, fp32, bf16 or fp16, got '{wanted}'")
    return wanted


def has_fast_bf16() -> bool:
    """Whether the GPU, or without one the processor (avx512_bf16, amx), multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("amx_tile"))


def set_threads(threads: int, device: torch.device) -> int:
    """Gives this process its share of the cores; returns torch's thread count."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if threads > 0:
        torch.set_num_threads(threads)
    elif device.type == "cpu" and (not asked or (local > 1 and asked == "1")):  # torchrun sets 1 by itself
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local))
    return torch.get_num_threads()


def environment(accelerator: Accelerator, precision: str, threads: int) -> dict[str, Any]:
    """Versions, machine and commit: what a reader needs to explain a number."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "world_size": accelerator.num_processes,
        "precision": precision,
        "threads": threads,
        "commit": _commit(),
        "packages": versions,
    }


def _check(train: TrainConfig, world: int) -> None:
    asked = os.environ.get("MASTER_ADDR") and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if world == 1 and asked and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        raise UserError(
            "accelerate launch was asked for several CPU processes but starts only one; use "
            "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node N recipes/NAME.py …, or "
            "--config_file recipes/accelerate/2cpu.yaml"
        )
    if world < train.world_size:
        raise UserError(
            f"--train.world-size {train.world_size} asked for, but {world} process(es) run; start them with "
            f"torchrun --standalone --nproc_per_node {train.world_size} (CPU: ACCELERATE_USE_CPU=true before "
            "it) or accelerate launch --config_file recipes/accelerate/…"
        )
    if train.batch_size < 1 or train.batch_size % world:
        raise UserError(
            f"--train.batch-size {train.batch_size} is the global batch: it must divide by {world} processes"
        )
    for option in ("steps", "log_every"):
        if getattr(train, option) < 1:
            name = option.replace("_", "-")
            raise UserError(f"--train.{name} must be at least 1, got {getattr(train, option)}")


def _open_folder(out: Path, config: Any, resume: str) -> str | None:
    """Makes the run folder and writes config.yaml; a sentence for the user when that cannot be."""
    import yaml

    try:
        if out.exists() and not out.is_dir():
            return f"--out {out} is a file"
        if resume == "never" and any(out.glob("checkpoints/step-*")):
            return f"--out {out} holds checkpoints of an earlier run: use --resume auto, or another --out"
        out.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config))), sort_keys=False)
        temporary = out / "config.yaml.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / "config.yaml")
    except OSError as error:
        with contextlib.suppress(OSError):
            (out / "config.yaml.tmp").unlink(missing_ok=True)
        return f"--out {out} cannot be written: {error.strerror}"
    return None


def _commit() -> str:
    try:
        folder = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
        return done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
