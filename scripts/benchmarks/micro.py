"""Memory of a training step with the gradient cache: whole batch at once, and in micro-batches.

Each in a fresh process: the peak of the resident set during a run's first step, minus what was resident
before it. So activations, gradients and the optimizer's state count; weights, inputs and libraries do not.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.loss import peak, restart_peak
from benchmarks.pairs import LITTLE, SCRIPTS, SMALL, Case, Shape
from benchmarks.timing import Options, Row, fresh, spent

CODE = "from benchmarks.micro import measured; measured()"


def run(options: Options) -> Iterator[Row]:
    """Rows of one batch in micro-batches of falling size, against the whole batch at once."""
    whole = replace(SMALL if options.small else LITTLE, batch=16 if options.small else 256)
    case = Case(work="scratch", side="ours", shape=whole, precision="fp32", threads=options.threads)
    once = measure(case)
    for parts in (4, 16):
        size = whole.batch // parts
        cut = measure(replace(case, micro=size))
        alone = measure(replace(case, shape=replace(whole, batch=size)))
        yield Row(
            work=f"extra memory of a step, {whole.name}, batch {whole.batch} in micro-batches of {size}",
            ours=cut["mib"],
            peer=once["mib"],
            unit="MiB",
            ratio=once["mib"] / cut["mib"],
            peer_name="the same batch at once",
            note=f"a batch of {size} alone takes {alone['mib']:,.0f} MiB; CPU time of the step "
            f"{cut['seconds'] / once['seconds']:.2f}x",
        )


def measure(case: Case) -> dict[str, Any]:
    """{"mib", "seconds"} of one step."""
    with tempfile.TemporaryDirectory() as folder:
        return fresh(CODE, asdict(case), folder, environment={"PYTHONPATH": SCRIPTS})


def measured() -> None:
    """Nothing; the fresh process: prints extra MiB of its first step and CPU seconds of its second."""
    from benchmarks.pair_sides import build_peer, our_step

    asked, folder = (json.loads(word) for word in sys.argv[1:])
    case = Case(**{**asked, "shape": Shape(**asked["shape"])})
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    step, _ = our_step(case, build_peer(case.shape), folder)
    ctypes.CDLL(None).malloc_trim(0)  # what checking the first loss has left must not hide the step's own
    before = restart_peak()
    step()
    extra = (peak() - before) / 2**20
    print(json.dumps({"mib": extra, "seconds": spent(step)}))
