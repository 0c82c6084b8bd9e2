"""The probe that is learned keeps what diffraction does not fix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptycho_tasks_torch.physics.probe import RefinedProbe


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


def test_flux_shift_and_tilt_that_are_learned_are_taken_back(scan):
    guess = torch.from_numpy(scan.probe)
    made = RefinedProbe(guess, 1)
    N = scan.size
    ramp = torch.exp(2j * math.pi * torch.arange(N)[None, :] / N)
    with torch.no_grad():
        moved = 1.3 * ramp * torch.roll(guess / made.unit, 2, dims=-2)
        made.modes.copy_(torch.view_as_real(moved))
        again = made().numpy()
    assert flux(again) == pytest.approx(flux(scan.probe), rel=1e-4)
    np.testing.assert_allclose(centres(again), centres(scan.probe), atol=0.02)
    assert abs(np.vdot(unit(scan.probe), unit(again))) > 0.999


@pytest.mark.parametrize("modes", [1, 2, 8])
def test_modes_are_added_or_left_out(scan, modes):
    two = torch.from_numpy(np.concatenate([scan.probe, 0.3 * scan.probe[:, ::-1]]))
    made = RefinedProbe(two, modes)().detach().numpy()
    assert made.shape == (modes, 32, 32)
    assert np.linalg.matrix_rank(made.reshape(modes, -1)) == modes
    assert flux(made) == pytest.approx(flux(two.numpy()), rel=1e-4)
