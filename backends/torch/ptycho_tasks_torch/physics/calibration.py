"""Fit size, defocus and astigmatism of a probe to frames.

On a beamline these are the usual errors of a guess. A descent pixel by pixel does not remove them:
it ends at the nearest probe that explains the frames somehow. They are four numbers. As a function
of them, the misfit of frames after some physics steps has one clear minimum, if the search begins
near it; a grid finds where to begin.

Axis letters: P probe modes, N pixels along one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks_torch.physics.forward import far_field, spot_radius

UNIT = 0.1
"""The unit of all four numbers: changes the spot by about a tenth of its radius."""
SIZES = (-3, -2, -1, 0, 1, 2, 3)
DEFOCI = (-4, -2, -1, 0, 1, 2, 4)
"""The grid, in those units; it still finds a probe that is off by a third."""
FILLED, DISTANCES = 0.3, 12
"""Radius of the widest spot of a wide search, over N, and number of distances on each side."""
FARTHEST = 1e6
"""Largest misfit that counts, over that of the guess."""
PINHOLES, RADII = (0.04, 0.4), 60
"""Least and largest radius of a pinhole, over N, and number of radii."""
CONES = 0.005, 0.3
"""Least and largest radius of the cone of light behind a curved pinhole, over N."""
PINHOLES_TRIED = 8
"""Of those whose far fields are most like the mean frame."""
TRIALS, ENOUGH = 60, 0.05
"""Number of probes to try after the grid, and the change of the numbers that ends the search."""


def calibrate_probe(guess: Tensor, misfit: Callable[[Tensor], float]) -> Tensor:
    """Find the size, defocus and astigmatism with the least misfit.

    Args:
        guess: (P, N, N) complex64; all its modes change alike.
        misfit: gives the misfit of such a probe.

    Returns:
        (P, N, N) complex64 with the flux of the guess.
    """
    lens = Lens(guess)

    def cost(numbers: NDArray[np.float64]) -> float:
        value = misfit(lens(numbers))
        return value if math.isfinite(value) else math.inf

    start = _step_to_minimum(cost)
    if start is not None:
        return lens(start)
    # It takes a tenth of a second to import, and few scans need it.
    from scipy.optimize import minimize

    start = min((np.array([*place, 0.0, 0.0]) for place in product(SIZES, DEFOCI)), key=cost)
    simplex = np.vstack([start, start + np.eye(len(start)) / 2])
    result = minimize(
        cost,
        start,
        method="Nelder-Mead",
        options={"maxfev": TRIALS, "initial_simplex": simplex, "xatol": ENOUGH, "fatol": 0.0},
    )
    return lens(result.x)


def _step_to_minimum(cost: Callable[[NDArray[np.float64]], float]) -> NDArray[np.float64] | None:
    """The lowest points of the parabolas along each number, about the guess; None where a change of
    a single number is better than the guess, which is then not near the minimum."""
    numbers = np.eye(4)
    middle = cost(np.zeros(4))
    # A side without a misfit is as bad as need be.
    sides = np.array([[cost(-row), cost(row)] for row in numbers]).clip(max=FARTHEST * middle)
    if not (sides > middle).all():
        return None
    bend = sides.sum(axis=1) - 2 * middle
    lowest = (sides[:, 0] - sides[:, 1]) / (2 * bend)
    return lowest if cost(lowest) < middle else np.zeros(4)


def search_widely(focus: Tensor, misfit: Callable[[Tensor], float]) -> Tensor:
    """Find the probe with the least misfit among defocused ones, on both sides of the focus, and
    pinholes of any size.

    A pinhole's far field changes its sign from ring to ring, which a probe of its modulus and of no
    phase lacks: no defocus leads from one to the other.

    Args:
        focus: (P, N, N) complex64.
        misfit: gives the misfit of such a probe.
    """
    lens, N = Lens(focus), focus.shape[-1]
    largest = FILLED * N / (UNIT * spot_radius(focus))
    distances = np.geomspace(min(1.0, largest / 2), largest, DISTANCES)
    paths = [np.array([0.0, path, 0.0, 0.0]) for path in (*distances, *-distances)]
    probe: Tensor = min([focus, *map(lens, paths), *_list_pinholes(focus)], key=misfit)
    return probe


def _list_pinholes(focus: Tensor) -> list[Tensor]:
    """(1, N, N) pinholes whose far fields are most like that of `focus`, flat and curved to either
    side: the far field does not tell which."""
    N = focus.shape[-1]
    along = torch.arange(N, device=focus.device) - N // 2
    r = torch.hypot(along[:, None].float(), along[None, :].float())
    aperture = far_field(focus).abs().square().sum(dim=0).sqrt()
    cones = (0.0, *np.geomspace(*CONES, DISTANCES))
    found = []
    for radius in np.geomspace(*PINHOLES, RADII) * N:
        hole = torch.sigmoid(radius - r)
        for cone in cones:
            pinhole = torch.polar(hole, math.pi * cone / radius * r**2)
            pinhole = pinhole * (focus.norm() / hole.norm())
            found.append((float((far_field(pinhole).abs() * aperture).sum()), pinhole[None]))
    found.sort(key=lambda pair: -pair[0])
    return [wave for _, pinhole in found[:PINHOLES_TRIED] for wave in (pinhole, pinhole.conj())]


class Lens:
    """Changes a probe's size, defocus and two astigmatisms."""

    def __init__(self, guess: Tensor) -> None:
        """Take a (P, N, N) complex64 probe."""
        self._guess = guess
        N = guess.shape[-1]
        q = torch.fft.fftfreq(N, device=guess.device)
        y, x = q[:, None], q[None, :]
        self._aberrations = torch.stack([y**2 + x**2, y**2 - x**2, 2 * y * x])
        # Propagation moves a wave of frequency q by the distance times q.
        self.distance = UNIT * spot_radius(guess) * N / spot_radius(far_field(guess))

    def __call__(self, numbers: NDArray[np.float64]) -> Tensor:
        """The changed probe, (P, N, N) complex64 with the flux of the guess.

        Args:
            numbers: logarithm of the size, defocus, astigmatism along the axes and the diagonals,
                each in units that change the spot by about `UNIT` of its radius. The phases in
                Fourier space are those of a Fresnel propagation, pi times distance times frequency
                squared (Goodman, Introduction to Fourier Optics, chapter 4).
        """
        wave = magnify(self._guess, math.exp(UNIT * numbers[0]))
        paths = numbers[1:, None, None] * self._aberrations.cpu().numpy()
        angle = torch.from_numpy(-math.pi * self.distance * paths.sum(axis=0)).to(wave.device)
        turn = torch.polar(torch.ones_like(angle), angle).to(wave.dtype)
        probe: Tensor = torch.fft.ifft2(torch.fft.fft2(wave) * turn)
        probe = probe * (self._guess.norm() / probe.norm())
        return probe


def magnify(wave: Tensor, factor: float) -> Tensor:
    """Magnify a (..., N, N) complex64 wave by `factor` about pixel (N//2, N//2).

    By trigonometric interpolation; dark where the wave does not reach.
    """
    N = wave.shape[-1]
    place = (torch.arange(N, dtype=torch.float64, device=wave.device) - N // 2) / factor
    k = torch.fft.fftfreq(N, d=1 / N, dtype=torch.float64, device=wave.device)
    along = torch.exp(2j * torch.pi / N * k[:, None] * place[None, :]) / N
    along = along * (place.abs() <= N // 2)
    spectrum = torch.fft.fft2(torch.fft.ifftshift(wave.to(torch.complex128), dim=(-2, -1)))
    result: Tensor = along.T @ spectrum @ along
    return result.to(wave.dtype)
