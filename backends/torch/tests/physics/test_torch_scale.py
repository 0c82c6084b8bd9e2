"""What a photon is in the units of a scan."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_tasks_torch.physics.scale import find_photon


def measure(counts: float, unit: float = 1.0, noise: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(0)
    frames = unit * generator.poisson(counts, (20, 16, 16)).astype(np.float64)
    frames += noise * generator.normal(size=frames.shape)
    return np.sqrt(frames.clip(min=0)).astype(np.float32)


@pytest.mark.parametrize("counts", [0.02, 3.0, 500.0])
def test_frames_that_are_roots_of_counts(counts):
    assert find_photon(measure(counts)) == 1.0


@pytest.mark.parametrize("unit", [1e-6, 0.37, 41.0])
def test_frames_that_were_divided_by_a_constant(unit):
    assert find_photon(measure(0.5, unit)) == pytest.approx(unit, rel=1e-4)


def test_frames_that_were_resampled_show_no_photons():
    assert find_photon(measure(5.0, noise=0.3)) == 0.0


def test_dark_frames():
    assert find_photon(np.zeros((3, 8, 8), np.float32)) == 0.0
