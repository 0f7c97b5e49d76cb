"""Learning-rate factors as pure functions of the step: nothing to save, so a resumed run cannot drift.

t is the number of the step about to be taken, 1..steps; the factor multiplies every group's peak rate.
Source: Scaling Vision Transformers (Zhai et al. 2022), section 3.5 and appendix B; big_vision's schedules.
Cosines that end at a floor: arXiv:2104.11178, appendix A.2, and its repository.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mmvit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves.

    Attributes:
        name: cosine to zero; rsqrt (reciprocal square root, stopped anywhere by a cooldown); constant;
            quarter_cosine and half_cosine: that much of a cosine's period, from the peak down to `floor`.
        warmup: steps of linear warm-up; a number below 1 is a fraction of all steps.
        cooldown: steps of linear descent to zero at the end (rsqrt, constant); below 1: a fraction.
        timescale: steps over which rsqrt begins to fall.
        shift: steps added to rsqrt's clock.
        floor: where quarter_cosine and half_cosine end, as a share 0..1 of the peak.
    """

    name: Literal["cosine", "rsqrt", "constant", "quarter_cosine", "half_cosine"] = "cosine"
    warmup: float = 0.05
    cooldown: float = 0.0
    timescale: float = 10_000.0
    shift: float = 0.0
    floor: float = 0.5


def build_schedule(config: ScheduleConfig, steps: int) -> Callable[[int], float]:
    """The factor 0..1 as a function of the step's number 1..steps.

    The formulas run on t of steps + 1, so that neither the first nor the last step is taken at rate zero.

    Raises:
        UserError: an unknown name, a floor outside 0..1, warm-up and cooldown that do not fit into `steps`.
    """
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    cooldown = config.cooldown * steps if config.cooldown < 1 else config.cooldown
    if warmup < 0 or cooldown < 0 or warmup + cooldown > steps:
        raise UserError(
            f"--schedule.warmup {config.warmup:g} and --schedule.cooldown {config.cooldown:g} "
            f"do not fit into {steps} steps (together {warmup + cooldown:g})"
        )
    if not 0 <= config.floor <= 1:
        raise UserError(f"--schedule.floor is a share 0..1 of the peak rate, got {config.floor:g}")
    total = steps + 1
    if config.name == "cosine":
        return lambda t: cosine(t, total, warmup)
    if config.name == "half_cosine":
        return lambda t: cosine(t, total, warmup, config.floor)
    if config.name == "quarter_cosine":
        return lambda t: quarter_cosine(t, total, warmup, config.floor)
    if config.name == "rsqrt":
        return lambda t: rsqrt(t, total, warmup, cooldown, config.timescale, config.shift)
    if config.name == "constant":
        return lambda t: ramps(t, total, warmup, cooldown)
    raise UserError(
        f"--schedule.name is cosine, rsqrt, constant, quarter_cosine or half_cosine, got '{config.name}'"
    )


def ramps(t: float, total: float, warmup: float, cooldown: float) -> float:
    """min(1, t/warmup) * min(1, (total-t)/cooldown), each 1 when its length is 0; in 0..1."""
    up = min(1.0, t / warmup) if warmup > 0 else 1.0
    down = min(1.0, max(0.0, total - t) / cooldown) if cooldown > 0 else 1.0
    return up * down


def cosine(t: float, total: float, warmup: float, floor: float = 0.0) -> float:
    """Half a cosine from 1 at the end of the warm-up to `floor` at `total`, times the warm-up."""
    falling = 0.5 * (1.0 + math.cos(math.pi * _progress(t, total, warmup)))
    return (floor + (1.0 - floor) * falling) * ramps(t, total, warmup, 0.0)


def quarter_cosine(t: float, total: float, warmup: float, floor: float = 0.0) -> float:
    """A quarter of a cosine, which falls fastest at its end; otherwise as `cosine`."""
    falling = math.cos(0.5 * math.pi * _progress(t, total, warmup))
    return (floor + (1.0 - floor) * falling) * ramps(t, total, warmup, 0.0)


def rsqrt(
    t: float, total: float, warmup: float, cooldown: float, timescale: float = 10_000.0, shift: float = 0.0
) -> float:
    """(1 + (t + shift - warmup)/timescale)^-1/2 after the warm-up, times both ramps."""
    clock = shift if t < warmup else t + shift - warmup
    return (1.0 + clock / timescale) ** -0.5 * ramps(t, total, warmup, cooldown)


def _progress(t: float, total: float, warmup: float) -> float:
    """Where t lies between the end of the warm-up and `total`, 0..1."""
    return min(1.0, max(0.0, (t - warmup) / max(1.0, total - warmup)))
