"""Training steps and text towers of an image-text pair against open_clip's: same shape, equal weights.

Each side runs in a process of its own, set up as its own training does it, and takes its steps in turn with
the other. Before anything is timed both tell the float32 loss of the same batch, which must agree.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.timing import Options, Row, Served, in_turn
from mmvit.errors import UserError

CODE = "from benchmarks.pair_sides import main; main()"
SCRIPTS = str(Path(__file__).resolve().parents[1])
TOLERANCE = 1e-3  # between the two sides' first losses, float32
AIMS = {"bf16": 1.5, "fp32": 1.2}  # of training from scratch
SETTINGS = "peer: open_clip_train's step, no clipping (its default), AdamW; ours clips at 1 and checks health"


@dataclass(frozen=True)
class Shape:
    """A pair: both towers `width` wide and `depth` deep, heads 64 wide, CLIP's vocabulary and 77 tokens."""

    name: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    batch: int


LARGE = Shape("ViT-S/16 at 224 px", 224, 16, 384, 12, 16)
LITTLE = Shape("ViT-Ti/16 at 96 px", 96, 16, 192, 12, 64)
SMALL = Shape("toy at 32 px", 32, 16, 64, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one process is asked to do.

    Attributes:
        work: scratch, locked, cached (training steps) or text (forward and backward of the text tower).
        side: ours, open_clip or transformers.
        full: captions fill all 77 tokens; else they are of real length.
        micro: rows of a micro-batch of ours, 0 = the whole batch at once.
        compile: ours with --train.compile.
    """

    work: str
    side: str
    shape: Shape
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    full: bool = False
    micro: int = 0
    compile: bool = False


def run(options: Options) -> Iterator[Row]:
    """All rows of this file."""
    yield from scratch(options)
    yield from locked(options)
    yield from text(options)
    yield from compiled(options)


def scratch(options: Options) -> Iterator[Row]:
    """Rows of whole contrastive training steps from scratch: captions of real length, then of 77 tokens."""
    for shape in (SMALL,) if options.small else (LARGE, LITTLE):
        for precision, aim in _precisions(options).items():
            for full in (False,) if options.small else (False, True):
                asked = {"shape": shape, "precision": precision, "full": full}
                yield _row("scratch", "scratch", "from scratch", options, asked, None if full else aim)


def locked(options: Options) -> Iterator[Row]:
    """Rows of locked-image training steps: with the image tower run live, and from its cached features."""
    shape = SMALL if options.small else Shape(**{**asdict(LARGE), "batch": 64})
    for precision in _precisions(options):
        for work, aim in (("locked", 1.3), ("cached", 10.0)):
            said = "locked image tower, live" if work == "locked" else "locked image tower, cached features"
            asked = {"shape": shape, "precision": precision}
            yield _row(work, "locked", said, options, asked, aim)


def text(options: Options) -> Iterator[Row]:
    """Rows of the text tower alone, forward and backward, on captions of real length."""
    for width in (64,) if options.small else (384, 512):
        shape = Shape(f"text tower {width} wide", 32, 16, width, 2 if options.small else 12, 8)
        shape = shape if options.small else Shape(**{**asdict(shape), "batch": 128})
        for precision in _precisions(options):
            for peer in ("open_clip", "transformers"):
                asked = {"shape": shape, "precision": precision}
                said = "forward + backward"
                yield _row("text", "text", said, options, asked, 1.5, peer)


def compiled(options: Options) -> Iterator[Row]:
    """Rows of our step with compiled blocks against our eager one; compiling takes minutes: none if small."""
    for precision in () if options.small else AIMS:
        asked = {"shape": LARGE, "precision": precision, "device": options.device, "threads": options.threads}
        eager = Case(work="scratch", side="ours", **asked)
        place = {"PYTHONPATH": SCRIPTS, "OMP_NUM_THREADS": str(options.threads)}
        with (
            tempfile.TemporaryDirectory() as folder,
            Served(CODE, asdict(replace(eager, compile=True)), folder, environment=place) as ours,
            Served(CODE, asdict(eager), folder, environment=place) as theirs,
        ):
            first, usual = (side.facts["warm_up_s"] for side in (ours, theirs))
            yield in_turn(
                f"from scratch with --train.compile, {LARGE.name}, batch {LARGE.batch}, {precision}",
                ours,
                theirs,
                options.rounds,
                unit="ms",
                peer_name="our own eager step",
                note=f"first step: {first:.0f} s against {usual:.0f} s (wall)",
            )


def _precisions(options: Options) -> dict[str, float]:
    return {"bf16": AIMS["bf16"]} if options.small else AIMS


def _row(
    work: str,
    peer_work: str,
    said: str,
    options: Options,
    asked: dict[str, Any],
    aim: float | None,
    peer: str = "open_clip",
) -> Row:
    """The row of one case: builds both sides, compares their first losses, then times them in turn.

    Raises:
        UserError: the sides differ in parameters or in their first loss.
    """
    asked = {**asked, "device": options.device, "threads": options.threads}
    a = Case(work=work, side="ours", **asked)
    b = Case(work=peer_work, side=peer, **asked)
    place = {"PYTHONPATH": SCRIPTS, "OMP_NUM_THREADS": str(options.threads)}
    with (
        tempfile.TemporaryDirectory() as folder,
        Served(CODE, asdict(a), folder, environment=place) as ours,
        Served(CODE, asdict(b), folder, environment=place) as theirs,
    ):
        x, y = ours.facts, theirs.facts
        if x["parameters"] != y["parameters"] or not abs(x["value"] - y["value"]) < TOLERANCE:
            raise UserError(f"{said}, {a.shape.name}: ours {x} and {peer} {y} do not compute the same")
        note = f"text {x['text']} against {y['text']}; first values {x['value']:.4f}, {y['value']:.4f}"
        if work != "text":
            note += f"; {SETTINGS}"
        return in_turn(
            f"{said}, {a.shape.name}, batch {a.shape.batch}, {a.precision}"
            f", captions {'of 77 tokens' if a.full else 'of real length'}",
            ours,
            theirs,
            options.rounds,
            unit="ms",
            peer_name=peer,
            aim=aim,
            note=note,
        )
