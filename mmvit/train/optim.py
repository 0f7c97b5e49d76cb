"""Optimizer groups by explicit rules, and the optimizers by name.

Decoupled weight decay is multiplied by the learning rate, as torch does; big_vision's absolute value w is
weight_decay = w / lr here. Only kernels decay: the weights of linear, convolution and attention projections.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from mmvit.errors import UserError
from mmvit.train.adafactor import Adafactor
from mmvit.train.freeze import Freeze
from mmvit.train.lion import Lion

_KERNEL_TYPES = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
# Kernels kept as bare parameters: our heads, fused attention inputs, CLIP's output projections.
_KERNEL_NAMES = re.compile(r"(.*\.)?(head\.weight|(in|q|k|v)_proj_weight|proj|text_projection)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What the optimizer does.

    Attributes:
        name: adamw; adam, without weight decay; adafactor (the Scaling-ViT variant: momentum in bfloat16,
            factored second moments); lion; sgd with momentum.
        lr: peak learning rate.
        weight_decay: decoupled, multiplied by the learning rate; kernels only. With sgd it is added to the
            gradient, before the momentum.
        beta1, beta2: decay of the first and second moment; adafactor's beta2 is a cap, sgd's
            momentum is beta1.
        eps: AdamW's and Adam's epsilon.
        lr_multipliers: "PATTERN=FACTOR" by parameter name, first match wins; others 1.
        decay_multipliers: "PATTERN=FACTOR" on the weight decay of kernels, first match wins; others 1.
    """

    name: Literal["adamw", "adam", "adafactor", "lion", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    lr_multipliers: tuple[str, ...] = ()
    decay_multipliers: tuple[str, ...] = ()


def decaying(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay touches: kernels, found by module type and by name.

    Biases, norms, position and token tables, class tokens, probes and scalars never decay.
    """
    names = set()
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            typed = isinstance(part, _KERNEL_TYPES) and name == "weight"
            if typed or (parameter.ndim == 2 and _KERNEL_NAMES.fullmatch(full)):
                names.add(full)
    return names


def parse_multipliers(entries: Sequence[str], option: str) -> list[tuple[str, float]]:
    """[(pattern, factor)] from "PATTERN=FACTOR" entries.

    Raises:
        UserError: an entry of another form.
    """
    rules = []
    for entry in entries:
        pattern, _, factor = entry.rpartition("=")
        try:
            rules.append((pattern, float(factor)))
            re.compile(pattern)
        except (ValueError, re.error) as error:
            raise UserError(f"{option} takes PATTERN=FACTOR, got '{entry}'") from error
        if not pattern:
            raise UserError(f"{option} takes PATTERN=FACTOR, got '{entry}'")
    return rules


def build_groups(module: nn.Module, frozen: Freeze, config: OptimConfig) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, one per (learning rate, weight decay, scalar or not).

    Each has `params`, `names`, `lr`, `weight_decay` and `peak`, the rate that the schedule multiplies.

    Raises:
        UserError: nothing is trainable, or a multiplier's pattern matches no parameter.
    """
    lr_rules = parse_multipliers(config.lr_multipliers, "--optim.lr-multipliers")
    decay_rules = parse_multipliers(config.decay_multipliers, "--optim.decay-multipliers")
    kernels = decaying(module)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    used: set[str] = set()
    for name, parameter in module.named_parameters():
        multiplier, rate = frozen.multipliers[name], _first(name, lr_rules, used)
        decay = config.weight_decay * _first(name, decay_rules, used) if name in kernels else 0.0
        if multiplier is None:  # a preset's pattern may match nothing but what is frozen
            continue
        peak = config.lr * multiplier * rate
        group = groups.setdefault(
            (peak, decay, parameter.ndim == 0),  # scalars apart: FSDP shards all but them
            {"params": [], "names": [], "lr": peak, "peak": peak, "weight_decay": decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError("nothing is trainable: every parameter is frozen")
    for pattern, _ in [*lr_rules, *decay_rules]:
        if pattern not in used:
            raise UserError(f"pattern '{pattern}' of --optim.*-multipliers matches no parameter")
    return list(groups.values())


def build_optimizer(module: nn.Module, frozen: Freeze, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `module`; locked ones are not in it at all.

    Raises:
        UserError: an unknown name, weight decay with adam, or as `build_groups`.
    """
    if config.name == "adam" and config.weight_decay:
        raise UserError(
            f"--optim.weight-decay is {config.weight_decay:g}, and adam would mix it into its moments: "
            "set it to 0, or take --optim.name adamw"
        )
    groups, betas = build_groups(module, frozen, config), (config.beta1, config.beta2)
    if config.name in ("adamw", "adam"):
        kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
        return kind(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    if config.name == "adafactor":
        return Adafactor(groups, lr=config.lr, beta1=config.beta1, beta2_cap=config.beta2)
    if config.name == "lion":
        return Lion(groups, lr=config.lr, betas=betas)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.beta1)
    raise UserError(f"--optim.name is adamw, adam, adafactor, lion or sgd, got '{config.name}'")


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Puts every group's learning rate to its peak times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def _first(name: str, rules: Sequence[tuple[str, float]], used: set[str]) -> float:
    for pattern, factor in rules:
        if re.fullmatch(pattern, name):
            used.add(pattern)
            return factor
    return 1.0


def summary(optimizer: torch.optim.Optimizer) -> str:
    """One line per group: tensors, parameters, peak learning rate, weight decay."""
    return "\n".join(
        f"group {i}: {len(g['params'])} tensors, {sum(p.numel() for p in g['params']):,} parameters, "
        f"lr={g['peak']:g} weight_decay={g['weight_decay']:g}"
        for i, g in enumerate(optimizer.param_groups)
    )
