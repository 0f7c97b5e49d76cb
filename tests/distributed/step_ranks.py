"""Runs on every rank: the loss checks, then steps of the real tasks at one global batch.

Started once by test_ranks.py. Reads lines {"world": ranks, "out": rank 0's file, "environment": {}} of stdin,
forks the ranks (starting each anew would cost more than what they do), and answers with their statuses.
"""

import importlib
import itertools
import json
import os
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path

import detection_ranks
import loss_ranks
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState

from mmvit.errors import UserError
from mmvit.models.presets import create_model
from mmvit.tasks.contrastive import ContrastiveTask
from mmvit.train.checkpoint import Checkpoints
from mmvit.train.freeze import freeze
from mmvit.train.meters import Meters
from mmvit.train.optim import OptimConfig, build_optimizer
from mmvit.train.prepare import prepare
from mmvit.train.schedule import ScheduleConfig, build_schedule
from mmvit.train.setup import Run, TrainConfig
from mmvit.train.sharded import full
from mmvit.train.signals import StopRequest
from mmvit.train.step import train_step
from mmvit.types import Batch

GLOBAL = 12
DETECTION = [("global", 0, 0), ("global", 2, 0), ("per_example", 0, 0), ("per_example", 0, 0.5)]


def global_batch(step, cached):
    g = torch.Generator().manual_seed(step)
    features = torch.randn(GLOBAL, 32, generator=g, dtype=torch.float64)
    pixels = torch.randint(0, 256, (GLOBAL, 3, 16, 16), generator=g, dtype=torch.uint8)
    return Batch(
        keys=[f"{step}-{i}" for i in range(GLOBAL)],
        image=None if cached else pixels,
        image_embedding=features if cached else None,
        text=torch.randint(0, 40, (GLOBAL, 6), generator=g),
        text_mask=torch.ones(GLOBAL, 6, dtype=torch.bool),
        group=torch.randint(0, 8, (GLOBAL,), generator=g),
    )


def parts(accelerator, out, task, steps, micro, rules=None, **options):
    """Arguments of `prepare`."""
    frozen = freeze(task, rules or task.lock.rules())
    train = TrainConfig(steps=steps, batch_size=GLOBAL, micro_batch=micro, average=0.9, **options)
    optimizer = build_optimizer(task, frozen, OptimConfig(lr=1e-3))
    schedule = build_schedule(ScheduleConfig(), steps)
    return Run(accelerator, Path(out), None, StopRequest(), train, "fp32"), task, frozen, optimizer, schedule


