"""Simulated objects to learn from."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_tasks_torch.frames.objects import AMPLITUDES, PHASES, ObjectPool


@pytest.mark.parametrize("shape", [(24, 264), (272, 40)])
def test_objects_are_of_the_shape_and_the_ranges_promised(shape):
    generator = np.random.default_rng(0)
    objects = ObjectPool(("lines", "blobs", "siemens"), shape, seed=0)
    drawn = [objects.draw(generator, shape) for _ in range(24)]
    assert {one.shape for one in drawn} == {shape}
    assert {one.dtype for one in drawn} == {np.dtype(np.complex64)}
    moduli, phases = np.abs(drawn), np.angle(drawn)
    assert moduli.min() >= AMPLITUDES[0] - 1e-5
    assert moduli.max() <= 1 + 1e-5
    assert np.abs(phases).max() <= PHASES[1] / 2 + 1e-5
    contrasts = np.ptp(phases, axis=(1, 2))
    assert contrasts.max() > 2 * contrasts.min()
