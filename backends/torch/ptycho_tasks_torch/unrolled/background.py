"""Whether frames hold light that is not the probe's.

An object gives way to such light where it can. What it cannot explain in the mean of all frames is
much of what it leaves then; beside a wrong probe, or at wrong positions, it is little of that.
"""

from __future__ import annotations

from torch import Tensor

from ptycho_tasks_torch.physics.exposure import Exposure

EXPLAINS, FALLS = 0.6, 1.5
"""Share of the misfit beyond noise that a background must explain beside an object that has given
way to it; less where that misfit is less than noise, by this power of how much. Right ones have
explained 0.7 and more, and 0.1 of a misfit that was a third of noise; wrong probes and positions
left half as much to a background, or less."""
NOISY = 1.1
"""A misfit of at most so many times that of photon noise is noise."""


def suspect_background(exposure: Exposure, canvas: Tensor) -> Tensor | None:
    """(N, N) background of an exposure, as of `measure_background`, where an object leaves so much
    to it that there may be one.

    Args:
        exposure: the frames.
        canvas: (B, S, T) complex64 object.
    """
    misfit, noise = exposure.measure_misfit(canvas), exposure.measure_noise(canvas)
    if misfit <= NOISY * noise:
        return None
    background, gain = exposure.measure_background(canvas)
    return background if may_explain(gain, misfit - noise, noise) else None


def may_explain(gain: float, beyond: float, noise: float) -> bool:
    """Whether a background that lowers a misfit by so much may be true.

    Args:
        gain: by how much.
        beyond: the misfit beyond that of noise.
        noise: the misfit of noise.
    """
    share = EXPLAINS * min(1.0, max(beyond, 0.0) / noise) ** FALLS if noise else EXPLAINS
    return gain >= share * beyond
