"""A probe that is learned together with the object.

Diffraction fixes probe and object only together: a factor, a shift, and a phase ramp can move from
one to the other. The refined probe therefore keeps those of the guess: its counts, and the centres
of its light in the plane of the object and in the far field.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_tasks_torch.physics.forward import far_field, shift_probe

SAME_PROBE = 0.02
"""Largest difference between two guesses of the same probe, over their norm."""
FIRST_SHARE = 0.15
"""Amplitude of a new mode, over that of the first mode."""


def is_same_probe(one: NDArray[np.complex64], other: NDArray[np.complex64]) -> bool:
    """Whether two guesses, (P, N, N) and (Q, N, N) complex64 of any scale, are of one probe."""
    return one.shape == other.shape and probe_distance(one, other) <= SAME_PROBE


def probe_distance(one: NDArray[np.complex64], other: NDArray[np.complex64]) -> float:
    """Norm of the difference of two (P, N, N) complex64 probes, each over its own norm."""
    return float(np.linalg.norm(one / np.linalg.norm(one) - other / np.linalg.norm(other)))


class RefinedProbe(nn.Module):
    """(P, N, N) complex64 modes that are trained, from a guess on."""

    counts: Tensor
    centre: Tensor
    tilt: Tensor

    def __init__(self, guess: Tensor, modes: int) -> None:
        """Start from a guess.

        Args:
            guess: (Q, N, N) complex64 in counts; where Q > P, its first modes are taken.
            modes: P; a mode that the guess lacks begins as a weak product of its first mode with a
                Hermite-like polynomial. A beam that vibrates or is partly coherent has such modes.
        """
        super().__init__()
        self.unit = float(guess.abs().max())
        self.modes = nn.Parameter(torch.empty((modes, *guess.shape[1:], 2), device=guess.device))
        for name in ("counts", "centre", "tilt"):
            self.register_buffer(name, torch.empty(() if name == "counts" else 2))
        self.start_from(guess)

    def start_from(self, guess: Tensor) -> None:
        """Start from another guess, as above."""
        count = len(self.modes)
        modes = _add_modes(guess, count)[:count]
        self.modes.data.copy_(torch.view_as_real(modes / self.unit))
        self.counts, self.centre = guess.abs().square().sum(), _centre(guess)
        self.tilt = _centre(far_field(guess))

    def forward(self) -> Tensor:
        """(P, N, N) complex64 in counts; factor, shift and phase ramp are those of the guess."""
        modes = torch.view_as_complex(self.modes) * self.unit
        with torch.no_grad():
            flux = modes.abs().square().sum()
            moved, turned = self.centre - _centre(modes), self.tilt - _centre(far_field(modes))
        modes = shift_probe(modes * (self.counts / flux).sqrt(), moved)
        N = modes.shape[-1]
        along = torch.arange(N, device=modes.device) - N // 2
        angle = 2 * torch.pi / N * (turned[0] * along[:, None] + turned[1] * along[None, :])
        probe: Tensor = modes * torch.polar(torch.ones_like(angle), angle)
        return probe

    def evaluate(self, state: Mapping[str, Tensor]) -> Tensor:
        """The result of `forward` in another state, without gradients."""
        current = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            self.load_state_dict(dict(state))
            probe: Tensor = self()
            return probe.detach()
        finally:
            self.load_state_dict(current)


def _centre(waves: Tensor) -> Tensor:
    """(2,) float32 mean place (y, x) of the light of (P, N, N) waves, pixels."""
    light = waves.detach().abs().square().sum(dim=0)
    index = torch.arange(light.shape[-1], device=light.device, dtype=light.dtype)
    return torch.stack([(light.sum(dim=1 - axis) * index).sum() for axis in (0, 1)]) / light.sum()


def _add_modes(guess: Tensor, modes: int) -> Tensor:
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
    for shape in shapes[: max(modes - len(guess), 0)]:
        mode = guess[0] * shape
        further.append(mode * (FIRST_SHARE * guess[0].norm() / mode.norm()))
    return torch.cat([guess, torch.stack(further)]) if further else guess
