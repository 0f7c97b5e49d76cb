"""Speed and memory against peers in the same run, on this machine: the ratios that docs/benchmarks.md quotes.

    python scripts/bench.py                      all of them (takes long: use a quiet machine)
    python scripts/bench.py --only pairs         training steps and text towers against open_clip
    python scripts/bench.py --small              every program with sizes that take seconds, to see it run

The two sides take turns, A B A B …, and the median of the pairs' ratios is quoted: a busy machine slows both.
Times are CPU seconds on CPUs and wall seconds on GPUs, unless a row says otherwise.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from benchmarks.timing import Options, Row, print_rows

from mmvit.errors import one_line
from mmvit.options import parse

Name = Literal[
    "attention",
    "vit",
    "text",
    "pairs",
    "micro",
    "pictures",
    "videos",
    "loss",
    "search",
    "processes",
    "startup",
    "owl",
    "vatt",
]
# Name -> module and function; imported when it is its turn.
BENCHES: dict[Name, tuple[str, str]] = {
    "attention": ("core", "attention"),
    "vit": ("vit", "run"),
    "text": ("core", "text"),
    **{name: (name, "run") for name in get_args(Name)[3:]},
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options.

    Attributes:
        only: which comparisons; all when empty. attention: our attention against torch's kernel. vit: our
            core against timm and transformers. text: a MiniLM-sized core against transformers. pairs:
            training steps against open_clip. micro: memory of the gradient cache. pictures: the data pipeline
            against open_clip's. videos: reading clips against loops over PyAV. loss: memory and speed of the
            loss. search: retrieval. processes: two against one. startup: imports and the first step. owl:
            detection against transformers, queries kept and not, and its training step. vatt: what DropToken
            and a shared core save, and the video tower against transformers.
        device: cpu or cuda.
        threads: CPU threads.
        rounds: counted pairs of each comparison.
        small: sizes that take seconds; their figures mean nothing.
    """

    only: tuple[Name, ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    rounds: int = 5
    small: bool = False


@one_line
def main() -> None:
    """Runs the comparisons that are named, all when none is."""
    config = parse(Config, description=__doc__ or "")
    options = Options(device=config.device, threads=config.threads, rounds=config.rounds, small=config.small)
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    print(Row.HEADER)
    for name in config.only or BENCHES:
        module, function = BENCHES[name]
        print_rows(getattr(importlib.import_module(f"benchmarks.{module}"), function)(options))


if __name__ == "__main__":
    main()
