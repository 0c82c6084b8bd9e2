"""Pixels that were not measured (NaN): the model's own value stands in, and nothing counts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.scan import canvas_of
from ptycho_tasks_torch.physics import mapped
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.forward import amplitude_misfit, match_light, poisson_misfit
from ptycho_tasks_torch.physics.mapped import MappedExposure, expose_scan
from ptycho_tasks_torch.physics.scale import find_photon, mean_intensity
from ptycho_tasks_torch.unrolled.network import reconstruct
from ptycho_tasks_torch.unrolled.positions import find_displacements


def without_pixels(scan):
    """The scan without 3 % of its pixels: a gap, a beam stop, and two that one frame lacks."""
    frames, N = np.array(scan.diffraction), scan.size
    bad = np.zeros((N, N), bool)
    bad[:, N // 3] = True
    bad[N // 2 - 1 : N // 2 + 1, N // 2 - 1 : N // 2 + 1] = True
    frames[:, bad] = np.nan
    frames[5, 3, 3:5] = np.nan
    return replace(scan, diffraction=frames, bad_pixels=bad)


def expose(scan) -> Exposure:
    scale = float(np.sqrt(np.nanmean(np.square(scan.diffraction))))
    return expose_scan(scan, torch.from_numpy(scan.probe) / scale, scale, photon=1.0)


@pytest.fixture
def pair(scan):
    """The frames with bad pixels, and as if these had measured what an object predicts; the
    object."""
    bad = expose(without_pixels(scan))
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((2, 1, *bad.shape), generator=generator)
    canvas = 1 + 0.1 * torch.complex(*noise)
    with torch.no_grad():
        predicted = bad.predict(canvas)
    filled = torch.where(bad.amplitude.isnan(), predicted, bad.amplitude)
    return bad, replace(bad, amplitude=filled, has_bad_pixels=False), canvas


def test_steps_are_those_of_frames_in_which_the_model_stands_in(pair):
    bad, filled, canvas = pair
    assert bad.has_bad_pixels
    torch.testing.assert_close(bad.correction(canvas), filled.correction(canvas))
    fractions = torch.zeros((len(bad.places), 2))
    found = (one.joint_correction(canvas, fractions) for one in (bad, filled))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_misfit_is_a_mean_over_good_pixels(pair):
    bad, filled, canvas = pair
    share = float(bad.amplitude.isnan().float().mean())
    assert 0.02 < share < 0.1
    assert bad.measure_misfit(canvas) * (1 - share) == pytest.approx(filled.measure_misfit(canvas))
    some = bad.take([4, 5, 6])
    assert some.has_bad_pixels
    assert np.isfinite(some.measure_misfit(canvas))


def test_positions_are_asked_of_good_pixels_alone(pair):
    bad, _, canvas = pair
    step = find_displacements(bad, canvas, np.zeros((len(bad.places), 2)))
    assert np.isfinite(step).all()


def test_frames_that_stay_on_disk_are_the_same(scan, monkeypatch):
    bad = expose(without_pixels(scan))
    monkeypatch.setattr(mapped, "HELD_BYTES", 0)
    on_disk = expose(without_pixels(scan))
    assert isinstance(on_disk, MappedExposure)
    canvas = torch.ones_like(bad.light) + 0j
    torch.testing.assert_close(bad.correction(canvas), on_disk.correction(canvas))
    assert bad.measure_misfit(canvas) == pytest.approx(on_disk.measure_misfit(canvas))


@pytest.mark.parametrize("misfit", [poisson_misfit, amplitude_misfit])
def test_losses_have_no_slope_where_nothing_was_measured(misfit):
    generator = torch.Generator().manual_seed(2)
    model, amplitude = (torch.rand((3, 6, 6), generator=generator) + 0.5 for _ in range(2))
    model.requires_grad_()
    amplitude[:, 2], amplitude[1, 4, 4] = torch.nan, torch.nan
    good = ~amplitude.isnan()
    loss = misfit(model, amplitude, 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        float(misfit(model[good], amplitude[good], 1.0).detach())
    )
    assert model.grad[good].all()
    assert not model.grad[~good].any()
    matched = match_light(model.detach(), amplitude)
    assert float(matched[good].sum()) == pytest.approx(float(amplitude[good].square().sum()))


def test_the_light_of_bad_pixels_is_taken_from_the_probe(scan):
    bad, every = without_pixels(scan), np.arange(scan.frame_count)
    whole = mean_intensity(scan, every)
    lost = np.nanmean(np.square(bad.diffraction))
    assert mean_intensity(bad, every) == pytest.approx(whole, rel=0.25)
    assert abs(mean_intensity(bad, every) - whole) < abs(lost - whole)
    assert find_photon(bad.diffraction) == find_photon(scan.diffraction)


def test_an_object_is_found_as_well_as_by_a_whole_detector(scan):
    """The R factor on whole frames is within 2 % of that of whole frames."""
    errors = []
    for one in (scan, without_pixels(scan)):
        exposure = expose(one)
        place = canvas_of(scan.positions, scan.size)
        rows, columns = place.shape
        image = reconstruct(exposure, 48).canvas[0, :rows, :columns].numpy()
        found = image, place.origin, scan.probe, scan.positions
        errors.append(data_misfit(*found, scan.diffraction).r_factor)
    assert errors[1] < 1.02 * errors[0]
