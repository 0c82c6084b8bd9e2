"""Modes of a probe, and what diffraction does not fix of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptycho_tasks_torch.physics.calibration import Lens
from ptycho_tasks_torch.physics.forward import far_field, intensities, spot_radius
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


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("turns", [True, False])
def test_an_object_goes_with_its_probe(scan, moves, turns):
    """Both together give the same frames, at the same places."""
    guess, N = torch.from_numpy(scan.probe), scan.size
    fitted = 1.3 * torch.roll(guess, 1, dims=-2)
    truth = torch.from_numpy(scan.object)[None]
    # An object that fades is periodic, and smooth to the end.
    fade = [torch.hann_window(side) for side in truth.shape[-2:]]
    canvas = 1 + (truth - 1) * fade[0][:, None] * fade[1]
    probe, moved = Gauge(guess).keep_both(fitted, canvas, moves=moves, turns=turns)
    for row, column in ((4, 9), (12, 6)):
        window = slice(row, row + N), slice(column, column + N)
        before, after = (
            torch.fft.fft2(p * c[0][window]).abs() for p, c in ((fitted, canvas), (probe, moved))
        )
        assert (after - before).norm() < 0.01 * before.norm()
    kept = centres(probe.numpy()) - centres(scan.probe)
    assert (abs(kept[:2]).max() < 0.02) == moves


def test_light_that_reaches_the_rim_is_brought_to_its_place(scan):
    """A shift lets some of it in at the other side, which moves the centre back."""
    guess, along = torch.from_numpy(scan.probe), torch.arange(scan.size) - 13.0
    r = torch.hypot(along[:, None], along)
    wide = torch.polar(torch.exp(-((r / 16) ** 2)), 0.1 * r)[None]
    found = centres(Gauge(guess).keep(wide).numpy())
    np.testing.assert_allclose(found[:2], centres(scan.probe)[:2], atol=0.03)


@pytest.mark.parametrize("modes", [1, 2, 8])
def test_modes_are_added_or_left_out(scan, modes):
    two = torch.from_numpy(np.concatenate([scan.probe, 0.3 * scan.probe[:, ::-1]]))
    made = add_modes(two, modes).numpy()
    assert made.shape == (modes, 32, 32)
    assert np.linalg.matrix_rank(made.reshape(modes, -1)) == modes
    powers = np.square(np.abs(made)).sum(axis=(1, 2))
    kept = 1 if modes == 1 else 2
    if modes <= 2:
        assert flux(made) == pytest.approx(flux(two.numpy()), rel=1e-5)
    assert (np.diff(powers[:kept]) < 0).all()
    overlaps = np.abs(np.einsum("pyx,qyx->pq", made[:kept].conj(), made[:kept]))
    np.testing.assert_allclose(overlaps, np.diag(powers[:kept]), atol=1e-4 * powers[0])
    # The weakest first, one of them dark: the same.
    again = add_modes(torch.cat([0 * two[:1], two.flip(0)]), modes).numpy()
    np.testing.assert_allclose(np.abs(again), np.abs(made), atol=1e-4 * np.abs(made).max())
    np.testing.assert_allclose(again[0], made[0], atol=1e-4 * np.abs(made).max())


def test_a_spot_of_one_pixel_has_a_radius_and_no_further_modes():
    spot = torch.zeros((1, 32, 32), dtype=torch.complex64)
    spot[0, 16, 16] = 1
    assert spot_radius(spot) == spot_radius(far_field(far_field(spot)))
    assert 0.4 < spot_radius(spot) < 0.5
    assert torch.equal(add_modes(spot, 3), spot)
    assert torch.isfinite(torch.view_as_real(Lens(spot)(np.array([0, 1.0, 0, 0])))).all()
    assert torch.isfinite(torch.view_as_real(Lens(far_field(spot))(np.array([0, 1.0, 0, 0])))).all()


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
