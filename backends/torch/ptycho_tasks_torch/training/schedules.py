"""How the learning rate changes during a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ptycho_tasks_torch.options import NetworkOptions

WARM_UP = 0.1
"""Share of the training steps in which the rate rises, where it falls along a cosine."""
WARM_UP_STEPS = 32
"""Training steps in which it rises elsewhere: whatever the epochs."""
EPOCH_SHARE = 0.95
"""`exponential`: share of the rate that an epoch leaves."""
MILESTONES, MILESTONE_SHARE = (0.5, 0.75), 0.1
"""`multi_step`: shares of the epochs after which the rate falls, and what is left of it."""
PLATEAU_EPOCHS, PLATEAU_SHARE = 5, 0.5
"""`plateau`: epochs without improvement after which the rate falls, and what is left of it."""
PLANNED = ("cosine", "multi_step")
"""Schedules of which every step depends on how many epochs are to come."""


def rate_share(
    options: NetworkOptions,
    epoch_steps: int,
    history: Sequence[Mapping[str, float]],
    spent: Callable[[], float] = lambda: 0.0,
) -> Callable[[int], float]:
    """A function of the step, counted from 0, that gives its share of `learning_rate`.

    Args:
        options: of the training.
        epoch_steps: training steps an epoch.
        history: metrics of the epochs done; the function looks at it when it is called.
        spent: share of `max_minutes` that is over; where it is ahead of the steps, it decides.
    """
    epochs = options.epochs
    steps = epochs * epoch_steps

    def rising(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP_STEPS)

    def cosine(step: int) -> float:
        done = min(max(step / steps, spent()), 1.0)
        falling = 0.5 * (1 + math.cos(math.pi * done))
        return falling * min(1.0, (done + 1 / steps) / WARM_UP)

    def exponential(step: int) -> float:
        return rising(step) * EPOCH_SHARE ** (step // epoch_steps)

    def multi_step(step: int) -> float:
        passed = sum(step // epoch_steps >= share * epochs for share in MILESTONES)
        return rising(step) * MILESTONE_SHARE**passed

    def plateau(step: int) -> float:
        values = [epoch[options.monitor] for epoch in history]
        return rising(step) * PLATEAU_SHARE ** plateaus(values, options.monitor_mode)

    return {
        "cosine": cosine,
        "constant": rising,
        "exponential": exponential,
        "multi_step": multi_step,
        "plateau": plateau,
    }[options.scheduler]


def plateaus(values: Sequence[float], mode: str) -> int:
    """How often no value was better than the best for `PLATEAU_EPOCHS` in a row.

    Args:
        values: one an epoch.
        mode: `min` or `max`, whichever is better.
    """
    sign = -1 if mode == "max" else 1
    best, waited, found = math.inf, 0, 0
    for value in values:
        waited += 1
        if sign * value < best:
            best, waited = sign * value, 0
        elif waited == PLATEAU_EPOCHS:
            found, waited = found + 1, 0
    return found
