"""Modes of a probe, and what diffraction does not fix of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptycho_tasks_torch.physics.forward import intensities
from ptycho_tasks_torch.physics.probe import Gauge, add_modes, sort_modes


def centres(waves: np.ndarray) -> np.ndarray:
    """(4,) where the light of (P, N, N) modes lies, in the object's plane and in the far field."""
    found = []
    for field in (waves, np.fft.fftshift(np.fft.fft2(waves), axes=(-2, -1))):
        light = (np.abs(field) ** 2).sum(axis=0, dtype=np.float64)
        index = np.arange(len(light))
        found += [(light.sum(axis=1 - axis) * index).sum() / light.sum() for axis in (0, 1)]
    return np.array(found)


def flux(waves: np.ndarray) -> float:
    return float((np.abs(waves) ** 2).sum(dtype=np.float64))


def unit(waves: np.ndarray) -> np.ndarray:
    return waves / math.sqrt(flux(waves))


def test_flux_shift_and_tilt_that_are_fitted_are_taken_back(scan):
    guess, N = torch.from_numpy(scan.probe), scan.size
    ramp = torch.exp(2j * math.pi * torch.arange(N)[None, :] / N)
    again = Gauge(guess).keep(1.3 * ramp * torch.roll(guess, 2, dims=-2)).numpy()
    assert flux(again) == pytest.approx(flux(scan.probe), rel=1e-4)
    np.testing.assert_allclose(centres(again), centres(scan.probe), atol=0.02)
    assert abs(np.vdot(unit(scan.probe), unit(again))) > 0.999


@pytest.mark.parametrize("modes", [1, 2, 8])
def test_modes_are_added_or_left_out(scan, modes):
    two = torch.from_numpy(np.concatenate([scan.probe, 0.3 * scan.probe[:, ::-1]]))
    made = add_modes(two, modes).numpy()
    assert made.shape == (modes, 32, 32)
    assert np.linalg.matrix_rank(made.reshape(modes, -1)) == modes
    np.testing.assert_array_equal(made[:2], two[:modes])


def test_sorted_modes_are_orthogonal_and_give_the_same_frames(scan):
    modes = add_modes(torch.from_numpy(scan.probe), 3).flip(0)
    made = sort_modes(modes, torch.from_numpy(scan.probe))
    patch = torch.polar(torch.ones(32, 32), torch.rand(32, 32))
    before, after = intensities(patch, modes), intensities(patch, made)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * float(before.max()))
    rows = made.flatten(1)
    powers = np.diag((rows @ rows.mH).numpy().real)
    np.testing.assert_allclose((rows @ rows.mH).numpy(), np.diag(powers), atol=1e-4 * powers[0])
    assert (np.diff(powers) < 0).all()
    assert np.vdot(made[0].numpy(), scan.probe[0]).real > 0
