"""Memory of a training step: the gradient cache against the whole batch, and pages fetched from the system.

Each in a fresh process: the peak of the resident set during a run's first step, minus what was resident
before it. So activations, gradients and the optimizer's state count; weights, inputs and libraries do not.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.loss import peak, restart_peak
from benchmarks.pairs import LARGE, LITTLE, SCRIPTS, SMALL, Case, Shape
from benchmarks.timing import Options, Row, fresh, spent

CODE = "from benchmarks.micro import measured; measured()"
STEPS = 3


def run(options: Options) -> Iterator[Row]:
    """Rows of one batch in micro-batches of falling size, then of memory that stays in the process."""
    yield from cut(options)
    yield from stays(options)


def cut(options: Options) -> Iterator[Row]:
    """Rows of the memory of a step in micro-batches, against the whole batch at once."""
    whole = replace(SMALL if options.small else LITTLE, batch=16 if options.small else 256)
    case = Case(work="scratch", side="ours", shape=whole, precision="fp32", threads=options.threads)
    once = measure(case)
    for parts in (4, 16):
        size = whole.batch // parts
        small = measure(replace(case, micro=size))
        alone = measure(replace(case, shape=replace(whole, batch=size)))
        yield Row(
            work=f"extra memory of a step, {whole.name}, batch {whole.batch} in micro-batches of {size}",
            ours=small["mib"],
            peer=once["mib"],
            unit="MiB",
            ratio=once["mib"] / small["mib"],
            peer_name="the same batch at once",
            note=f"a batch of {size} alone takes {alone['mib']:,.0f} MiB; CPU time of the step "
            f"{small['seconds'] / once['seconds']:.2f}x",
        )


def stays(options: Options) -> Iterator[Row]:
    """Rows of one step's page faults and CPU time, with train/memory.py and without."""
    shape = SMALL if options.small else LARGE
    case = Case(work="scratch", side="ours", shape=shape, precision="bf16", threads=options.threads)
    kept, given_back = measure(case), measure(case, keep=False)
    for what, unit in (("faults", "page faults"), ("system", "system ms"), ("seconds", "CPU s")):
        yield Row(
            work=f"a step with memory that stays, {shape.name}, batch {shape.batch}, bf16",
            ours=kept[what],
            peer=given_back[what],
            unit=unit,
            ratio=given_back[what] / kept[what] if kept[what] else None,
            peer_name="glibc's default",
        )


def measure(case: Case, keep: bool = True) -> dict[str, Any]:
    """{"mib", "seconds", "faults", "system"} of one step; `keep` = with train/memory.py."""
    with tempfile.TemporaryDirectory() as folder:
        return fresh(CODE, asdict(case), folder, keep, environment={"PYTHONPATH": SCRIPTS})


def measured() -> None:
    """Nothing; the fresh process: prints extra MiB of its first step, then means over three later ones."""
    from benchmarks.pair_sides import build_peer, our_step
    from mmvit.train import setup

    asked, folder, keep = (json.loads(word) for word in sys.argv[1:])
    if not keep:
        setup.keep_memory = lambda: False
    case = Case(**{**asked, "shape": Shape(**asked["shape"])})
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    step, _ = our_step(case, build_peer(case.shape), folder)
    ctypes.CDLL(None).malloc_trim(0)  # what checking the first loss has left must not hide the step's own
    before = restart_peak()
    step()
    extra = (peak() - before) / 2**20
    for _ in range(2):  # the allocator takes some rounds until its free pieces fit
        step()
    begun = resource.getrusage(resource.RUSAGE_SELF)
    seconds = sum(spent(step) for _ in range(STEPS)) / STEPS
    ended = resource.getrusage(resource.RUSAGE_SELF)
    faults, system = ended.ru_minflt - begun.ru_minflt, ended.ru_stime - begun.ru_stime
    facts = {"mib": extra, "seconds": seconds, "faults": faults / STEPS, "system": 1e3 * system / STEPS}
    print(json.dumps(facts))
