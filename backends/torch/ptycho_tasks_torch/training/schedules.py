"""How the learning rate changes during a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ptycho_tasks_torch.options import NetworkOptions

WARM_UP = 0.1
"""`cosine`: share of the training steps in which the rate rises."""
WARM_UP_STEPS = 32
"""The other schedules: training steps in which the rate rises, for any number of epochs."""
EPOCH_SHARE = 0.95
"""`exponential`: share of the rate that an epoch leaves."""
MILESTONES, MILESTONE_SHARE = (0.5, 0.75), 0.1
"""`multi_step`: shares of the epochs after which the rate falls, and what is left of it."""
PLATEAU_EPOCHS, PLATEAU_SHARE = 5, 0.5
"""`plateau`: epochs without improvement after which the rate falls, and what is left of it."""
PLANNED = ("cosine", "multi_step")
"""Schedules whose rate depends on the number of epochs to come."""


def make_rate_share(
    options: NetworkOptions,
    epoch_steps: int,
    history: Sequence[Mapping[str, float]],
    spent: Callable[[], float] = lambda: 0.0,
) -> Callable[[int], float]:
    """Make the function that gives, for a step counted from 0, its share of `learning_rate`.

    Args:
        options: of the training.
        epoch_steps: training steps an epoch.
        history: metrics of the epochs done so far; the function reads it at every call.
        spent: gives the share of `max_minutes` that is over; the larger of this and the share of
            the steps counts.
    """
    epochs = options.epochs
    steps = epochs * epoch_steps

    def warm_up(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP_STEPS)

    def cosine(step: int) -> float:
        done = min(max(step / steps, spent()), 1.0)
        falling = 0.5 * (1 + math.cos(math.pi * done))
        return falling * min(1.0, (done + 1 / steps) / WARM_UP)

    def exponential(step: int) -> float:
        return warm_up(step) * EPOCH_SHARE ** (step // epoch_steps)

    def multi_step(step: int) -> float:
        passed = sum(step // epoch_steps >= share * epochs for share in MILESTONES)
        return warm_up(step) * MILESTONE_SHARE**passed

    def plateau(step: int) -> float:
        values = [epoch[options.monitor] for epoch in history]
        return warm_up(step) * PLATEAU_SHARE ** count_plateaus(values, options.monitor_mode)

    return {
        "cosine": cosine,
        "constant": warm_up,
        "exponential": exponential,
        "multi_step": multi_step,
        "plateau": plateau,
    }[options.scheduler]


def count_plateaus(values: Sequence[float], mode: str) -> int:
    """Count how often no value was better than the best for `PLATEAU_EPOCHS` in a row.

    Args:
        values: one an epoch.
        mode: `min` or `max`, whichever is better.
    """
    sign = -1 if mode == "max" else 1
    best, waited, plateaus = math.inf, 0, 0
    for value in values:
        waited += 1
        if sign * value < best:
            best, waited = sign * value, 0
        elif waited == PLATEAU_EPOCHS:
            plateaus, waited = plateaus + 1, 0
    return plateaus
