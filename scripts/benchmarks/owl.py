"""Open-vocabulary detection against transformers' OwlViT: the same weights, pictures and queries.

Each side runs in a process of its own and is asked in turn. Before anything is timed both tell logits and
boxes in float32, which must agree. transformers keeps no queries: it reads them again with every picture; one
row has its parts called by hand, with the queries' embeddings kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.pairs import SCRIPTS
from benchmarks.timing import Options, Row, Served, in_turn
from mmvit.errors import UserError

CODE = "from benchmarks.owl_sides import main; main()"
TOLERANCE = 1e-4  # between the two sides' logits, loss and boxes in float32, by their largest value
COUNTS = (1, 10, 100, 1203)  # 1203 classes in LVIS
AIMS = {1: 1.2, 10: 1.2, 100: None, 1203: 5.0}


@dataclass(frozen=True)
class Size:
    """Both towers of a detector, `depth` blocks each; `patch` in pixels."""

    width: int
    heads: int
    patch: int
    text_width: int
    text_heads: int
    depth: int


SIZES = {"B/32": Size(768, 12, 32, 512, 8, 12), "toy": Size(64, 2, 16, 32, 2, 2)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one process is asked to do.

    Attributes:
        side: ours; transformers; or by_hand, transformers' parts with the embeddings of the queries kept.
        work: first (queries and pictures), following (pictures; queries are known by now) or train.
        size: a name in `SIZES`.
        pixels: side of the square pictures.
        batch: pictures.
        queries: of each picture; all pictures ask the same ones when not training.
        half: bfloat16 autocast.
    """

    side: str
    work: str
    size: str = "B/32"
    pixels: int = 768
    batch: int = 1
    queries: int = 1
    half: bool = False
    device: str = "cpu"
    threads: int = 1


def run(options: Options) -> Iterator[Row]:
    """All rows of this file."""
    for half in (False,) if options.small else (False, True):
        yield from inference(options, half)
    yield from training(options)


def inference(options: Options, half: bool) -> Iterator[Row]:
    """Rows of the first picture and of following ones, for each number of queries."""
    shape: dict[str, Any] = {"size": "toy", "pixels": 64} if options.small else {}
    for queries in COUNTS[:2] if options.small else COUNTS:
        asked = shape | {"queries": queries, "half": half}
        for work, aim in (
            ("first", None if queries == 1203 else AIMS[queries]),
            ("following", AIMS[queries]),
        ):
            yield from _rows(options, "transformers", work, asked, aim)
    yield from _rows(options, "by_hand", "following", shape | {"queries": COUNTS[-1], "half": half}, None)


def training(options: Options) -> Iterator[Row]:
    """Rows of training steps: time, and the memory that tensors take."""
    for pixels in (64,) if options.small else (384, 768):
        for half in (False,) if options.small else (False, True):
            asked = {"size": "toy" if options.small else "B/32", "batch": 2, "queries": 100}
            yield from _rows(options, "transformers", "train", asked | {"pixels": pixels, "half": half}, None)


def _rows(
    options: Options, peer: str, work: str, asked: Mapping[str, Any], aim: float | None
) -> Iterator[Row]:
    """The rows of one case: builds both sides, holds their outputs against each other, times them in turn.

    Raises:
        UserError: the sides do not compute the same.
    """
    told = {**asked, "work": work, "device": options.device, "threads": options.threads}
    a, b = Case(side="ours", **told), Case(side=peer, **told)
    place = {"PYTHONPATH": SCRIPTS, "OMP_NUM_THREADS": str(options.threads)}
    with (
        Served(CODE, asdict(a), environment=place) as ours,
        Served(CODE, asdict(b), environment=place) as theirs,
    ):
        _check(ours.facts, theirs.facts)
        precision = "bf16" if a.half else "fp32"
        queries = f"{a.queries:,} quer{'y' if a.queries == 1 else 'ies'}"
        said = {"first": "first picture", "following": "following pictures", "train": "training step"}[work]
        said += f", {a.size} at {a.pixels} px, batch {a.batch}, {queries}, {precision}"
        name = _NAMES[peer, work]
        yield in_turn(said, ours, theirs, options.rounds, unit="ms", peer_name=name, aim=aim)
        if work == "train":
            mine, other = (side.facts["tensors"] for side in (ours, theirs))
            yield Row(
                work=f"tensors of {said}",
                ours=mine,
                peer=other,
                unit="MiB",
                ratio=other / mine,
                peer_name=name,
            )


_NAMES = {
    ("transformers", "first"): "transformers",
    ("transformers", "following"): "transformers",
    ("by_hand", "following"): "transformers, its parts called by hand with kept queries",
    ("transformers", "train"): "transformers with our loss",
}


def _check(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Nothing; both sides' outputs are equal.

    Raises:
        UserError: they are not; the message says by how much.
    """
    for name in ("values", "boxes"):
        pairs = list(zip(ours[name], theirs[name], strict=True))
        apart = max(abs(x - y) for x, y in pairs)
        if not apart <= TOLERANCE * max(1.0, *(abs(y) for _, y in pairs)):
            raise UserError(
                f"ours and transformers' {name} are {apart:.2e} apart: they do not compute the same"
            )
