"""Compares every preset with its peers and prints the parity table; --write puts it into docs/parity.md.

Peers are built with random weights, every parameter random, converted and run in float32 on the CPU. Nothing
is downloaded. Needs the development extra (timm, transformers, open_clip, torchvision).
  python scripts/parity.py --write          the table, minutes on two cores
  python scripts/parity.py --only "mvit*"   some presets
  python scripts/parity.py --slow --write   the big models in full as well
"""

from __future__ import annotations

import fnmatch
import gc
import multiprocessing
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from mmvit.errors import UserError, one_line
from mmvit.options import parse
from tests.parity.case import OUTPUTS, Result, run
from tests.parity.table import all_cases, line_of, write


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to compare.

    Attributes:
        only: shell pattern of preset names.
        slow: the big models in full as well.
        write: put the table into docs/parity.md; only with all presets.
        jobs: cases at a time, each in a process of its own with one thread.
    """

    only: str = "*"
    slow: bool = False
    write: bool = False
    jobs: int = os.cpu_count() or 1


@one_line
def main() -> None:
    """Runs the cases one after the other.

    Raises:
        UserError: no preset matches, or a part of the table would be written.
    """
    config = parse(Config, description=__doc__ or "")
    if config.write and config.only != "*":
        raise UserError("--write needs all presets: leave --only out")
    cases = all_cases()
    chosen = [i for i, c in enumerate(cases) if fnmatch.fnmatch(c.preset, config.only)]
    chosen = [i for i in chosen if config.slow or not cases[i].slow]
    if not chosen:
        raise UserError(f"no preset with a peer matches --only '{config.only}'")
    began, results = time.monotonic(), []
    with multiprocessing.get_context("spawn").Pool(config.jobs) as pool:
        for i, numbers in zip(chosen, pool.imap(compared, chosen), strict=True):
            results.append(Result(case=cases[i], **numbers))
            print(line_of(results[-1]), flush=True)
    minutes = (time.monotonic() - began) / 60
    seen = sorted(value for r in results for found in (r.native, r.other) for value in found.values())
    facts = (
        f"{len(results)} comparisons of {len({r.case.preset for r in results})} presets in {minutes:.1f} "
        f"minutes on {config.jobs} cores; {', '.join(OUTPUTS)} in float32: usual (median) max |Δ| "
        f"{seen[len(seen) // 2]:.1e}, largest {seen[-1]:.1e}."
    )
    print(facts)
    if config.write:
        write(results, facts)


def compared(index: int) -> dict[str, Any]:
    """The numbers of a case, by its place in `all_cases()`: parameters, native, other."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result = run(all_cases()[index])
    gc.collect()
    return {"parameters": result.parameters, "native": result.native, "other": result.other}


if __name__ == "__main__":
    main()