def run(accelerator, out, kind, lock, cached, micro, steps=10):
    torch.manual_seed(0)
    bias = {"logit_bias_init": -2.0} if kind == "sigmoid" else {}
    model = create_model(
        "lit_mu", image_size=16, patch_size=8, vocab_size=40, context_length=6, logit_scale_init=1.0, **bias
    ).double()
    task = ContrastiveTask(model, kind, "positive", lock)
    engine = prepare(*parts(accelerator, out, task, steps, micro))
    rank, world = accelerator.process_index, accelerator.num_processes
    own = slice(rank * GLOBAL // world, (rank + 1) * GLOBAL // world)
    losses, norms, hits = [], [], []
    for step in range(steps):
        batch = global_batch(step, cached)
        values = train_step(engine, batch.rows(own.start, own.stop))
        losses.append(values["loss"])
        norms.append(values["grad_norm"])
        hits.append(values["in_batch_top1"] + values["in_batch_top1_text"])
        if step == 4 and accelerator.num_processes > 1:  # saving and resuming in the middle changes nothing
            folder = Path(out) / f"{kind}-{lock}-{cached}-{micro}"
            checkpoints = Checkpoints(folder, engine, Meters())
            checkpoints.save()
            accelerator.wait_for_everyone()
            with torch.no_grad():
                for p in engine.parameters:
                    p.zero_()
            assert checkpoints.resume("auto") is not None
    with engine.result() as whole:
        batch = global_batch(99, cached).rows(0, 3)
        images = whole.model.encode_image(batch.image, batch.image_embedding).sum().item()
    weights = {n: summary(full(p.detach())) for n, p in task.named_parameters()}
    weights |= {f"mean of {n}": summary(value) for n, value in engine.weights().items()}
    return {
        "losses": losses,
        "norms": norms,
        "hits": hits,
        "weights": weights,
        "averaged": images,
        "samples": engine.samples_seen,
    }


def detect(accelerator, out, normalization, micro, clip):
    """Four steps of a detector; some batches have no box on the first ranks, some none at all."""
    task = detection_ranks.task_of(normalization)
    options = {"rules": ((".*", 1.0),), "per_example_clip": clip}
    engine = prepare(*parts(accelerator, out, task, 4, micro, **options))
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = []
    for step in range(4):
        batch = detection_ranks.batch_of(step, GLOBAL)
        own = batch.rows(rank * GLOBAL // world, (rank + 1) * GLOBAL // world)
        rows.append(train_step(engine, own))
    weights = {n: summary(full(p.detach())) for n, p in task.named_parameters()}
    return {"rows": rows, "weights": weights}


def summary(tensor):
    """Some entries and two sums that betray any difference."""
    values = tensor.flatten().double()
    return [*values[:10].tolist(), values.sum().item(), values.square().sum().item()]


def bad_batch(accelerator, out):
    """The error of a step in which one number of rank 1's batch is not finite."""
    model = create_model("lit_mu", image_size=16, patch_size=8, vocab_size=40, context_length=6)
    task = ContrastiveTask(model, lock="Lu")
    engine = prepare(*parts(accelerator, out, task, 1, 0))
    batch = global_batch(0, True).rows(6 * accelerator.process_index, 6 + 6 * accelerator.process_index)
    if accelerator.process_index == 1:
        batch.image_embedding[2, 3] = float("nan")
    try:
        train_step(engine, batch)
    except UserError as error:
        return [str(error), engine.step]
    return ["no error", engine.step]


def main(out):
    accelerator = Accelerator(cpu=True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # Accelerate shards on accelerators only; the same code path on gloo ranks is switched on by hand.
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    results = {"world": accelerator.num_processes, "fsdp2": accelerator.is_fsdp2}
    if accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        with warnings.catch_warnings(action="error"):
            results["losses"] = loss_ranks.measure()
            results["detection losses"] = detection_ranks.measure()
    modes = [("Lu", True), ("Lu", False), ("uu", False)]
    grid = list(itertools.product(("softmax", "sigmoid"), modes, (0, 2)))
    if accelerator.is_fsdp2:
        grid = [case for case in grid if case[1] != ("Lu", False)]
    for kind, (lock, cached), micro in grid:
        name = f"{kind} {lock} {'cached' if cached else 'live'} micro={micro}"
        results[name] = run(accelerator, Path(out).parent, kind, lock, cached, micro)
    results["detection"] = {
        f"{kind} micro={micro} clip={clip}": detect(accelerator, Path(out).parent, kind, micro, clip)
        for kind, micro, clip in DETECTION
        if not (clip and accelerator.is_fsdp2)
    }
    if accelerator.num_processes == 2 and not accelerator.is_fsdp2:
        results["bad"] = bad_batch(accelerator, Path(out).parent)
    if accelerator.is_main_process:
        Path(out).write_text(json.dumps(results))
    accelerator.end_training()


def be(job, rank, port):
    """Runs `main` as one rank; never returns."""
    status = 1
    signal.alarm(200)  # a rank that waits for ever dies of it
    try:
        os.environ |= job["environment"]
        if job["world"] > 1:
            facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["world"], "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in facts.items()}
            os.environ |= {"LOCAL_WORLD_SIZE": str(job["world"]), "MASTER_ADDR": "127.0.0.1"}
        main(job["out"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def fork(job):
    """Exit statuses of the ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(job["world"]):
        pid = os.fork()
        if pid == 0:
            be(job, rank, port)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    importlib.import_module("torch._dynamo")  # what the first optimizer would import in every rank
    for line in sys.stdin:
        print(json.dumps(fork(json.loads(line))), flush=True)
