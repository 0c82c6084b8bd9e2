"""Simulated objects to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import make_object

POOL = 24
"""Objects to cut canvases from."""
LEAST_SIDE = 256
"""Pixels; a smaller object would hold only the middle of the longest lines."""
AMPLITUDES, PHASES = (0.2, 0.9), (0.3, 2.4)
"""Ranges of an object's lowest amplitude, the highest being 1, and of the difference of its highest
and lowest phase, rad."""


class ObjectPool:
    """Simulated objects of several kinds, from which canvases of any contrast are cut."""

    def __init__(self, kinds: Sequence[str], shape: tuple[int, int], seed: int) -> None:
        """Simulate nothing yet: an object is made when it is first drawn.

        Args:
            kinds: as in `SimulationOptions.object`, in turn.
            shape: (S, T) of the largest canvas to cut.
            seed: of the random objects.
        """
        self._kinds, self._seed = kinds, seed
        self._side = max(LEAST_SIDE, math.ceil(1.25 * max(shape)))
        self._made = _share_objects(tuple(kinds), self._side, seed)

    def draw(self, generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.complex64]:
        """(S, T) complex64 part of an object, turned and mirrored at random."""
        image = self._object(int(generator.integers(POOL)))
        image = np.rot90(image, int(generator.integers(4)), axes=(1, 2))
        if generator.random() < 0.5:
            image = image.swapaxes(1, 2)
        y, x = (generator.integers(n - m + 1) for n, m in zip(image.shape[1:], shape, strict=True))
        amplitude, phase = image[:, y : y + shape[0], x : x + shape[1]]
        lowest = generator.uniform(*AMPLITUDES)
        modulus = lowest + (1 - lowest) * amplitude
        angle = generator.uniform(*PHASES) * (phase - 0.5)
        return np.asarray(modulus * np.exp(1j * angle), dtype=np.complex64)

    def _object(self, index: int) -> NDArray[np.float64]:
        """(2, H, W) amplitude and phase, each from 0 to 1."""
        # Threads that ask at once make the same.
        if index not in self._made:
            options = SimulationOptions(
                object=self._kinds[index % len(self._kinds)],  # type: ignore[arg-type]
                amplitude_min=0.5,
                phase_range=1.0,
            )
            image = make_object(options, np.random.default_rng([self._seed, index]), self._side)
            self._made[index] = np.stack([2 * np.abs(image) - 1, np.angle(image) + 0.5])
        return self._made[index]


@lru_cache(maxsize=1)
def _share_objects(kinds: tuple[str, ...], side: int, seed: int) -> dict[int, NDArray[np.float64]]:
    """The objects that were made already, by number: the scans of a training share them."""
    return {}
