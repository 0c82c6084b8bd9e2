"""Scenarios that the prior is learned from: small scans of every kind, simulated.

Each draws its own probe, object, positions, dose and, in some, faults: what a reconstruction is
told of probe and positions is then a little wrong, as it is of measured scans.

Axis letters: F frames, P probe modes, N detector pixels along one side, S, T rows and columns of
the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from ptycho_tasks_torch.frames.textures import Random, TexturePool
from ptycho_tasks_torch.physics.canvas import padded_shape
from ptycho_tasks_torch.physics.exposure import Exposure, find_dark
from ptycho_tasks_torch.prior.probes import draw_probe, measure_radius
from ptycho_tasks_torch.unrolled.correction import LEARNED_POWERS, LEARNED_STEPS, MULTIPLE
from ptycho_tasks_torch.unrolled.network import expose_blocks

VERSION = 2
"""Raised when other scenarios are drawn."""
SIZE = 64
"""N."""
FRAMES = (60, 120)
"""Least and largest number of frames; fewer where they would not fit on the canvas."""
REACH = 126.0
"""Largest distance of two frames along an axis, pixels."""
STEPS, USUAL_STEPS = LEARNED_STEPS, (0.3, 0.9)
"""Least and largest distance of neighbouring frames, in radii of the spot; and the usual ones, of
five scans in six."""
PHOTONS = (LEARNED_POWERS[0], 6.0, LEARNED_POWERS[1])
"""Powers of ten of the photons a frame: least, the middle below which most scans lie, largest."""
FEW_PHOTONS = 0.85
"""Share of scans below the middle: there is more to learn."""
FAULTY = 0.15
"""Share of scans with faults."""
MARGIN = 2
"""Pixels around the frames for wrong positions."""
UNSCALED = 0.3
"""Share of scans in which the amplitude of the object is about 1 on average, not at most 1: those
whose probe was known but for its scale."""


@dataclass(frozen=True)
class Scenario:
    """A simulated scan, as a reconstruction sees it, and what it shows."""

    exposure: Exposure
    """One canvas."""
    truth: Tensor
    """(1, S, T) complex64."""
    photons: float
    """Mean photons a frame."""

    def to(self, device: torch.device) -> Scenario:
        """The same on a device."""
        exposure = self.exposure
        moved = replace(
            exposure,
            amplitude=exposure.amplitude.to(device),
            probes=exposure.probes.to(device),
            places=exposure.places.to(device),
        )
        return replace(self, exposure=moved, truth=self.truth.to(device))


def draw_scenario(
    generator: Random, pool: TexturePool, number: int, *, rare: bool = False
) -> Scenario:
    """Simulate a scan.

    Args:
        generator: draws everything but the images of the pool.
        pool: of objects.
        number: how many scans were drawn before; see `TexturePool.draw`.
        rare: see `draw_probe`.
    """
    probe = draw_probe(generator, SIZE, rare=rare)
    positions = draw_positions(generator, measure_radius(probe), limit_frames(len(probe)))
    last = np.ceil(positions.max(axis=0) + MARGIN).astype(int)
    shape = padded_shape(last.tolist(), SIZE, MULTIPLE)
    truth = torch.from_numpy(pool.draw(generator, shape, number))[None]
    photons = _draw_photons(generator)
    exact = _expose(probe, positions, shape)
    with torch.no_grad():
        expected = (exact.predict(truth).square() - exact.dark).clamp(min=0)
    scale = photons / SIZE**2 / float(expected.mean())
    counts = generator.poisson(expected.double().numpy() * scale).astype(np.float32)
    mean = float(counts.mean())
    amplitude = torch.from_numpy(np.sqrt(counts / mean + find_dark(mean)).astype(np.float32))
    factor = math.sqrt(scale / mean)
    if generator.random() < UNSCALED:
        lit = float((exact.illumination * truth.abs().square()).sum() / exact.illumination.sum())
        factor, truth = factor * math.sqrt(lit), truth / math.sqrt(lit)
    if generator.random() < FAULTY:
        probe, positions = _mistake(generator, probe, positions)
        exact = _expose(probe, positions, shape)
    exposure = replace(
        exact, amplitude=amplitude, probes=exact.probes * np.float32(factor), counts=mean
    )
    return Scenario(exposure, truth, photons)


def limit_frames(modes: int) -> tuple[int, int]:
    """Least and largest number of frames: each mode costs as much as all frames once more."""
    return FRAMES if modes == 1 else (FRAMES[0] // 2, FRAMES[1] // 2)


def _draw_photons(generator: Random) -> float:
    least, middle, most = PHOTONS
    if generator.random() < FEW_PHOTONS:
        return float(10 ** generator.uniform(least, middle))
    return float(10 ** generator.uniform(middle, most))


def _expose(
    probe: NDArray[np.complex64], positions: NDArray[np.float64], shape: tuple[int, int]
) -> Exposure:
    """Frames that are not measured yet."""
    relative = torch.from_numpy(positions.astype(np.float32))[None, :, None]
    dark = torch.zeros((1, len(positions), SIZE, SIZE))
    return expose_blocks(dark, relative, torch.from_numpy(probe), torch.ones(1), shape, photon=0)


def draw_positions(
    generator: Random, radius: float, frames: tuple[int, int]
) -> NDArray[np.float64]:
    """Positions (F, 2) of frames' corners on a canvas, pixels, at least `MARGIN`.

    Args:
        generator: draws geometry, step and number.
        radius: of the spot, pixels.
        frames: least and largest number.
    """
    least, most = np.log(USUAL_STEPS if generator.random() < 5 / 6 else STEPS)
    step = max(radius * float(np.exp(generator.uniform(least, most))), 1.0)
    count = int(generator.integers(frames[0], frames[1] + 1))
    makers: list[Callable[[Random, int], NDArray[np.float64]]] = [_raster, _jittered, _spiral]
    makers += [_hexagonal, _fly_lines]
    make = makers[generator.choice(len(makers), p=[0.15, 0.35, 0.2, 0.15, 0.15])]
    unit = make(generator, count) * [1.0, generator.uniform(0.8, 1.25)]
    turn = 0.0 if generator.random() < 0.7 else generator.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    positions = step * unit @ rotation
    positions -= positions.min(axis=0)
    return np.asarray(positions[(positions <= REACH).all(axis=1)] + MARGIN)


def _raster(generator: Random, count: int) -> NDArray[np.float64]:
    """Rows and columns one apart."""
    side = math.ceil(math.sqrt(count))
    index = np.arange(count)
    return np.stack([index // side, index % side], axis=1).astype(np.float64)


def _jittered(generator: Random, count: int) -> NDArray[np.float64]:
    grid = _raster(generator, count)
    return grid + generator.uniform(-0.4, 0.4, grid.shape)


def _hexagonal(generator: Random, count: int) -> NDArray[np.float64]:
    grid = _raster(generator, count)
    grid[:, 1] += 0.5 * (grid[:, 0] % 2)
    return grid * [math.sqrt(0.75), 1.0]


def _spiral(generator: Random, count: int) -> NDArray[np.float64]:
    """Fermat's spiral, one frame in a unit square (Huang et al., Opt. Express 22, 12634, 2014)."""
    index = np.arange(count)
    radius, angle = np.sqrt(index / np.pi), index * np.pi * (3 - math.sqrt(5))
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)


