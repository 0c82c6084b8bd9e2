"""A probe that is learned together with the object.

Data fix a probe and an object only together: a factor, a shift, and a phase ramp can go from one
to the other. They stay with the probe that the refinement begins with: the refined one has the
guess's counts, and the centres of its light, in the object's plane and in the far field, are where
they were at the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ptycho_tasks_torch.physics.forward import far_field, shift_probe

FIRST_SHARE = 0.15
"""Amplitude that a further mode begins with, of the first one's."""


class RefinedProbe(nn.Module):
    """(P, N, N) modes that are trained, beginning with a guess."""

    counts: Tensor
    centre: Tensor
    tilt: Tensor

    def __init__(self, guess: Tensor, modes: int) -> None:
        """Begin.

        Args:
            guess: (Q, N, N) complex64 in counts; the first of them are taken where Q > P.
            modes: P; those that the guess lacks begin as weak products of its first mode with
                Hermite-like polynomials, which is how a beam that trembles or is partly coherent
                differs from a still one.
        """
        super().__init__()
        self.unit = float(guess.abs().max())
        self.modes = nn.Parameter(torch.empty((modes, *guess.shape[1:], 2), device=guess.device))
        for name in ("counts", "centre", "tilt"):
            self.register_buffer(name, torch.empty(() if name == "counts" else 2))
        self.begin(guess)

    def begin(self, guess: Tensor) -> None:
        """Begin with another guess, of which see above."""
        modes = len(self.modes)
        begun = _with_more(guess, modes)[:modes]
        self.modes.data.copy_(torch.view_as_real(begun / self.unit))
        self.counts, self.centre = guess.abs().square().sum(), _centre(guess)
        self.tilt = _centre(far_field(guess))

    def forward(self) -> Tensor:
        """(P, N, N) complex64 in counts, its gauge as the guess has it."""
        modes = torch.view_as_complex(self.modes) * self.unit
        with torch.no_grad():
            flux = modes.abs().square().sum()
            moved, turned = self.centre - _centre(modes), self.tilt - _centre(far_field(modes))
        modes = shift_probe(modes * (self.counts / flux).sqrt(), moved)
        N = modes.shape[-1]
        along = torch.arange(N, device=modes.device) - N // 2
        angle = 2 * torch.pi / N * (turned[0] * along[:, None] + turned[1] * along[None, :])
        made: Tensor = modes * torch.polar(torch.ones_like(angle), angle)
        return made

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        """What `forward` gives in a state, detached."""
        now = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            self.load_state_dict(dict(state))
            made: Tensor = self()
            return made.detach()
        finally:
            self.load_state_dict(now)


def _centre(waves: Tensor) -> Tensor:
    """(2,) float32 mean place (y, x) of the light of (P, N, N) waves, pixels."""
    light = waves.detach().abs().square().sum(dim=0)
    index = torch.arange(light.shape[-1], device=light.device, dtype=light.dtype)
    return torch.stack([(light.sum(dim=1 - axis) * index).sum() for axis in (0, 1)]) / light.sum()


def _with_more(guess: Tensor, modes: int) -> Tensor:
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
