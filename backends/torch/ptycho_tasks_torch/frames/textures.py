"""Objects of many kinds to learn from: drawn shapes, and textures like those of nature.

Amplitude and phase of an object are cut from a pool of images that is renewed as learning goes on.

Axis letters: S, T rows and columns of a canvas, H pixels along one side of an image of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import make_object

Image = NDArray[np.float64]
Random = np.random.Generator

SIDE = 288
"""H, where no larger canvases are cut."""
POOL = 64
"""Images that the pool holds at a time."""
RENEWAL = 8
"""Objects that are drawn before the oldest image of the pool is replaced."""
PHASES = (0.05, 4.5)
"""Least and largest difference of an object's highest and lowest phase, rad."""


def _lines(side: int, generator: Random) -> Image:
    return _existing("lines", side, generator)


def _blobs(side: int, generator: Random) -> Image:
    return _existing("blobs", side, generator)


def _siemens(side: int, generator: Random) -> Image:
    return _existing("siemens", side, generator)


def _existing(kind: str, side: int, generator: Random) -> Image:
    """An object as scans are simulated with, its amplitude or its phase."""
    options = SimulationOptions(object=kind, amplitude_min=0.5, phase_range=1.0)  # type: ignore[arg-type]
    made = make_object(options, generator, side)
    return np.asarray(
        2 * np.abs(made) - 1 if generator.random() < 0.5 else np.angle(made) + 0.5, dtype=np.float64
    )


def _cells(side: int, generator: Random) -> Image:
    """Voronoi cells, each of one value, some with walls: grains and tissue."""
    count = int(np.exp(generator.uniform(np.log(12), np.log(600))))
    y, x = np.mgrid[:side, :side]
    tree = cKDTree(generator.uniform(0, side, (count, 2)))
    distance, nearest = tree.query(np.stack([y.ravel(), x.ravel()], axis=1), k=2)
    image = generator.random(count)[nearest[:, 0]]
    if generator.random() < 0.5:
        is_wall = distance[:, 1] - distance[:, 0] < generator.uniform(1, 5)
        image = np.where(is_wall, generator.integers(2), image)
    return np.asarray(image.reshape(side, side))


def _leaves(side: int, generator: Random) -> Image:
    """Discs and rectangles that hide each other, their number falling as the cube of their size:
    the statistics of natural images (Lee, Mumford and Huang, Int. J. Comput. Vis. 41, 35, 2001)."""
    image = np.full((side, side), generator.random())
    least, most = generator.uniform(1.5, 4), generator.uniform(25, 80)
    count = int(generator.uniform(600, 2000))
    share = generator.random(count)
    sizes = (least**-2 + share * (most**-2 - least**-2)) ** -0.5
    roundness, values = generator.random(), generator.random(count)
    for (y, x), size, value in zip(
        generator.uniform(-0.05, 1.05, (count, 2)) * side, sizes, values, strict=True
    ):
        half = size * np.exp(generator.uniform(-0.5, 0.5, 2))
        _put_shape(image, (y, x), half, value, generator.random() < roundness)
    return image


def _particles(side: int, generator: Random) -> Image:
    """Spheres, discs or boxes on an empty background, thickness adding up where they overlap."""
    image = np.zeros((side, side))
    count = int(np.exp(generator.uniform(np.log(5), np.log(150))))
    largest, is_round = generator.uniform(4, 35), generator.random() < 0.7
    is_sphere = is_round and generator.random() < 0.6
    for y, x in generator.uniform(0, side, (count, 2)):
        half = largest * generator.uniform(0.3, 1.0) * np.ones(2)
        _put_shape(image, (y, x), half, generator.uniform(0.4, 1), is_round, is_sphere, adds=True)
    return image


