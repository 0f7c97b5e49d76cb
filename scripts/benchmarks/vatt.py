"""VATT: what DropToken and one shared core save, and our video tower against transformers' VideoMAE.

A training step is that of recipes/vatt.py: three towers, both losses, clipping, Adam; the table of words is
frozen, as it was published. Every side runs in a process of its own and is asked in turn. Operations are
counted on tensors without values, twice a multiply-add, and need no machine to be quiet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.pairs import SCRIPTS
from benchmarks.timing import Options, Row, Served, in_turn
from mmvit.errors import UserError

CODE = "from benchmarks.vatt_sides import main; main()"
TOLERANCE = 1e-4  # between the two sides' outputs in float32, by their largest value
# Keep rate -> GFLOP of a forward pass of video, audio and text towers of VATT-MBS: the paper's table 5.
PUBLISHED = {1.0: 784.8, 0.75: 574.2, 0.5: 375.4, 0.25: 188.1}
RATES = (0.5, 0.25)  # whose training steps are timed
PEER = "keep rate 1"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one process is asked to do.

    Attributes:
        side: ours or transformers.
        work: step (of training) or clips (inference of the video tower).
        size: letter of a VATT core, or toy.
        shared: one core for the three towers.
        keep: share of the clips' and sounds' tokens that a step computes.
        batch: clips.
        half: bfloat16 autocast.
    """

    work: str
    side: str = "ours"
    size: str = "s"
    shared: bool = False
    keep: float = 1.0
    batch: int = 2
    half: bool = False
    device: str = "cpu"
    threads: int = 1


def run(options: Options) -> Iterator[Row]:
    """All rows of this file."""
    yield from costs("vatt_tiny" if options.small else "vatt_mbs")
    yield from dropping(options)
    yield from inference(options)
    yield from sharing(options)


def costs(name: str) -> Iterator[Row]:
    """Rows of counted operations, and of how they fall with the keep rate beside the published ones."""
    from benchmarks.vatt_sides import forward_cost

    whole = sum(forward_cost(name, 1.0).values())
    for rate, published in PUBLISHED.items():
        cost = whole if rate == 1 else sum(forward_cost(name, rate).values())
        yield Row(
            work=f"operations of a forward pass, {name}, keep rate {rate:g}",
            ours=cost / 1e9,
            peer=published,
            unit="GFLOP",
            ratio=None,
            peer_name="vatt_mbs as published",
        )
        if rate < 1:
            ours, theirs = whole / cost, PUBLISHED[1.0] / published
            yield Row(
                work=f"operations fall, {name}, from keep rate 1 to {rate:g}",
                ours=ours,
                peer=theirs,
                unit="times",
                ratio=ours / theirs,
                peer_name="vatt_mbs as published",
                aim=1.0 if name == "vatt_mbs" else None,
            )


def dropping(options: Options) -> Iterator[Row]:
    """Rows of training steps with some of the tokens against all of them: time and memory."""
    size = "toy" if options.small else "s"
    for rate in RATES:
        work = f"training step, three cores {_named(size)}, batch 2, keep rate {rate:g}, fp32"
        a, b = Case(work="step", size=size, keep=rate), Case(work="step", size=size)
        with _serving(a, options) as part, _serving(b, options) as whole:
            yield in_turn(work, part, whole, options.rounds, unit="ms", peer_name=PEER)
            yield _memory(f"tensors of {work}", "tensors", part, whole, PEER)


def inference(options: Options) -> Iterator[Row]:
    """Rows of the video tower's output at all tokens, of the same weights on the same clips.

    Raises:
        UserError: the sides do not compute the same.
    """
    size, shape = ("toy", "4 x 32 px") if options.small else ("b", "16 x 224 px")
    for half in (False, True):
        case = {"work": "clips", "size": size, "batch": 1, "half": half}
        ours, peer = Case(**case), Case(**case, side="transformers")
        with _serving(ours, options) as a, _serving(peer, options) as b:
            _check(a.facts["values"], b.facts["values"])
            work = f"video inference, VideoMAE-{size.upper() if size == 'b' else size}, 1 clip of {shape}, "
            work += "bf16" if half else "fp32"
            yield in_turn(
                work, a, b, options.rounds, unit="ms", peer_name="transformers VideoMAEModel", aim=1.1
            )


def sharing(options: Options) -> Iterator[Row]:
    """Rows of one core for three modalities against three cores of its size."""
    from benchmarks.vatt_sides import parameters

    name = "vatt_tiny_ma" if options.small else "vatt_ma_medium"
    one, three = (parameters(name, shared) / 1e6 for shared in (True, False))
    peer = "three cores of the same size"
    work = f"parameters, {name}, the table of words left aside"
    yield Row(work=work, ours=one, peer=three, unit="million", ratio=three / one, peer_name=peer)
    size = "toy" if options.small else "s"
    case: dict[str, Any] = {"work": "step", "size": size, "keep": RATES[0]}
    work = f"one core {_named(size)}, batch 2, keep rate {RATES[0]:g}, fp32"
    with (
        _serving(Case(**case, shared=True), options) as a,
        _serving(Case(**case), options) as b,
    ):
        yield _memory(f"weights and Adam's state, {work}", "state", a, b, peer)
        yield _memory(f"tensors of a training step, {work}", "tensors", a, b, peer)
        yield in_turn(f"training step, {work}", a, b, options.rounds, unit="ms", peer_name=peer)


def _named(size: str) -> str:
    if size == "toy":
        return "64 wide, clips of 8 x 32 px"
    return "512 wide and 6 deep, clips of 32 x 128 px, 1.6 s of sound"


def _serving(case: Case, options: Options) -> Served:
    """A process that repeats what the case asks for."""
    told = asdict(case) | {"device": options.device, "threads": options.threads}
    place = {"PYTHONPATH": SCRIPTS, "OMP_NUM_THREADS": str(options.threads)}
    return Served(CODE, told, environment=place)


def _memory(work: str, fact: str, ours: Served, peer: Served, name: str) -> Row:
    a, b = ours.facts[fact], peer.facts[fact]
    return Row(work=work, ours=a, peer=b, unit="MiB", ratio=b / a, peer_name=name)


def _check(ours: list[float], theirs: list[float]) -> None:
    """Nothing; both sides' outputs are equal.

    Raises:
        UserError: they are not; the message says by how much.
    """
    apart = max(abs(x - y) for x, y in zip(ours, theirs, strict=True))
    if not apart <= TOLERANCE * max(1.0, *(abs(y) for y in theirs)):
        raise UserError(f"ours and transformers' tokens are {apart:.2e} apart: they do not compute the same")
