"""Foreign state dicts -> ours, by tables that can be read and tested line by line.

A table line is `(source, target)` or `(source, target, change)`. In both names `{i}` stands for a number and
a final `*` for the rest of the name (`weight`, `bias`, ...). A target that ends in `#k` is the k-th block of
rows of one tensor (q, k, v of `attn.qkv`); `LEFT_OUT` as target names what our model has no place for and
why that loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, cat, nn

Change = Callable[[Tensor], Tensor]
Line = tuple[str, str] | tuple[str, str, Change]
LEFT_OUT = "left out: "


@dataclass
class Report:
    """What a conversion did with every tensor of the source.

    Attributes:
        loaded: our name -> the source names that fill it.
        resized: our name -> (shape in the source, shape in our model).
        left_out: source name -> why our model does without it.
    """

    loaded: dict[str, list[str]] = field(default_factory=dict)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors from {sum(map(len, self.loaded.values()))}"]
        lines += [f"resized {name}: {old} -> {new}" for name, (old, new) in self.resized.items()]
        lines += [f"left out {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def first_third(x: Tensor) -> Tensor:
    """The q rows of stacked [q; k; v], (3D, ...) -> (D, ...)."""
    return x[: len(x) // 3]


def last_thirds(x: Tensor) -> Tensor:
    """The k and v rows of stacked [q; k; v], (3D, ...) -> (2D, ...)."""
    return x[len(x) // 3 :]


def row(x: Tensor) -> Tensor:
    """`x` (...) with a leading axis of one: (D) -> (1,D), (N,D) -> (1,N,D)."""
    return x[None]


def token(x: Tensor) -> Tensor:
    """A token vector (D) as (1,1,D)."""
    return x.reshape(1, 1, -1)


def transpose(x: Tensor) -> Tensor:
    """A matrix that is used as `x @ w` (in,out) as a Linear weight (out,in)."""
    return x.t().contiguous()


def scalar(x: Tensor) -> Tensor:
    """A one-element tensor as shape ()."""
    return x.reshape(())


def blocks(source: str, target: str, lines: Iterable[Line]) -> list[Line]:
    """`lines` with a prefix before both names: one transformer block's table put in place."""
    return [(source + s, t if t.startswith(LEFT_OUT) else target + t, *rest) for s, t, *rest in lines]  # type: ignore[misc]


def strip_prefix(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """`state` without the first of `prefixes` that any name carries; names without it stay as they are."""
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def translate(
    state: Mapping[str, Tensor], table: Sequence[Line], *, source: str
) -> tuple[dict[str, Tensor], Report]:
    """The tensors of `state` under our names, and the report of what became of each.

    Args:
        state: the source's state dict.
        table: lines as described at the top of this file; a tensor feeds every line that matches its name.
        source: what the tensors come from, for error messages.

    Raises:
        ValueError: a source tensor that no line covers, or a target with a missing part.
    """
    compiled = [(pattern(line[0]), line) for line in table]
    parts: dict[str, dict[int, Tensor]] = {}
    report, unexpected = Report(), []
    for name, value in state.items():
        found = [(match, line) for expression, line in compiled if (match := expression.fullmatch(name))]
        if not found:
            unexpected.append(name)
        for match, line in found:
            if line[1].startswith(LEFT_OUT):
                report.left_out[name] = line[1].removeprefix(LEFT_OUT)
                continue
            target, part = filled(line[1], match)
            if part in parts.setdefault(target, {}):
                raise ValueError(f"{source}: two tensors claim '{target}', the second is '{name}'")
            parts[target][part] = line[2](value) if len(line) == 3 else value
            report.loaded.setdefault(target, []).append(name)
    if unexpected:
        raise ValueError(
            f"{source}: {len(unexpected)} tensors have no place in our model: {_some(unexpected)}"
        )
    return {target: _join(target, found, source) for target, found in parts.items()}, report


def fill(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, allow_missing: Sequence[str] = ()
) -> None:
    """Copies `state` into `model`, every tensor or none.

    Args:
        model: the module to fill, in place.
        state: tensors under our names.
        source: what the tensors come from, for error messages.
        allow_missing: regular expressions of our names that may keep their initial values (a new head).

    Raises:
        ValueError: missing, unexpected or wrongly shaped tensors, with their names.
    """
    own = model.state_dict()
    compare(shapes_of(own), shapes_of(state), source=source, allow_missing=allow_missing)
    model.load_state_dict({**own, **state})


def compare(
    own: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    allow_missing: Sequence[str] = (),
) -> None:
    """Raises ValueError unless the tensors found are those that a model has, by name and shape.

    Args:
        own: name -> shape of the model.
        found: name -> shape of what shall fill it.
        source: what the tensors come from, for error messages.
        allow_missing: as `fill` takes it.
    """
    missing = [n for n in own if n not in found and not any(re.fullmatch(p, n) for p in allow_missing)]
    unexpected = [n for n in found if n not in own]
    shapes = [f"{n} {found[n]} for {own[n]}" for n in found if n in own and found[n] != own[n]]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if names:
            raise ValueError(f"{source}: {len(names)} tensors {problem}: {_some(names)}")


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor."""
    return {name: tuple(value.shape) for name, value in state.items()}


def pattern(source: str) -> re.Pattern[str]:
    """What a name of a table matches: `{i}` a number, a final `*` the rest."""
    text = re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>.+)")
    return re.compile(text)


def filled(target: str, match: re.Match[str]) -> tuple[str, int]:
    """The other name of a line with what `pattern` found put in, and its part of a joined tensor."""
    name, _, part = target.partition("#")
    for key, value in match.groupdict().items():
        name = name.replace("{i}" if key == "i" else "*", value)
    return name, int(part or 0)


def _join(target: str, found: dict[int, Tensor], source: str) -> Tensor:
    if sorted(found) != list(range(max(found) + 1)):
        raise ValueError(f"{source}: '{target}' is joined from several tensors and one is missing")
    return found[0] if len(found) == 1 else cat([found[k] for k in sorted(found)], dim=0)


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
