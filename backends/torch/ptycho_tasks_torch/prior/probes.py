"""Probes of many kinds, drawn at random: what lenses, mirrors, pinholes and diffusers make.

Axis letters: N pixels along one side of a frame, P incoherent modes, G pixels along one side of the
grid on which a probe is propagated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

Image = NDArray[np.float64]
Wave = NDArray[np.complex128]

RADII = (4.0, 18.0)
"""Root mean square radius of the light at N = 64, pixels; in proportion to N otherwise."""
USUAL_RADIUS = 12.0
"""Radius at N = 64 below which a spot is the rarer the narrower it is."""
RIM_SHARE = 0.02
"""Share of the light that may fall on the two outermost rows and columns of a frame."""
OFF_CENTRE = 4.0
"""Pixels that the centre of mass may be off the middle of a frame, at N = 64."""
SEVERAL_MODES = 0.2
"""Share of probes that have two or three modes."""


def draw_probe(
    generator: np.random.Generator, size: int, *, rare: bool = False
) -> NDArray[np.complex64]:
    """A probe (P, N, N) complex64 of unit energy, centred on pixel (N//2, N//2).

    Args:
        generator: draws it.
        size: N.
        rare: whether those of diffusers, gratings, vortices and several beams are among them.
    """
    kinds: list[Callable[[np.random.Generator, int], Wave]] = [_lens, _mirrors, _pinhole, _gaussian]
    shares = [0.6, 0.12, 0.18, 0.1]
    if rare:
        kinds += [_grating, _diffuser, _vortex, _beams]
        shares = [0.42, 0.1, 0.18, 0.08, 0.06, 0.07, 0.04, 0.05]
    make = kinds[generator.choice(len(kinds), p=shares)]
    wave, usual = make(generator, size), USUAL_RADIUS * size / 64
    # Wide spots more often: there is more of the object to learn from.
    while not (_is_usable(wave) and generator.random() < measure_radius(wave) / usual):
        wave = make(generator, size)
    modes = np.stack(_split_coherence(generator, wave))
    return np.asarray(modes / np.linalg.norm(modes), dtype=np.complex64)


def measure_radius(probe: NDArray[np.complexfloating]) -> float:
    """Root mean square distance of the light of (..., N, N) modes from its centre, pixels."""
    return _measure_light(probe)[0]


def _measure_light(probe: NDArray[np.complexfloating]) -> tuple[float, float]:
    """Root mean square radius, and distance of the centre of mass from the middle, pixels."""
    N = probe.shape[-1]
    light = np.square(np.abs(probe)).reshape(-1, N, N).sum(axis=0)
    light /= light.sum()
    along = np.arange(N) - N // 2
    shares = light.sum(axis=1), light.sum(axis=0)
    means = [float(share @ along) for share in shares]
    squares = [float(share @ along**2) for share in shares]
    return math.sqrt(sum(squares) - sum(m**2 for m in means)), math.hypot(*means)


def _is_usable(wave: Wave) -> bool:
    """Whether a wave is neither too narrow nor too wide for its frame."""
    scale = wave.shape[-1] / 64
    radius, off_centre = _measure_light(wave)
    light = np.square(np.abs(wave))
    rim = 1 - light[2:-2, 2:-2].sum() / light.sum()
    is_centred = off_centre < OFF_CENTRE * scale
    return RADII[0] * scale < radius < RADII[1] * scale and rim < RIM_SHARE and bool(is_centred)


def _frequencies(grid: int) -> tuple[Image, Image]:
    """(G, 1) and (1, G) cycles a pixel."""
    q = np.asarray(fft.fftfreq(grid))
    return q[:, None], q[None]


def _focus(pupil: Wave, size: int) -> Wave:
    """The (N, N) middle of the wave that a (G, G) pupil, zero frequency first, makes."""
    first = (len(pupil) - size) // 2
    wave = fft.fftshift(fft.ifft2(pupil))
    return np.asarray(wave[first : first + size, first : first + size])


def _below(x: Image, softness: float) -> Image:
    """1 where x is below 1, 0 above, with a soft edge."""
    return np.asarray(0.5 * (1 - np.tanh((x - 1) / softness)))


def _aberrations(generator: np.random.Generator, q_y: Image, q_x: Image) -> Image:
    """Phase of defocus, astigmatism, coma and spherical aberration, rad; q = 1 is the cutoff."""
    square = np.clip(q_y**2 + q_x**2, 0, 1.7)
    radius, angle = np.sqrt(square), np.arctan2(q_y, q_x)
    turn, skew = generator.uniform(0, 2 * np.pi, 2)
    defocus = generator.normal(0, 10.0) * np.sqrt(generator.random())
    astigmatism, coma, spherical = generator.normal(0, (1.2, 1.0, 0.8))
    return np.asarray(
        defocus * square
        + astigmatism * square * np.cos(2 * (angle - turn))
        + coma * radius**3 * np.cos(angle - skew)
        + spherical * square**2
    )


def _speckle(generator: np.random.Generator, grid: int) -> Image:
    """(G, G) phase of a diffuser in the pupil, rad: smooth, of random depth and grain."""
    grain = grid * generator.uniform(0.01, 0.04)
    field = gaussian_filter(generator.standard_normal((grid, grid)), grain, mode="wrap")
    return np.asarray(field * (3 * generator.random() / field.std()))


def _lens(generator: np.random.Generator, size: int) -> Wave:
    """A lens or zone plate: round pupil, often with a central stop, sometimes with a diffuser."""
    grid = 2 * size
    q_y, q_x = _frequencies(grid)
    cutoff = generator.uniform(0.05, 0.32)
    q_y, q_x = q_y / cutoff, q_x / (cutoff * generator.uniform(0.8, 1.25))
    radius = np.hypot(q_y, q_x)
    softness = 0.01 / cutoff
    pupil = _below(radius, softness)
    if generator.random() < 0.5:
        pupil = pupil * (1 - _below(radius / generator.uniform(0.2, 0.6), 2 * softness))
    phase = _aberrations(generator, q_y, q_x)
    if generator.random() < 0.25:
        phase = phase + _speckle(generator, grid)
    return _focus(pupil * np.exp(1j * phase), size)


def _mirrors(generator: np.random.Generator, size: int) -> Wave:
    """A Kirkpatrick-Baez pair: rectangular pupil."""
    q_y, q_x = _frequencies(2 * size)
    cutoffs = generator.uniform(0.04, 0.2) * np.exp(generator.uniform(-0.4, 0.4, 2))
    q_y, q_x = q_y / cutoffs[0], q_x / cutoffs[1]
    pupil = _below(np.abs(q_y), 0.15) * _below(np.abs(q_x), 0.15)
    return _focus(pupil * np.exp(1j * _aberrations(generator, q_y, q_x)), size)


def _pinhole(generator: np.random.Generator, size: int) -> Wave:
    """A pinhole or its image, nearly round, propagated by Fresnel, with a spherical wavefront."""
    grid = 2 * size
    along = (np.arange(grid) - grid // 2)[:, None]
    radius = size / 64 * generator.uniform(6, 25)
    r = np.hypot(along, along.T * generator.uniform(0.85, 1.15)) / radius
    curvature = generator.uniform(-5, 5) * generator.random()
    wave = _below(r, generator.uniform(0.7, 2.0) / radius) * np.exp(1j * curvature * r**2)
    q_y, q_x = _frequencies(grid)
    # Fresnel number 1 at the distance radius^2: from the pinhole itself to near its far field.
    distance = radius**2 * generator.uniform(0, 0.5) * (generator.random() < 0.7)
    propagator = np.exp(-1j * np.pi * distance * (q_y**2 + q_x**2))
    return _focus(fft.fft2(fft.ifftshift(wave)) * propagator, size)


def _gaussian(generator: np.random.Generator, size: int) -> Wave:
    """A Gaussian beam with a spherical wavefront."""
    along = (np.arange(size) - size // 2)[:, None]
    waist = size / 64 * generator.uniform(5, 18)
    square = (along / waist) ** 2 + (along.T / (waist * generator.uniform(0.7, 1.4))) ** 2
    return np.asarray(np.exp(-square * (1 + 1j * generator.uniform(-4, 4))))


def _grating(generator: np.random.Generator, size: int) -> Wave:
    """A beam behind a grating of one or two directions: a lattice of spots or stripes."""
    wave = _gaussian(generator, size)
    along = (np.arange(size) - size // 2)[:, None]
    turn = generator.uniform(0, np.pi / 2)
    for axis in range(int(generator.integers(1, 3))):
        angle = turn + axis * np.pi / 2
        pitch = size / 64 * generator.uniform(4, 14)
        stripes = np.cos(2 * np.pi * (np.cos(angle) * along + np.sin(angle) * along.T) / pitch)
        if generator.random() < 0.5:
            wave = wave * (1 + generator.uniform(0.3, 1.0) * stripes)
        else:
            wave = wave * np.exp(1j * generator.uniform(0.3, 2.0) * stripes)
    return np.asarray(wave)


def _diffuser(generator: np.random.Generator, size: int) -> Wave:
    """A round beam behind a diffuser whose grains are a few pixels wide: phase, or full speckle."""
    along = (np.arange(size) - size // 2)[:, None]
    radius = size / 64 * generator.uniform(9, 18)
    envelope = _below(np.hypot(along, along.T) / radius, generator.uniform(0.05, 0.3))
    grain = size / 64 * generator.uniform(0.8, 3.0)
    fields = [
        gaussian_filter(generator.standard_normal((size, size)), grain, mode="wrap")
        for _ in range(2)
    ]
    first, second = (field / field.std() for field in fields)
    if generator.random() < 0.5:
        return np.asarray(envelope * np.exp(1j * generator.uniform(0.5, 3.0) * first))
    return np.asarray(envelope * (first + 1j * second))


def _vortex(generator: np.random.Generator, size: int) -> Wave:
    """A lens behind a spiral phase plate of one or two turns."""
    q_y, q_x = _frequencies(2 * size)
    cutoff = generator.uniform(0.08, 0.32)
    q_y, q_x = q_y / cutoff, q_x / cutoff
    spiral = int(generator.integers(1, 3)) * np.arctan2(q_y, q_x)
    phase = _aberrations(generator, q_y, q_x) + spiral
    return _focus(_below(np.hypot(q_y, q_x), 0.01 / cutoff) * np.exp(1j * phase), size)


def _beams(generator: np.random.Generator, size: int) -> Wave:
    """Two or three narrow beams beside each other, or a ring of light."""
    along = (np.arange(size) - size // 2)[:, None]
    scale, curvature = size / 64, generator.uniform(-4, 4)
    if generator.random() < 0.4:
        radius, width = scale * generator.uniform(7, 14), scale * generator.uniform(1.5, 4)
        r = np.hypot(along, along.T)
        return np.asarray(
            np.exp(-(((r - radius) / width) ** 2) + 1j * curvature * (r / radius) ** 2)
        )
    total = np.zeros((size, size), dtype=np.complex128)
    for _ in range(int(generator.integers(2, 4))):
        y, x = generator.uniform(-10, 10, 2) * scale
        square = ((along - y) ** 2 + (along.T - x) ** 2) / (scale * generator.uniform(3, 7)) ** 2
        height = generator.uniform(0.4, 1) * np.exp(2j * np.pi * generator.random())
        total = total + height * np.exp(-square * (1 + 1j * curvature))
    return total


def _split_coherence(generator: np.random.Generator, wave: Wave) -> list[Wave]:
    """One mode, or two or three: those of a beam that trembles, which are its slopes."""
    if generator.random() >= SEVERAL_MODES:
        return [wave]
    count = int(generator.integers(1, 3))
    slopes = [np.gradient(wave, axis=axis) for axis in generator.permutation(2)[:count]]
    shares = generator.uniform(0.03, 0.3, count)
    norm = np.linalg.norm(wave)
    weaker = [
        slope * (norm * np.sqrt(share) / np.linalg.norm(slope))
        for slope, share in zip(slopes, shares, strict=True)
    ]
    return [wave, *weaker]
