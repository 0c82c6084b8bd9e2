"""Whether the object that comes with a scan counts as the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.physics.truth import describe_guess, is_as_noise, judge_own_object

OPTIONS = SimulationOptions(size=32, grid=6, photons=1e5, seed=2)


def is_truth(scan):
    return is_as_noise(judge_own_object(scan))


@pytest.mark.parametrize("photons", [1e4, 1e6, 1e9])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_object_of_a_simulation_is_the_truth(size, photons):
    assert is_truth(simulate(SimulationOptions(size=size, grid=6, photons=photons)))


def test_frames_without_noise_have_a_truth_too():
    scan = simulate(OPTIONS)
    frames = [i for _, i in expected_intensity(scan.object, scan.probe, scan.positions, (0, 0))]
    assert is_truth(replace(scan, diffraction=np.sqrt(np.concatenate(frames)).astype(np.float32)))


def blur(scan):
    image = gaussian_filter(scan.object.real, 0.5) + 1j * gaussian_filter(scan.object.imag, 0.5)
    return replace(scan, object=image.astype(np.complex64))


@pytest.mark.parametrize(
    "change",
    [
        blur,
        lambda scan: replace(scan, object=np.ones_like(scan.object)),
        lambda scan: replace(scan, object=np.full_like(scan.object, np.nan)),
        lambda scan: replace(scan, object=scan.object[:4, :4]),
        lambda scan: replace(scan, object=None),
        lambda scan: replace(scan, diffraction=np.zeros_like(scan.diffraction)),
    ],
    ids=["blurred", "flat", "NaN", "too small", "none", "dark"],
)
def test_what_does_not_explain_the_frames_is_a_guess(change):
    assert not is_truth(change(simulate(OPTIONS)))


def test_why_it_is_a_guess_is_said_with_the_number():
    ratio = judge_own_object(blur(simulate(OPTIONS)))
    assert f"misses the frames {ratio:.2g} times as much" in describe_guess(ratio)
    assert "cannot be said" in describe_guess(None)
