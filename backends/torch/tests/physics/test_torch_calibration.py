"""Size, defocus and astigmatism of a probe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptycho_tasks_torch.physics.calibration import (
    Lens,
    calibrate_probe,
    magnify,
    search_widely,
)
from ptycho_tasks_torch.physics.forward import far_field, spot_radius


@pytest.fixture(scope="module")
def guess(scan) -> torch.Tensor:
    """Two modes."""
    first = torch.from_numpy(scan.probe)
    return torch.cat([first, 0.2 * first.roll(1, dims=-1)])


def overlap(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.conj() * two).sum().abs() / (one.norm() * two.norm()))


def gaussian(radius: float) -> torch.Tensor:
    along = torch.arange(32) - 16
    square = (along[:, None] ** 2 + along[None, :] ** 2) / radius**2
    return torch.exp(-square)[None].to(torch.complex64)


def test_a_lens_that_does_nothing_gives_the_guess(guess):
    np.testing.assert_allclose(Lens(guess)(np.zeros(4)), guess, atol=1e-5 * guess.abs().max())


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.25])
def test_a_magnified_spot_is_the_larger_spot(factor):
    made = magnify(gaussian(5), factor)
    np.testing.assert_allclose(made, gaussian(5 * factor), atol=1e-4)


def test_what_lies_beyond_the_frame_is_dark():
    made = magnify(torch.ones((1, 32, 32), dtype=torch.complex64), 0.5).abs()
    assert made[0, 16, 16] == pytest.approx(1, abs=1e-5)
    assert float(made[0, :7].max()) == 0
    assert float(made[0, :, 25:].max()) == 0


@pytest.mark.parametrize("which", [1, 2, 3])
def test_defocus_and_astigmatism_are_taken_back(guess, which):
    numbers = np.zeros(4)
    numbers[which] = 2.0
    wrong = Lens(guess)(numbers)
    assert overlap(wrong, guess) < 0.99
    assert float(wrong.norm()) == pytest.approx(float(guess.norm()), rel=1e-5)
    # The unit is that of the probe at hand.
    unit = Lens(guess).distance / Lens(wrong).distance
    assert overlap(Lens(wrong)(-numbers * unit), guess) > 0.9999


def test_the_units_change_the_spot_by_about_a_tenth():
    """A Gaussian beam at its waist: a path that moves rays by r grows it by sqrt(1 + r^2)."""
    spot = gaussian(5)
    sizes = [spot_radius(Lens(spot)(np.array(numbers))) for numbers in np.eye(4)[:2] * 3]
    assert sizes[0] / spot_radius(spot) == pytest.approx(math.exp(0.3), rel=1e-2)
    assert sizes[1] / spot_radius(spot) == pytest.approx(math.sqrt(1 + 0.3**2), rel=1e-2)


@pytest.mark.parametrize("numbers", [(2.0, 0, 0, 0), (0, -3.0, 0, 0), (-1.5, 1.0, 1.0, -1.0)])
def test_the_probe_of_least_misfit_is_found(guess, numbers):
    right = Lens(guess)(np.array(numbers, dtype=float))
    found = calibrate_probe(guess, lambda probe: 1 - overlap(probe, right))
    assert overlap(found, right) > 0.999


def test_a_probe_whose_misfit_is_no_number_is_never_taken(guess):
    def misfit(probe: torch.Tensor) -> float:
        return math.nan if spot_radius(probe) < spot_radius(guess) else spot_radius(probe)

    assert spot_radius(calibrate_probe(guess, misfit)) >= spot_radius(guess)


@pytest.mark.parametrize(("radius", "cone"), [(8.0, 0.0), (5.3, 0.02), (6.0, -0.1)])
def test_a_pinhole_is_found_from_its_far_field(radius, cone):
    along = torch.arange(32) - 16
    r = torch.hypot(along[:, None].float(), along[None, :].float())
    hole = torch.polar(torch.sigmoid(2 * (radius - r)), math.pi * cone / radius * r**2)[None]
    aperture = torch.fft.ifftshift(far_field(hole).abs(), dim=(-2, -1))
    focus = torch.fft.fftshift(torch.fft.ifft2(aperture, norm="ortho"), dim=(-2, -1))
    assert overlap(focus, hole) < 0.95
    assert overlap(search_widely(focus, lambda probe: -overlap(probe, hole)), hole) > 0.98