def _put_shape(
    image: Image,
    centre: tuple[float, float],
    half: Image,
    value: float,
    is_round: bool,
    is_sphere: bool = False,
    adds: bool = False,
) -> None:
    """Draw an ellipse or a box of the given half sides in place; a sphere by its thickness."""
    first = np.maximum(np.floor(np.asarray(centre) - half), 0).astype(int)
    last = np.minimum(np.ceil(np.asarray(centre) + half) + 1, image.shape[0]).astype(int)
    if (first >= last).any():
        return
    part = image[first[0] : last[0], first[1] : last[1]]
    y = (np.arange(first[0], last[0]) - centre[0])[:, None] / half[0]
    x = (np.arange(first[1], last[1]) - centre[1])[None] / half[1]
    inside = y**2 + x**2 < 1 if is_round else np.maximum(np.abs(y), np.abs(x)) < 1
    height = value * np.sqrt(np.clip(1 - y**2 - x**2, 0, 1)) if is_sphere else value
    part[...] = np.where(inside, height + (part if adds else 0), part)


def _noise(side: int, generator: Random) -> Image:
    """Gaussian noise whose spectrum falls as a power of the frequency."""
    q = np.hypot(fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None]) + 0.5 / side
    spectrum = fft.rfft2(generator.standard_normal((side, side))) * q ** -generator.uniform(
        0.9, 2.2
    )
    field = np.asarray(fft.irfft2(spectrum, s=(side, side)))
    return np.asarray(field / field.std())


def _levels(side: int, generator: Random) -> Image:
    """Such noise cut into a few levels: sharp edges of every scale, as of minerals and alloys."""
    field = _noise(side, generator)
    thresholds = np.sort(generator.normal(0, 0.9, generator.integers(1, 6)))
    values = generator.random(len(thresholds) + 1)
    steps = values[np.searchsorted(thresholds, field)]
    return np.asarray(steps + generator.uniform(0, 0.15) * field * (generator.random() < 0.5))


def _gratings(side: int, generator: Random) -> Image:
    """Lines or checkers of one pitch, turned, sharp or smooth: test patterns and circuits."""
    turn = generator.uniform(0, np.pi) if generator.random() < 0.6 else 0.0
    y, x = np.mgrid[:side, :side]
    along, across = (np.cos(turn) * y + np.sin(turn) * x, np.cos(turn) * x - np.sin(turn) * y)
    pitches = np.exp(generator.uniform(np.log(3.5), np.log(50), 2))
    wave = np.sin(2 * np.pi * along / pitches[0])
    if generator.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * across / pitches[1])
    return np.asarray(wave if generator.random() < 0.3 else np.sign(wave))


