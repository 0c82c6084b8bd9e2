"""The physics steps that the prior corrects."""

from __future__ import annotations

import torch
from torch import Tensor

from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.unrolled.network import LENGTHS, SHOWN, FrequencyFilter, Turn

GAINS = (1.3, 1.2)
MOMENTUM = 0.585
WEAK = (0.0, 1.7)
RAMP = 12
"""Steps over which the momentum grows; in longer runs its second half is stretched."""
SUBSETS = 4


@torch.no_grad()
def run_engine(exposure: Exposure, steps: int) -> tuple[Tensor, Tensor]:
    """The object after so many steps, and the fields that the prior is shown.

    Returns:
        (B, S, T) complex64, and (4, B, S, T) float32: the last gradient along and across the
        object's phase, and the latter filtered as in `SHOWN`.
    """
    frequency_filter = FrequencyFilter(exposure)
    parts = exposure.split_in_turns(SUBSETS)
    pairs = -(-len(parts) // 2)
    coarse = [Turn([part], frequency_filter) for part in parts]
    fine = [Turn(parts[index::pairs], frequency_filter) for index in range(pairs)]
    everything = Turn([exposure], frequency_filter)
    canvas = torch.ones_like(exposure.light).to(torch.complex64)
    gains = torch.tensor(GAINS)[:, None, None, None]
    weights = torch.tensor(WEAK)[:, None].repeat(1, len(LENGTHS))
    velocity = torch.zeros((2, *canvas.shape))
    for k in range(steps):
        last = k == steps - 1
        turns = coarse if 2 * k < steps else fine
        turn = everything if last else turns[k % len(turns)]
        step, lit = turn.step(canvas), turn.lit
        phase = canvas / modulus(canvas)
        along = torch.view_as_real(step * phase.conj()).movedim(-1, 0)
        filtered = lit * frequency_filter(lit * along, weights) / turn.reach
        velocity = gains * along + filtered + _momentum(k, steps) * velocity
        canvas = canvas + phase * torch.complex(velocity[0], velocity[1])
    shown = [frequency_filter(lit * along[1:], torch.tensor([row]))[0] for row in SHOWN]
    return canvas, torch.stack([*along, *shown])


def _momentum(k: int, steps: int) -> float:
    half = RAMP // 2
    if k == steps - 1:
        index = RAMP - 1
    elif k < half:
        index = k
    else:
        index = min(half + (k - half) * (half - 1) // max(1, steps - 1 - half), RAMP - 2)
    return MOMENTUM * index / (RAMP - 1)


def modulus(canvas: Tensor) -> Tensor:
    """Modulus with a finite slope at zero."""
    return (canvas.real.square() + canvas.imag.square() + 1e-4).sqrt()
