"""Runs on every rank: MIL-NCE against one process, then steps of its task at one global batch.

Some batches have sound or texts on some ranks only, one has no sound at all. Started by test_vatt_ranks.py;
the ranks are forked as step_ranks.py does it.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import step_ranks
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmvit.errors import UserError
from mmvit.losses import mil_nce_terms
from mmvit.models.config import VattConfig, VideoTowerConfig, WaveformTowerConfig, WordTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.vatt import Vatt
from mmvit.tasks.vatt import VattTask
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

GLOBAL, P, STEPS = 12, 3, 4
MASKS = ("none", "some", "last rows", "no row")
LOSSES = [
    (symmetric, mask, duplicates, block)
    for symmetric in (False, True)
    for mask in MASKS
    for duplicates, block in (("negative", None), ("mask", 2))
]
# (shared core, spaces, weights, micro-batch)
RUNS = {
    "shared fac": (True, "fac", {"va": 1, "vt": 1}, 0),
    "shared fac micro": (True, "fac", {"va": 1, "vt": 1}, 3),
    "shared joint at": (True, "joint", {"va": 1, "vt": 1, "at": 0.5}, 0),
    "three fac at": (False, "fac", {"va": 1, "vt": 2, "at": 0.5}, 0),
    "three va only": (False, "fac", {"va": 1}, 0),
}


class Heads(nn.Module):
    """Two vectors of rows (b,3) and candidates (b,P,3)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.video, self.texts = (nn.Linear(3, 4).double() for _ in range(2))

    def forward(self, x, y):
        return self.video(x), self.texts(y)