def _grains(side: int, generator: Random) -> Image:
    """Boxes of a pixel or a few, each with a value of its own, or one of two."""
    width = int(generator.integers(1, 6))
    count = -(-side // width)
    values = generator.random((count, count))
    if generator.random() < 0.5:
        values = (values < generator.uniform(0.2, 0.8)).astype(float)
    return np.asarray(np.kron(values, np.ones((width, width)))[:side, :side])


def _mixture(side: int, generator: Random) -> Image:
    """Two textures, each on one side of a border: regions of different matter."""
    first, second = (
        _finish(BASIC[name](side, generator), generator)
        for name in generator.choice(list(BASIC), 2, replace=False)
    )
    border = _noise(side, generator)
    level, spread = generator.normal(0, 0.5), generator.uniform(0.3, 1)
    return np.asarray(np.where(border > level, first, generator.random() + spread * (second - 0.5)))


BASIC: dict[str, Callable[[int, Random], Image]] = {
    "lines": _lines,
    "blobs": _blobs,
    "siemens": _siemens,
    "cells": _cells,
    "leaves": _leaves,
    "particles": _particles,
    "noise": _noise,
    "levels": _levels,
    "gratings": _gratings,
}
KINDS = (*BASIC, "mixture", "mixture")
"""Kinds of textures, in turn; `mixture` is of two others."""
RARER_KINDS = ("grains",)
"""Others, without any likeness of neighbours."""


def _finish(image: Image, generator: Random) -> Image:
    """Blur sharp edges by at most a pixel or so, scale to 0..1 without the few outermost values."""
    blurred = gaussian_filter(image, generator.uniform(0.4, 1.1))
    low, high = np.quantile(blurred[::3, ::3], (0.005, 0.995))
    return np.asarray(np.clip((blurred - low) / max(high - low, 1e-9), 0, 1))


def make_texture(kind: str, generator: Random, side: int = SIDE) -> NDArray[np.float32]:
    """An image (H, H) float32 of a kind of `KINDS` or `RARER_KINDS`, from 0 to 1."""
    make = {**BASIC, "mixture": _mixture, "grains": _grains}[kind]
    return _finish(make(side, generator), generator).astype(np.float32)


class TexturePool:
    """Images from which objects of any contrast are cut.

    What is drawn depends on the seed and the number of the object only, so that learning can go on
    where it was interrupted.
    """

    def __init__(self, seed: int, kinds: Sequence[str] = KINDS, side: int = SIDE) -> None:
        """Make nothing yet: an image is made when it is first drawn.

        Args:
            seed: of the images.
            kinds: of `KINDS` and `RARER_KINDS`.
            side: H.
        """
        self._seed, self._kinds, self._side = seed, kinds, side
        self._made: dict[int, NDArray[np.float32]] = {}

    def draw(self, generator: Random, shape: tuple[int, int], number: int) -> NDArray[np.complex64]:
        """Object (S, T) complex64 with amplitudes of at most 1.

        Args:
            generator: draws the object from the pool.
            shape: (S, T), each at most H.
            number: how many objects were drawn before: it says which images the pool holds.
        """
        oldest = number // RENEWAL
        for index in [index for index in [*self._made] if index < oldest]:
            self._made.pop(index, None)
        first, second = oldest + generator.choice(POOL, 2, replace=False)
        phase = _cut(self._texture(int(first)), generator, shape)
        relation = generator.random()
        # Dense matter absorbs and delays: where the phase is low, so is the amplitude.
        if relation < 0.5:
            amplitude = phase
        elif relation < 0.6:
            amplitude = 1 - phase
        else:
            amplitude = _cut(self._texture(int(second)), generator, shape)
        modulus = _draw_modulus(generator, amplitude)
        angle = _draw_phase_range(generator) * (phase - 0.5)
        return np.asarray(modulus * np.exp(1j * angle), dtype=np.complex64)

    def _texture(self, index: int) -> NDArray[np.float32]:
        made = self._made.get(index)
        if made is None:
            kind = self._kinds[index % len(self._kinds)]
            generator = np.random.default_rng([self._seed, index])
            # Threads that ask at once make the same.
            made = self._made[index] = make_texture(kind, generator, self._side)
        return made


def _cut(
    image: NDArray[np.float32], generator: Random, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """A part of an image, turned and mirrored at random, of a random contrast curve."""
    if generator.random() < 0.5:
        image = image.T
    y, x = (generator.integers(n - m + 1) for n, m in zip(image.shape, shape, strict=True))
    part = image[y : y + shape[0], x : x + shape[1]]
    part = np.flip(part, tuple(axis for axis in (0, 1) if generator.random() < 0.5))
    return np.asarray(part ** np.float32(np.exp(generator.uniform(-0.6, 0.6))))


def _draw_modulus(generator: Random, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """From a lowest amplitude to 1: anything, or nearly transparent as with hard X-rays."""
    is_transparent = generator.random() < 0.3
    lowest = generator.uniform(0.85, 1.0) if is_transparent else generator.uniform(0.0, 0.95)
    return np.asarray(lowest + (1 - lowest) * image, dtype=np.float32)


def _draw_phase_range(generator: Random) -> float:
    least, most = PHASES
    if generator.random() < 0.3:
        return float(np.exp(generator.uniform(np.log(least), np.log(0.6))))
    return float(generator.uniform(0.3, most))
