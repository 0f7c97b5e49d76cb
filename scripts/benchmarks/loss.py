"""The contrastive loss: peak memory at growing batches, and seconds, against open_clip's losses.

Forward and backward of (B,512) float32 embeddings that require gradients, normalised inside, on both sides.
Memory is measured in fresh processes, as the peak of the resident set minus what was resident just before:
logits, statistics, normalised copies and the gradients of the inputs count; inputs and libraries do not.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Options, Row, compare, fresh
from mmvit.losses import contrastive_loss

WIDTH = 512
SIZES = (2048, 4096, 8192, 16_384, 32_768)
SMALL = (256, 512)
PEERS = {"softmax": "open_clip ClipLoss", "sigmoid": "open_clip SigLipLoss"}
# Matrices of B x B float32 that the peers' losses may hold at once, for the check before their first run.
MATRICES = 6
MARGIN, SHARE = 1.1, 0.9  # over what the size before lets expect; of the memory that is free
CODE = "from benchmarks.loss import measured; measured()"

Step = Callable[[Tensor, Tensor], Tensor]


def run(options: Options) -> Iterator[Row]:
    """Rows of memory at every size, of the growth with B, of the largest batch alone, and of speed."""
    for kind in PEERS:
        yield from memory(kind, options)
    for kind in PEERS:
        yield speed(kind, options)


def memory(kind: str, options: Options) -> Iterator[Row]:
    """Rows of extra memory in MiB, then how it grows with B, then the largest batch's seconds."""
    found: dict[str, list[tuple[int, float]]] = {"ours": [], "peer": []}
    largest = (SMALL if options.small else SIZES)[-1]
    seconds = 0.0
    for size in SMALL if options.small else SIZES:
        ours = measure("ours", kind, size, options.threads)
        found["ours"].append((size, ours["mib"]))
        peer, note = None, f"{ours['seconds']:.3g} s"
        if (needed := expected(size, found["peer"])) > SHARE * available():
            note = f"not run: about {needed / 2**30:.0f} GiB needed, {available() / 2**30:.0f} GiB free"
        else:
            other = measure("peer", kind, size, options.threads)
            peer, note = other["mib"], f"{note} against {other['seconds']:.3g} s"
            found["peer"].append((size, peer))
        seconds = ours["seconds"]
        yield Row(
            work=f"{kind} loss, extra memory, B = {size:,}",
            ours=ours["mib"],
            peer=peer,
            unit="MiB",
            ratio=peer / ours["mib"] if peer else None,
            peer_name=PEERS[kind],
            aim=8.0 if size == largest and not options.small else None,
            note=note,
        )
    yield growth(kind, found)
    yield Row(
        work=f"{kind} loss alone, B = {largest:,}",
        ours=seconds,
        peer=None,
        unit="s",
        ratio=None,
        peer_name="none",
        note=f"CPU seconds, {found['ours'][-1][1]:,.0f} MiB extra where less than 1,024 were asked for",
    )


def expected(size: int, seen: list[tuple[int, float]]) -> float:
    """Bytes that the peer will need: as B^2 from the size before, or from `MATRICES` for the first."""
    if not seen:
        return size * size * 4 * MATRICES
    before, mib = seen[-1]
    return MARGIN * mib * 2**20 * (size / before) ** 2


def growth(kind: str, found: dict[str, list[tuple[int, float]]]) -> Row:
    """The exponent p of memory ~ B^p between each side's last two sizes, and what follows for the largest."""
    powers: dict[str, float | None] = {}
    for who, seen in found.items():
        if len(seen) < 2 or min(seen[-1][1], seen[-2][1]) <= 0:
            powers[who] = None
            continue
        (before, low), (after, high) = seen[-2:]
        powers[who] = math.log(high / low) / math.log(after / before)
    (largest, ours), note = found["ours"][-1], ""
    if powers["peer"] is not None and found["peer"][-1][0] < largest:
        size, mib = found["peer"][-1]
        there = mib * (largest / size) ** powers["peer"]
        note = f"carried on from B = {size:,}, the peer would take {there:,.0f} MiB at {largest:,}: "
        note += f"{there / ours:.0f}x, calculated and not measured"
    return Row(
        work=f"{kind} loss, memory grows with B to the power of",
        ours=powers["ours"],
        peer=powers["peer"],
        unit="exponent",
        ratio=None,
        peer_name=PEERS[kind],
        note=note,
    )


def speed(kind: str, options: Options) -> Row:
    """The row of CPU time at a size where the plain form fits."""
    size = 256 if options.small else 4096
    a, b = embeddings(size)
    ours, peer = step_of("ours", kind), step_of("peer", kind)
    gap = abs(float(ours(a, b)) - float(peer(a, b)))
    return compare(
        f"{kind} loss, forward and backward, B = {size:,}",
        lambda: ours(a, b),
        lambda: peer(a, b),
        options,
        peer_name=PEERS[kind],
        aim=0.8,
        note=f"values differ by {gap:.1g}",
    )


def measure(who: str, kind: str, size: int, threads: int) -> dict[str, Any]:
    """{"mib", "seconds"} of one loss in a fresh process."""
    path = str(Path(__file__).resolve().parents[1])
    return fresh(CODE, who, kind, size, threads, environment={"PYTHONPATH": path})


def measured() -> None:
    """Nothing; the fresh process: prints extra MiB and CPU seconds of one forward and backward."""
    who, kind, size, threads = (json.loads(word) for word in sys.argv[1:])
    torch.set_num_threads(threads)
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out after all, this process goes
    step = step_of(who, kind)
    step(*embeddings(64))  # loads what is loaded on first use
    a, b = embeddings(size)
    gc.collect()
    before = restart_peak()
    begun = time.process_time()
    step(a, b)
    seconds = time.process_time() - begun
    print(json.dumps({"mib": (peak() - before) / 2**20, "seconds": seconds}))


def step_of(who: str, kind: str) -> Step:
    """Forward and backward of one pair of embeddings, returning the loss; a temperature learns along."""
    scale = torch.tensor(math.log(10.0), requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True) if kind == "sigmoid" else None

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return contrastive_loss(a, b, scale, bias, "sigmoid" if kind == "sigmoid" else "softmax")

    def peer(a: Tensor, b: Tensor) -> Tensor:
        unit = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        return loss(*unit, scale.exp()) if bias is None else loss(*unit, scale.exp(), bias)

    if who == "peer":
        from open_clip.loss import ClipLoss, SigLipLoss

        loss = ClipLoss() if kind == "softmax" else SigLipLoss()

    def step(a: Tensor, b: Tensor) -> Tensor:
        a.grad = b.grad = None
        value = ours(a, b) if who == "ours" else peer(a, b)
        value.backward()
        return value.detach()

    return step


def embeddings(size: int) -> tuple[Tensor, Tensor]:
    """Two (B,512) float32 leaves, rows of b near their rows of a; seeded."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(size, WIDTH, generator=draw)
    b = torch.randn(size, WIDTH, generator=draw).add_(a)
    return a.requires_grad_(), b.requires_grad_()


def available() -> int:
    """Bytes of memory that new processes can use, by the kernel's own estimate."""
    return _kib("/proc/meminfo", "MemAvailable") * 1024


def restart_peak() -> int:
    """Bytes resident now; from here on `peak` counts anew (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _kib("/proc/self/status", "VmRSS") * 1024


def peak() -> int:
    """The largest resident set since `restart_peak`, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kib(file: str, name: str) -> int:
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
