"""One line of the parity table: a peer with random weights, our model converted from it, outputs compared.

Families list their cases in `cases_*.py`; `table.py` runs them, `scripts/parity.py` prints them into
docs/parity.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmvit.models.classifier import Classifier
from mmvit.models.presets import build_model, preset
from mmvit.models.unfilled import Unfilled

LIMIT = 1e-4
OUTPUTS = ("tokens", "pooled", "logits")
# Fields that say how a model starts or trains, not what it computes.
_TRAINING = ("drop_path", "dropout", "bias_init", "logit_scale_init", "logit_bias_init", "logit_scale_max")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A preset and a peer.

    Attributes:
        preset: our preset's name.
        peer: library and name, as the table shows it.
        build: the peer in its native size, as its library makes it; every parameter is randomised afterwards.
        convert: our model out of the peer.
        outputs: the peer's "tokens" (B,N,D), "pooled" (B,D) and "logits" (B,C), those that it has.
        ours: likewise of our model; None = forward_tokens, features and, of classifiers, forward.
        shape: of a native input.
        other: of an input of another size; None = there is none, `note` says why.
        inputs: shape -> what both models are given; None = normal numbers.
        resize: tells the peer about the other size and returns it; None = it need not be told.
        convert_other: our model for the other size out of the original peer; None = the same model.
        overrides: of the preset, where the peer was built smaller, e.g. {"depth": 2}.
        blocks: "2 of 24" where the peer has fewer blocks than the preset.
        differs: fields in which the converted config and the preset differ by design.
        slow: a big model in full, run only when asked for.
        note: what the table says beside the numbers.
    """

    preset: str
    peer: str
    build: Callable[[], nn.Module]
    convert: Callable[[nn.Module], nn.Module]
    outputs: Callable[[Any, Any], dict[str, Tensor]]
    ours: Callable[[Any, Any], dict[str, Tensor]] | None = None
    shape: tuple[int, ...] = (2, 3, 224, 224)
    other: tuple[int, ...] | None = None
    inputs: Callable[[tuple[int, ...]], Any] | None = None
    resize: Callable[[Any, tuple[int, ...]], nn.Module] | None = None
    convert_other: Callable[[nn.Module], nn.Module] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    blocks: str = "all"
    differs: tuple[str, ...] = ()
    slow: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a case gave.

    Attributes:
        parameters: of the preset in full.
        native: output -> max |Δ| at the native size.
        other: output -> max |Δ| at the other size.
    """

    case: Case
    parameters: int
    native: dict[str, float]
    other: dict[str, float]


@torch.no_grad()
def run(case: Case) -> Result:
    """Builds, randomises, converts and compares.

    Raises:
        AssertionError: outputs that differ by more than `LIMIT`, that are too flat to tell anything, or a
            converted config that is not the preset's.
    """
    torch.manual_seed(0)
    with Unfilled():  # every parameter is about to be overwritten
        peer = case.build()
    peer = randomise(peer)
    model = case.convert(peer)
    assert_same_config(case, model)
    native = compare(case, model, peer, case.shape)
    other: dict[str, float] = {}
    if case.other is not None:
        model = model if case.convert_other is None else case.convert_other(peer)
        peer = peer if case.resize is None else case.resize(peer, case.other).eval()
        other = compare(case, model, peer, case.other)
    return Result(case=case, parameters=parameters_of(case.preset), native=native, other=other)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, those that start at zero or one too: nothing can be forgotten unnoticed.

    Matrices and kernels keep the size of their outputs, gains stay around 1, everything else is of size 0.1.
    """
    generator = torch.Generator().manual_seed(seed)
    # A prime number of normal numbers, repeated: drawing hundreds of millions would take most of the time.
    drawn, start = torch.randn(1_000_003, generator=generator), 0
    for name, value in model.named_parameters():
        times = (start + value.numel()) // len(drawn) + 1
        noise = drawn.repeat(times)[start : start + value.numel()].view(value.shape).to(value.dtype)
        start = (start + value.numel()) % len(drawn)
        fan_in = value[0].numel() if value.ndim > 1 and value.shape[0] > 1 else 0
        gain = value.ndim == 1 and bool((value == 1).all())
        if "pos" in name or "token" in name or "embed" in name and value.ndim < 4:
            value.data = 0.5 * noise
        elif fan_in:
            value.data = noise * fan_in**-0.5
        else:
            value.data = 0.1 * noise + gain
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(std=0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def compare(case: Case, model: nn.Module, peer: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Output -> max |Δ| on one random input."""
    torch.manual_seed(1)
    x = torch.randn(shape) if case.inputs is None else case.inputs(shape)
    theirs, mine = case.outputs(peer, x), (case.ours or outputs_of)(model, x)
    found = {}
    for name in OUTPUTS:
        assert (name in theirs) == (name in mine), f"{case.preset}: '{name}' on one side only"
        if name in theirs:
            a, b = mine[name], theirs[name]
            assert a.shape == b.shape, f"{case.preset} {name}: {tuple(a.shape)} for {tuple(b.shape)}"
            assert b.std() > 0.02, f"{case.preset} {name}: the peer's output is too flat to tell anything"
            found[name] = (a - b).abs().max().item()
            assert found[name] <= LIMIT, f"{case.preset} {name} {shape}: {found[name]:.2e}"
    return found


def outputs_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Tokens and pooled features of a tower; of a classifier the logits as well."""
    tower: Any = model.tower if isinstance(model, Classifier) else model
    found = {"tokens": tower.forward_tokens(x).values, "pooled": tower.features(x)}
    return found | {"logits": model(x)} if isinstance(model, Classifier) else found


def assert_same_config(case: Case, model: Any) -> None:
    """A peer of a preset's name, converted, is that preset: no constant of the table is wrong."""
    config = model.config.tower if isinstance(model, Classifier) else model.config
    wanted = preset(case.preset, **case.overrides)
    wrong = {
        path: (found, mine)
        for path, found, mine in _fields(config, wanted)
        if found != mine and path.rpartition(".")[2] not in (*_TRAINING, *case.differs)
    }
    assert not wrong, f"{case.preset}: converted and preset differ: {wrong}"


def _fields(found: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if not dataclasses.is_dataclass(wanted) or type(found) is not type(wanted):
        scale = path.endswith("layer_scale") and None not in (found, wanted)  # its value only starts it
        yield path, found, found if scale else wanted
        return
    for each in dataclasses.fields(wanted):
        name = f"{path}.{each.name}" if path else each.name
        yield from _fields(getattr(found, each.name), getattr(wanted, each.name), name)


def parameters_of(name: str) -> int:
    """How many parameters a preset has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(preset(name)).parameters())
