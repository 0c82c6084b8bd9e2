"""Forward model, cutting and adding, against plain numpy written a second way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.scan import corners_and_fractions
from ptycho_tasks_torch.physics.canvas import add_patches, cut_patches
from ptycho_tasks_torch.physics.forward import (
    amplitude_misfit,
    intensities,
    poisson_misfit,
    shift_probe,
)
from ptycho_tasks_torch.physics.scale import mean_intensity, scale_probe


def random_complex(generator, *shape):
    parts = generator.standard_normal((2, *shape)).astype(np.float32)
    return parts[0] + 1j * parts[1]


def test_intensities_are_those_of_the_core(scan):
    """The core's forward model is itself tested against an explicit Fourier sum."""
    N = scan.size
    corners, fractions = corners_and_fractions(scan.positions, N)
    assert scan.object is not None
    patches = np.stack([scan.object[y : y + N, x : x + N] for y, x in corners])
    probes = shift_probe(torch.from_numpy(scan.probe), torch.from_numpy(fractions).float())
    ours = intensities(torch.from_numpy(patches), probes).numpy()
    for frames, core in expected_intensity(scan.object, scan.probe, scan.positions):
        np.testing.assert_allclose(ours[frames], core, atol=1e-4 * core.max())


def test_modes_add_their_intensities():
    generator = np.random.default_rng(0)
    patch, modes = random_complex(generator, 8, 8), random_complex(generator, 3, 8, 8)
    far = [np.fft.fftshift(np.fft.fft2(mode * patch)) / 8 for mode in modes]
    expected = sum(np.abs(wave) ** 2 for wave in far)
    got = intensities(torch.from_numpy(patch), torch.from_numpy(modes)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_positive_shift_moves_the_probe_to_higher_indices():
    probe = torch.zeros(1, 16, 16, dtype=torch.complex64)
    probe[0, 5, 9] = 1
    moved = shift_probe(probe, torch.tensor([2.0, -3.0]))[0].abs()
    assert divmod(int(moved.argmax()), 16) == (7, 6)


@given(
    seed=st.integers(0, 1000),
    places=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 7), st.integers(0, 4)), min_size=6, max_size=6
    ),
)
def test_cutting_and_adding_are_adjoint(seed, places):
    generator = np.random.default_rng(seed)
    canvas = torch.from_numpy(random_complex(generator, 2, 12, 9)).requires_grad_()
    patches = torch.from_numpy(random_complex(generator, 6, 5, 5)).requires_grad_()
    there = torch.tensor(places)
    cut, added = cut_patches(canvas, there, 5), add_patches(patches, there, (2, 12, 9))
    left, right = (cut.conj() * patches).sum(), (canvas.conj() * added).sum()
    torch.testing.assert_close(left.detach(), right.detach(), rtol=1e-4, atol=1e-3)
    left.real.backward()
    torch.testing.assert_close(canvas.grad, added.detach(), rtol=1e-4, atol=1e-4)


def test_misfits_are_least_for_the_truth_and_mean_the_same_at_any_dose():
    generator = np.random.default_rng(1)
    truth = torch.from_numpy(generator.uniform(1, 5, (2, 8, 8)).astype(np.float32))
    wrong = truth * 1.3
    for misfit in (poisson_misfit, amplitude_misfit):
        assert abs(float(misfit(truth, truth.sqrt(), 3.0))) < 2e-3
        low = float(misfit(wrong, truth.sqrt(), 3.0))
        high = float(misfit(wrong * 1e6, (truth * 1e6).sqrt(), 3e6))
        assert low > 0.01
        assert high == pytest.approx(low, rel=1e-3)


def test_poisson_misfit_is_the_likelihood_of_counts():
    """Up to what depends on the data alone: differences of I - k log I."""
    generator = np.random.default_rng(2)
    k = generator.poisson(50, (4, 4)).astype(np.float64)
    one, two = generator.uniform(30, 70, (2, 4, 4))
    expected = ((one - k * np.log(one)) - (two - k * np.log(two))).mean() / 50
    a, b = (
        float(poisson_misfit(torch.from_numpy(i), torch.from_numpy(np.sqrt(k)), 50.0))
        for i in (one, two)
    )
    assert a - b == pytest.approx(expected, rel=1e-2)


def test_a_probe_of_unknown_scale_gets_the_flux_of_the_data_and_a_scaled_one_is_kept(scan):
    flux = float(np.sum(np.abs(scan.probe) ** 2))
    assert scale_probe(scan.probe, flux * 0.5) is scan.probe
    scaled = scale_probe(scan.probe / np.float32(1000), flux)
    np.testing.assert_allclose(np.sum(np.abs(scaled) ** 2), flux, rtol=1e-4)


def test_mean_intensity_takes_only_the_frames_asked_for(scan):
    frames = np.array([3, 17])
    expected = np.mean(scan.diffraction[frames].astype(np.float64) ** 2)
    assert mean_intensity(scan, frames) == pytest.approx(expected)
