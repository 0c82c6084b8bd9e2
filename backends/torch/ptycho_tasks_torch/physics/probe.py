"""Probes of several modes, and what of them diffraction does not fix.

Diffraction fixes probe and object only together: a factor, a shift, and a phase ramp can move from
one to the other. A probe that is fitted therefore keeps those of its guess: its counts, and the
centres of its light in the plane of the object and in the far field.

Axis letters: P, Q probe modes, N detector pixels along one side.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks_torch.physics.forward import far_field, shift_probe

SAME_PROBE = 0.02
"""Largest difference between two guesses of the same probe, over their norm."""
LEAST_SIZE = 1e-5
"""Norm of a mode that is none, over that of the strongest: what rounding leaves."""
SHIFTS = 4
"""To bring light to its place: what comes in at the other side moves the centre back."""
FIRST_SHARE = 0.15
"""Amplitude of a new mode, over that of the first mode."""


def is_same_probe(one: NDArray[np.complex64], other: NDArray[np.complex64]) -> bool:
    """Whether two guesses, (P, N, N) and (Q, N, N) complex64 of any scale, are of one probe."""
    return one.shape == other.shape and probe_distance(one, other) <= SAME_PROBE


def probe_distance(one: NDArray[np.complex64], other: NDArray[np.complex64]) -> float:
    """Norm of the difference of two (P, N, N) complex64 probes, each over its own norm."""
    return float(np.linalg.norm(one / np.linalg.norm(one) - other / np.linalg.norm(other)))


class Gauge:
    """What diffraction does not fix of a probe."""

    def __init__(self, probe: Tensor) -> None:
        """Take it from a (P, N, N) complex64 probe."""
        self._flux = probe.abs().square().sum()
        self._centre, self._tilt = _centre(probe), _centre(far_field(probe))

    def keep(self, modes: Tensor) -> Tensor:
        """(Q, N, N) complex64 modes with this factor, phase ramp and shift."""
        return self.keep_both(modes, modes.new_ones((1, 1, 1)))[0]

    def keep_both(
        self, modes: Tensor, canvas: Tensor, *, moves: bool = True, turns: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(Q, N, N) complex64 modes with this factor and, if it `moves` and `turns` them, shift and
        phase ramp; and the (1, S, T) complex64 object with which they give the same frames as with
        `canvas`."""
        factor = (self._flux / modes.abs().square().sum()).sqrt()
        modes, canvas = modes * factor, canvas / factor
        turned = (self._tilt - _centre(far_field(modes))) / modes.shape[-1]
        for _ in range(SHIFTS if moves else 0):
            step = self._centre - _centre(modes)
            modes, canvas = shift_probe(modes, step), shift_probe(canvas, step)
        if turns:
            modes, canvas = modes * _ramp(modes, turned), canvas * _ramp(canvas, -turned)
        return modes, canvas


def take_lit(modes: Tensor) -> Tensor:
    """Those of (P, N, N) complex64 modes that hold light."""
    return modes[modes.flatten(1).any(dim=1)]


def sort_modes(modes: Tensor, guess: Tensor) -> Tensor:
    """Orthogonal modes that give the same frames, the strongest first.

    Incoherent modes may be mixed by any unitary matrix; the phase of the strongest is that of the
    strongest mode of the guess.

    Args:
        modes: (P, N, N) complex64.
        guess: (Q, N, N) complex64.
    """
    _, sizes, rows = torch.linalg.svd(modes.flatten(1), full_matrices=False)
    ordered = (sizes[:, None] * rows).reshape(modes.shape)
    strongest = guess[guess.abs().square().sum(dim=(1, 2)).argmax()]
    overlap = (ordered[0].conj() * strongest).sum()
    phase = torch.sgn(overlap) if overlap else 1
    return torch.cat([ordered[:1] * phase, ordered[1:]])


def add_modes(guess: Tensor, modes: int) -> Tensor:
    """(P, N, N) complex64: the strongest modes of a guess, and further ones where it lacks them.

    Modes of a guess come in any order and overlap: those that are taken are the orthogonal ones
    that hold most of its light, and get the light of the others. A mode that is added is a weak
    product of the strongest with a Hermite-like polynomial. A beam that vibrates or is partly
    coherent has such modes.

    Args:
        guess: (Q, N, N) complex64.
        modes: P.
    """
    if len(guess) > 1:
        guess = sort_modes(guess, guess)
        sizes = torch.linalg.vector_norm(guess, dim=(1, 2))
        # What is dark, or the same as another, is lacking.
        guess = guess[sizes > LEAST_SIZE * sizes[0]]
    if modes < len(guess):
        strongest: Tensor = guess[:modes] * (guess.norm() / guess[:modes].norm())
        return strongest
    N = guess.shape[-1]
    along = torch.arange(N, device=guess.device, dtype=torch.float32) - N // 2
    y, x = along[:, None], along[None, :]
    shapes = [
        y + 0 * x,
        x + 0 * y,
        y * x,
        y**2 - x**2,
        y**2 + x**2 - N**2 / 6,
        y**2 * x,
        y * x**2,
    ]
    further = []
    for shape in shapes[: modes - len(guess)]:
        mode = guess[0] * shape
        # A spot of one pixel has none.
        if mode.any():
            further.append(mode * (FIRST_SHARE * guess[0].norm() / mode.norm()))
    return torch.cat([guess, torch.stack(further)]) if further else guess


def _ramp(waves: Tensor, turned: Tensor) -> Tensor:
    """(S, T) complex64 phase ramp of so many turns a pixel along (y, x), for (..., S, T) waves."""
    along, across = (
        2 * torch.pi * turns * (torch.arange(side, device=turned.device) - side // 2)
        for side, turns in zip(waves.shape[-2:], turned, strict=True)
    )
    angle = along[:, None] + across
    return torch.polar(torch.ones_like(angle), angle)


def _centre(waves: Tensor) -> Tensor:
    """(2,) float32 mean place (y, x) of the light of (P, N, N) waves, pixels."""
    light = waves.abs().square().sum(dim=0)
    index = torch.arange(light.shape[-1], device=light.device, dtype=light.dtype)
    return torch.stack([(light.sum(dim=1 - axis) * index).sum() for axis in (0, 1)]) / light.sum()