def _fly_lines(generator: Random, count: int) -> NDArray[np.float64]:
    """Rows of frames close to each other, as of a stage that does not stop."""
    density = generator.uniform(2, 6)
    side = math.ceil(math.sqrt(count / density))
    rows, columns = np.divmod(np.arange(count), math.ceil(count / side))
    positions = np.stack([rows.astype(np.float64), columns / density], axis=1)
    return positions + generator.normal(0, 0.03, positions.shape)


def _mistake(
    generator: Random, probe: NDArray[np.complex64], positions: NDArray[np.float64]
) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    """A probe and positions that are a little wrong: some 5 % of flux, a tenth of a radian of
    defocus and astigmatism, up to 0.3 pixels."""
    errors = generator.normal(0, 0.3 * generator.random(), positions.shape)
    moved = positions + np.clip(errors - errors.mean(axis=0), -MARGIN, MARGIN)
    q = np.asarray(fft.fftfreq(probe.shape[-1]))
    square, skew = q[:, None] ** 2 + q[None] ** 2, q[:, None] ** 2 - q[None] ** 2
    spectrum = fft.fft2(probe.astype(np.complex128))
    power = np.square(np.abs(spectrum)).sum(axis=0)
    # In units in which the root mean square frequency of the probe is 1.
    unit = float((square * power).sum() / power.sum())
    defocus, astigmatism = generator.normal(0, 0.08 * generator.random(), 2) / unit
    wrong = fft.ifft2(spectrum * np.exp(1j * (defocus * square + astigmatism * skew)))
    flux = math.exp(generator.normal(0, 0.025))
    return np.asarray(wrong * flux, dtype=np.complex64), moved
