"""Our ViT against timm's and transformers' of the same shape: inference, training step, memory of both.

Every side runs in a process of its own and is asked in turn: allocators and thread pools of one cannot help
or hinder the other. A step is forward, cross-entropy and backward, without the optimizer. Memory is the most
that tensors took at once during a call; on CPUs also the peak of the resident set during the first call minus
what was resident before it, which the C library's allocator has a say in.
"""

from __future__ import annotations

import ctypes
import json
import sys
import warnings
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.loss import peak, restart_peak
from benchmarks.pairs import SCRIPTS
from benchmarks.timing import Call, Options, Row, Served, in_turn, serve

CODE = "from benchmarks.vit import side; side()"
# name: (size, batch, picture side)
SHAPES = {"ViT-S/16": ("small", 16, 224), "ViT-B/16": ("base", 8, 224)}
SMALL = {"ViT-Ti/16": ("tiny", 2, 32)}
AIMS = {"timm": 1.0, "transformers": None}


def run(options: Options) -> Iterator[Row]:
    """Rows of inference and training step, time and memory, bfloat16 and float32, against both peers."""
    for name, (size, batch, pixels) in (SMALL if options.small else SHAPES).items():
        for half in (True, False):
            for train in (False, True):
                case = {"size": size, "batch": batch, "pixels": pixels, "half": half, "train": train}
                work = f"{name} at {pixels} px, batch {batch}, {'bf16' if half else 'fp32'}, "
                work += "forward + backward" if train else "inference"
                yield from against_all(work, case, options)


def against_all(work: str, case: dict[str, Any], options: Options) -> Iterator[Row]:
    """Rows of one shape: time, then memory, against each peer."""
    for peer, aim in AIMS.items():
        with serving(case, "ours", options) as ours, serving(case, peer, options) as theirs:
            yield in_turn(work, ours, theirs, options.rounds, unit="ms", peer_name=peer, aim=aim)
            memory = [("tensors of", "tensors", aim), ("resident set of", "resident", None)]
            for what, name, wanted in memory[: 1 if options.device == "cuda" else 2]:
                mine, other = ours.facts[name], theirs.facts[name]
                yield Row(
                    work=f"{what} {work}",
                    ours=mine,
                    peer=other,
                    unit="MiB",
                    ratio=other / mine if mine else None,
                    peer_name=peer,
                    aim=wanted,
                )


def serving(case: dict[str, Any], which: str, options: Options) -> Served:
    """A process that repeats one side's call."""
    told = case | {"which": which, "device": options.device, "threads": options.threads}
    return Served(CODE, told, environment={"PYTHONPATH": SCRIPTS})


def side() -> None:
    """Nothing; the fresh process: builds its model and answers `Served`."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    model = build(case["which"], case["size"], case["pixels"]).to(case["device"])
    call = call_of(model, case)
    serve(call, memory_of(call, case["device"]), case["device"])


def memory_of(call: Call, device: str) -> dict[str, float]:
    """MiB that a call takes: {"tensors"}, and "resident" on CPUs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return {"tensors": (torch.cuda.max_memory_allocated() - before) / 2**20}
    ctypes.CDLL(None).malloc_trim(0)
    before = restart_peak()
    call()
    resident = peak() - before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            call()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    taken = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return {"tensors": max(taken) / 2**20, "resident": resident / 2**20}


def build(which: str, size: str, pixels: int) -> nn.Module:
    """A ViT/16 with 1000 classes."""
    if which == "timm":
        import timm

        return timm.create_model(f"vit_{size}_patch16_224", img_size=pixels)
    from mmvit.models.presets.sizes import SIZES

    if which == "transformers":
        from transformers import ViTConfig, ViTForImageClassification

        width, depth, hidden, heads = SIZES[size]
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                intermediate_size=hidden,
                num_attention_heads=heads,
                image_size=pixels,
                num_labels=1000,
            )
        )
    from mmvit import create_model

    return create_model(f"vit_{size}_patch16_224", num_classes=1000, image_size=pixels)


def call_of(model: nn.Module, case: dict[str, Any]) -> Call:
    """Inference or a training step on one random batch."""
    x = torch.randn(case["batch"], 3, case["pixels"], case["pixels"], device=case["device"])
    y = torch.randint(1000, (case["batch"],), device=case["device"])

    def forward() -> torch.Tensor:
        with torch.autocast(case["device"], torch.bfloat16, enabled=case["half"]):
            out = model(x)
        return getattr(out, "logits", out).float()

    def infer() -> None:
        with torch.inference_mode():
            forward()

    def train() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(forward(), y).backward()

    model.train(case["train"])
    return train if case["train"] else infer