def draw(B, mask):
    """Inputs and masks of the global batch."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(B, 3, generator=g).double(), torch.randn(B, P, 3, generator=g).double()
    candidates, valid, present = (torch.rand(*shape, generator=g) > 0.35 for shape in ((B, P), (B,), (B,)))
    if mask == "none":
        return x, y, torch.ones_like(candidates), torch.ones_like(valid), torch.ones_like(present)
    if mask == "last rows":
        valid = torch.arange(B) >= B - 2
        candidates[-1, 0] = present[-1] = True
    if mask == "no row":
        present = ~valid
    return x, y, candidates, valid, present


def check(rank, world, b, case, alone):
    """Largest differences of (loss, gradients, shares of hits) from one process with the whole batch."""
    symmetric, mask, duplicates, block = case

    def terms_of(heads, own, group):
        x, y, candidates, valid, present = (t[own] for t in draw(world * b, mask))
        return mil_nce_terms(
            *heads(x, y),
            valid,
            candidates,
            symmetric=symmetric,
            video_valid=present,
            same=(torch.arange(world * b) // 2)[own],
            duplicates=duplicates,
            block=block,
            group=group,
        )

    heads, single = Heads(), Heads()
    wrapped = DistributedDataParallel(heads)  # must outlive the backward: its hooks average the gradients
    found = terms_of(wrapped, slice(rank * b, (rank + 1) * b), None)
    want = terms_of(single, slice(None), alone)
    found.loss.backward()
    want.loss.backward()
    numbers = []
    for t in (found, want):
        parts = [t.loss.detach(), (t.hits * t.share).sum(), (t.hits_back * t.share).sum()]
        numbers.append(torch.stack(parts))
    dist.all_reduce(numbers[0])
    worst = (numbers[0] / world - numbers[1]).abs().max().item()
    pairs = zip(heads.parameters(), single.parameters(), strict=True)
    return [worst, max((p.grad - q.grad).abs().max().item() for p, q in pairs), want.loss.item()]


def measure():
    """[case, largest difference of loss and hits, of the gradients, the loss], and of local normalization."""
    rank, world = dist.get_rank(), dist.get_world_size()
    alone = dist.new_subgroups(1)[0]
    rows = [[*case, *check(rank, world, 4, case, alone)] for case in LOSSES]
    x, y, candidates, valid, present = draw(world * 4, "last rows")
    own = slice(rank * 4, rank * 4 + 4)
    local = mil_nce_terms(
        x[own], y[own], valid[own], candidates[own], video_valid=present[own], normalization="local"
    ).loss
    losses = [torch.empty_like(local) for _ in range(world)]
    dist.all_gather(losses, local)
    count = int((valid & present & candidates.any(1))[own].sum())
    everywhere = mil_nce_terms(x, y, valid, candidates, video_valid=present, group=alone).loss
    return {"rows": rows, "local": torch.stack(losses).tolist(), "count": count, "all": everywhere.item()}


def task_of(shared, spaces, weights):
    """A small Vatt in float64."""
    torch.manual_seed(0)
    core = CoreConfig(width=16, depth=2, num_heads=2, mlp_dim=32)
    after = 16 if shared else None
    towers = {
        "core": core,
        "class_token": True,
        "class_position": False,
        "class_std": 0.25,
        "position": "axes",
        "position_norm": True,
        "pre_projection": shared,
        "post_projection": after,
    }
    config = VattConfig(
        video=VideoTowerConfig(clip_size=(4, 16, 16), patch_size=(2, 8, 8), **towers),
        audio=WaveformTowerConfig(samples=128, patch_size=16, **towers),
        text=WordTowerConfig(
            core=core, vocab_size=40, word_width=12, context_length=6, post_projection=after
        ),
        va_dim=12,
        vt_dim=8,
        shared=shared,
        spaces=spaces,
    )
    return VattTask(Vatt(config), weights, num_candidates=P).double()


def batch_of(step):
    """The global batch of a step: all rows have all; few have each; no sound, pictures only; all again."""
    g = torch.Generator().manual_seed(step)
    B, row = GLOBAL, torch.arange(GLOBAL)
    everyone = torch.ones(B, dtype=torch.bool)
    few = step % 4 == 1
    clips = row < 7 if few else everyone if step % 4 != 2 else row < 0
    audio = (row >= 10) | (row == 6) if few else everyone if step % 4 != 2 else row < 0
    texts = row < 5 if few else everyone
    ids = torch.randint(1, 40, (B, P, 6), generator=g)
    real = ((torch.rand(B, P, generator=g) > 0.4) | (torch.arange(P) == 0)) & texts[:, None]
    return Batch(
        keys=[f"{step}-{i}" for i in range(B)],
        video=torch.randint(0, 256, (B, 3, 4, 16, 16), generator=g, dtype=torch.uint8),
        video_mask=clips,
        image=torch.randint(0, 256, (B, 3, 16, 16), generator=g, dtype=torch.uint8),
        image_mask=row >= 6,
        audio=torch.randn(B, 128, generator=g) * audio[:, None],
        audio_mask=audio,
        candidates=ids,
        candidates_mask=torch.ones_like(ids, dtype=torch.bool),
        candidate_mask=real,
        group=torch.randint(0, 9, (B,), generator=g),
        position=step * B,
    )


def run(accelerator, out, name):
    """Rows and weights of a few steps; in the middle everything goes through a checkpoint."""
    shared, spaces, weights, micro = RUNS[name]
    task = task_of(shared, spaces, weights)
    rules = [*((pattern, None) for pattern in task.idle()), (r"model\.text\.tok_embed.*", None), (".*", 1.0)]
    frozen = freeze(task, rules)
    train = TrainConfig(steps=STEPS, batch_size=GLOBAL, micro_batch=micro, average=0.9)
    config = OptimConfig(name="adam", lr=1e-3, weight_decay=0.0, beta2=0.999, eps=1e-7)
    optimizer = build_optimizer(task, frozen, config)
    schedule = build_schedule(ScheduleConfig(name="quarter_cosine", warmup=1), STEPS)
    engine = prepare(
        Run(accelerator, Path(out), None, StopRequest(), train, "fp32"), task, frozen, optimizer, schedule
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = []
    for step in range(STEPS):
        own = batch_of(step).rows(rank * GLOBAL // world, (rank + 1) * GLOBAL // world)
        if not own.audio_mask.any():
            own.audio = own.audio_mask = None  # as where no sample of a rank's part has the field
        rows.append(train_step(engine, own))
        if step == 1 and world > 1:  # saving and resuming in the middle changes nothing
            checkpoints = Checkpoints(Path(out) / name.replace(" ", "-"), engine, Meters())
            checkpoints.save()
            accelerator.wait_for_everyone()
            with torch.no_grad():
                for p in engine.parameters:
                    p.zero_()
            assert checkpoints.resume("auto") is not None
    weights = {n: step_ranks.summary(full(p.detach())) for n, p in task.named_parameters()}
    weights |= {f"buffer {n}": step_ranks.summary(full(p)) for n, p in task.named_buffers() if p.numel()}
    weights |= {f"mean of {n}": step_ranks.summary(value) for n, value in engine.weights().items()}
    return {"rows": rows, "weights": weights}


def main(out):
    accelerator = Accelerator(cpu=True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # Accelerate shards on accelerators only; the same code path on gloo ranks is switched on by hand.
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    results = {"world": accelerator.num_processes, "fsdp2": accelerator.is_fsdp2, "runs": {}}
    if accelerator.num_processes > 1 and not accelerator.is_fsdp2:
        with warnings.catch_warnings(action="error"):
            results["losses"] = measure()
    for name in RUNS:
        try:
            results["runs"][name] = run(accelerator, Path(out).parent, name)
        except UserError as error:
            results["runs"][name] = {"error": str(error)}
    if accelerator.is_main_process:
        Path(out).write_text(json.dumps(results))
    accelerator.end_training()


if __name__ == "__main__":
    step_ranks.main = main  # what its forked ranks run
    step_ranks.importlib.import_module("torch._dynamo")
    for line in sys.stdin:
        print(json.dumps(step_ranks.fork(json.loads(line))), flush=True)
