"""Which parameters learn, and how fast: an ordered list of (pattern, multiplier or None), first match wins.

None = frozen. A module whose parameters are all frozen is locked: it stays in eval mode whatever is called on
it, so that dropout, drop-path and batch statistics are off for good.
Source: big_vision's schedules by pattern; Zhai et al. 2022 (arXiv:2111.07991), section 3, on locking.
"""

from __future__ import annotations

import hashlib
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmvit.errors import UserError

Rules = Sequence[tuple[str, float | None]]


@dataclass(frozen=True)
class Freeze:
    """A module's parameters after the rules.

    Attributes:
        multipliers: parameter name -> learning-rate multiplier, None = frozen.
        locked: names of the largest modules in which every parameter is frozen.
        unused: patterns that decided nothing.
    """

    multipliers: dict[str, float | None]
    locked: tuple[str, ...]
    unused: tuple[str, ...]

    def trainable(self) -> list[str]:
        """Names of the parameters that learn, in the module's order."""
        return [name for name, value in self.multipliers.items() if value is not None]

    def is_locked(self, name: str) -> bool:
        """Whether the parameter, buffer or module of that name is frozen or inside a locked module."""
        if name in self.multipliers:
            return self.multipliers[name] is None
        return any(name == root or name.startswith(root + ".") for root in self.locked)


def freeze(module: nn.Module, rules: Rules) -> Freeze:
    r"""Applies `rules` to `module` and returns what became of every parameter.

    A pattern is a regular expression that must match the whole name ("image\..*"). Frozen parameters get
    requires_grad False; modules with frozen parameters only are locked.

    Raises:
        UserError: a parameter that no pattern covers, a broken pattern, a multiplier that is not positive.
    """
    compiled = [(_compile(pattern), pattern, value) for pattern, value in rules]
    multipliers: dict[str, float | None] = {}
    decided: dict[int, float | None] = {}
    used: set[str] = set()
    uncovered = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in decided:  # shared between two places: the first name decides
            multipliers[name] = decided[id(parameter)]
            continue
        for expression, pattern, value in compiled:
            if expression.fullmatch(name):
                if value is not None and value <= 0:
                    raise UserError(f"pattern '{pattern}' has multiplier {value}; above 0, or None to freeze")
                multipliers[name] = decided[id(parameter)] = value
                used.add(pattern)
                parameter.requires_grad_(value is not None)
                break
        else:
            uncovered.append(name)
    if uncovered:
        raise UserError(
            f"{len(uncovered)} parameters are covered by no pattern, first '{uncovered[0]}'; "
            f"patterns: {', '.join(pattern for pattern, _ in rules)}"
        )
    locked = tuple(_locked_roots(module, multipliers))
    for root in locked:
        lock(module.get_submodule(root))
    unused = tuple(pattern for pattern, _ in rules if pattern not in used)
    return Freeze(multipliers=multipliers, locked=locked, unused=unused)


def freeze_listed(module: nn.Module, listed: Sequence[str], rules: Rules) -> Freeze:
    """The same with patterns that the user listed as --model.frozen before the recipe's own rules.

    Raises:
        UserError: as `freeze`, or a listed pattern that decides nothing.
    """
    frozen = freeze(module, [*((pattern, None) for pattern in listed), *rules])
    if unknown := set(listed) & set(frozen.unused):
        raise UserError(
            f"--model.frozen {unknown.pop()} matches no parameter; names look like model.text.core…"
        )
    return frozen


def matching(names: Sequence[str], patterns: Sequence[str], option: str) -> frozenset[str]:
    """Those of `names` that one of the patterns matches as a whole.

    Raises:
        UserError: a broken pattern, or one that matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        expression = _compile(pattern)
        hits = [name for name in names if expression.fullmatch(name)]
        if not hits:
            raise UserError(f"pattern '{pattern}' of {option} matches no parameter that learns")
        found.update(hits)
    return frozenset(found)


def lock(module: nn.Module) -> nn.Module:
    """`module` frozen for good: no gradients, eval mode, and deaf to train()."""
    module.requires_grad_(False)
    module.eval()
    for part in module.modules():
        part.train = types.MethodType(_stay_in_eval, part)  # type: ignore[method-assign]
    return module


def fingerprint(module: nn.Module, names: Sequence[str]) -> str:
    """sha256 over the sorted state entries below `names`: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    state = module.state_dict()
    for key in sorted(state):
        if any(key == name or key.startswith(name + ".") for name in names):
            tensor: Tensor = state[key].detach().cpu().contiguous()
            digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def table(module: nn.Module, frozen: Freeze, depth: int = 2) -> str:
    """One line per part of the model: name, parameters, how many learn, learning-rate multipliers."""
    counts: dict[str, list[int]] = {}
    rates: dict[str, set[str]] = {}
    for name, parameter in module.named_parameters():
        part = ".".join(name.split(".")[:depth])
        value = frozen.multipliers[name]
        row = counts.setdefault(part, [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() if value is not None else 0
        rates.setdefault(part, set()).add("locked" if value is None else f"{value:g}")
    total = [sum(row[i] for row in counts.values()) for i in (0, 1)]
    width = max(len("module"), *(len(part) for part in counts))
    lines = [f"{'module':<{width}}  {'parameters':>13}  {'trainable':>13}  lr x"]
    for part, (size, learns) in counts.items():
        lines.append(f"{part:<{width}}  {size:>13,}  {learns:>13,}  {', '.join(sorted(rates[part]))}")
    lines.append(f"{'total':<{width}}  {total[0]:>13,}  {total[1]:>13,}")
    return "\n".join(lines)


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    return self


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"'{pattern}' is not a regular expression: {error}") from error


def _locked_roots(module: nn.Module, multipliers: dict[str, float | None], prefix: str = "") -> list[str]:
    """Names of the largest submodules that have parameters and learn none of them."""
    roots = []
    for child_name, child in module.named_children():
        name = prefix + child_name
        values = [multipliers[f"{name}.{p}"] for p, _ in child.named_parameters(remove_duplicate=False)]
        if values and all(value is None for value in values):
            roots.append(name)
        elif values:
            roots.extend(_locked_roots(child, multipliers, name + "."))
    return roots
