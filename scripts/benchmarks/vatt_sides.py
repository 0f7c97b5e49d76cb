"""What the processes of benchmarks/vatt.py run, and what it counts.

Shape letters: B clips, P = 5 texts of a clip, L words, T frames, H/W pixels, S samples of sound, N tokens.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Call, serve
from benchmarks.vatt import Case
from benchmarks.vit import memory_of
from mmvit import create_model
from mmvit.models.config import VattConfig, VideoTowerConfig, WaveformTowerConfig, WordTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.presets.vatt import vatt
from mmvit.models.vatt import TOWERS, Vatt
from mmvit.types import Batch

TEXTS = 5
STEPS = 10_000  # so many that none ends
FROZEN = [r"model\.text\.tok_embed\..*"]


def main() -> None:
    """Nothing; builds the side that the argument names and serves its call."""
    case = Case(**json.loads(sys.argv[1]))
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    call, facts = training(case) if case.work == "step" else clips(case)
    serve(call, facts, case.device, warm_up=0 if case.work == "step" else 1)


def forward_cost(name: str, rate: float) -> dict[str, int]:
    """{"video", "audio", "text"}: floating-point operations of each tower of a preset on one input.

    Nothing is computed. Text is never dropped.

    Args:
        name: of the preset.
        rate: share of a clip's and of a sound's tokens that stay.
    """
    counts = {}
    with FakeTensorMode(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model: Any = create_model(name).eval().requires_grad_(False)
        batch = batch_of(model.config, 1)
        for tower in TOWERS:
            part = getattr(model, tower)
            with FlopCounterMode(display=False) as counter:
                if tower == "text":
                    assert batch.candidates is not None
                    part(batch.candidates[:, 0])
                else:
                    kept = max(1, int(rate * math.prod(part.grid)))
                    keep = torch.zeros(1, kept, dtype=torch.int64) if rate < 1 else None
                    part(getattr(batch, tower), keep)
            counts[tower] = int(counter.get_total_flops())
    return counts


def parameters(name: str, shared: bool) -> int:
    """Parameters of a preset with one core or with three of its size, the table of words left aside."""
    with FakeTensorMode():
        config: Any = create_model(name).config
        model = Vatt(dataclasses.replace(config, shared=shared))
    return sum(p.numel() for p in model.parameters()) - model.text.tok_embed.weight.numel()


def config_of(case: Case) -> VattConfig:
    """Towers on cores of one size; `case.shared` says how many cores, and nothing else changes.

    Inputs are smaller than the published ones: with all tokens, attention's dropout keeps more there than
    most machines have.
    """
    if case.size != "toy":
        config = vatt(case.size, case.size, "")
        assert isinstance(config.audio, WaveformTowerConfig)
        video = dataclasses.replace(config.video, clip_size=(32, 128, 128))
        audio = dataclasses.replace(config.audio, samples=76_800)
        return dataclasses.replace(config, video=video, audio=audio, shared=case.shared)
    core = CoreConfig(width=64, depth=2, num_heads=2, mlp_dim=128)
    same: dict[str, Any] = {"class_position": False, "position": "axes", "position_norm": True}
    same |= {"core": core, "pre_projection": True, "post_projection": 64}
    return VattConfig(
        video=VideoTowerConfig(clip_size=(8, 32, 32), patch_size=(2, 16, 16), **same),
        audio=WaveformTowerConfig(samples=1280, **same),
        text=WordTowerConfig(core=core, vocab_size=100, post_projection=64),
        shared=case.shared,
        va_dim=32,
        vt_dim=16,
    )


def batch_of(config: Any, clips: int) -> Batch:
    """B random clips with the sound beside them and P texts each; nothing is missing."""
    shape = (clips, TEXTS, config.text.context_length)
    return Batch(
        keys=[str(i) for i in range(clips)],
        video=torch.randint(256, (clips, 3, *config.video.clip_size), dtype=torch.uint8),
        audio=0.1 * torch.randn(clips, config.audio.samples),
        candidates=torch.randint(1, config.text.vocab_size, shape),
        candidates_mask=torch.ones(shape, dtype=torch.bool),
        candidate_mask=torch.ones(shape[:2], dtype=torch.bool),
    )


def training(case: Case) -> tuple[Call, dict[str, Any]]:
    """(a step as recipes/vatt.py takes it, facts: MiB of tensors in a step, and of weights and optimizer).

    Gradients count as the step's: memory is taken from before they are there.
    """
    from mmvit.tasks.vatt import VattTask
    from mmvit.train.freeze import freeze_listed
    from mmvit.train.optim import OptimConfig, build_optimizer
    from mmvit.train.prepare import prepare
    from mmvit.train.schedule import ScheduleConfig, build_schedule
    from mmvit.train.setup import TrainConfig, start
    from mmvit.train.step import train_step

    config = config_of(case)
    precision: Any = "bf16" if case.half else "fp32"
    settings = TrainConfig(steps=STEPS, batch_size=case.batch, precision=precision, threads=case.threads)
    task = VattTask(Vatt(config), keep_rate=case.keep, audio_keep_rate=case.keep)
    frozen = freeze_listed(task, FROZEN, [(".*", 1.0)])
    optim = OptimConfig(name="adam", lr=1e-4, weight_decay=0.0, beta2=0.999, eps=1e-7)
    run = start(optim, settings, tempfile.mkdtemp(), name="bench")
    optimizer = build_optimizer(task, frozen, optim)
    engine = prepare(run, task, frozen, optimizer, build_schedule(ScheduleConfig(), STEPS))
    batch = batch_of(config, case.batch)

    def step() -> None:
        train_step(engine, batch)

    def without_gradients() -> None:
        step()
        task.zero_grad(set_to_none=True)

    facts = memory_of(without_gradients, case.device)
    learned = [p for p in task.parameters() if p.requires_grad]
    moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return step, facts | {"state": sum(t.nbytes for t in [*learned, *moments]) / 2**20}


def clips(case: Case) -> tuple[Call, dict[str, Any]]:
    """(the video tower's tokens of one batch of clips, facts: some of them in float32)."""
    peer = build_peer(case).to(case.device)
    frames, pixels = peer.config.num_frames, peer.config.image_size
    x = torch.randn(case.batch, 3, frames, pixels, pixels).to(case.device)
    if case.side == "transformers":
        y = x.transpose(1, 2).contiguous()

        def tokens() -> Tensor:
            return peer(y).last_hidden_state

    else:
        from mmvit.hub import from_transformers

        tower: Any = from_transformers(peer).eval().to(case.device)
        del peer

        def tokens() -> Tensor:
            return tower.forward_tokens(x).values

    def call() -> None:
        with torch.inference_mode(), torch.autocast(case.device, torch.bfloat16, enabled=case.half):
            tokens()

    with torch.inference_mode():
        flat = tokens().float().flatten()
    return call, {"values": flat[:: max(1, len(flat) // 64)].tolist()}


def build_peer(case: Case) -> Any:
    """A VideoMAEModel of that size, no parameter at a value that hides mistakes."""
    from transformers import VideoMAEConfig, VideoMAEModel

    toy = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    toy |= {"image_size": 32, "num_frames": 4}
    size: dict[str, Any] = toy if case.size == "toy" else {}  # the defaults are those of VideoMAE-B
    peer: nn.Module = VideoMAEModel(
        VideoMAEConfig(use_mean_pooling=False, attn_implementation="sdpa", **size)
    ).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return peer
