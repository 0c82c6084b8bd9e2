"""How far from their positions frames fit an object better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.displacement import measure_displacement
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData


def simulated(photons: float, seed: int = 0) -> ScanData:
    return simulate(SimulationOptions(size=32, grid=8, step=3, photons=photons, seed=seed))


def measured(scan: ScanData, moved: object = 0.0, *besides: object) -> float:
    assert scan.object is not None
    fields = scan.object, (0, 0), scan.probe, scan.positions + np.asarray(moved)
    return measure_displacement(*fields, scan.diffraction, *besides)


@pytest.mark.parametrize("photons", [1e3, 1e5, 1e8])
def test_at_the_right_places_nothing_but_noise_pulls(photons):
    assert measured(simulated(photons)) < 0.03


@pytest.mark.parametrize("photons", [1e3, 1e4])
def test_counts_of_a_detector_with_gain_have_more_noise(photons):
    scan = simulated(photons, 1)
    gain = np.float32(2)  # four times the counts
    times = replace(scan, diffraction=gain * scan.diffraction, probe=gain * scan.probe)
    assert measured(times) < 0.03


@pytest.mark.parametrize("photons", [1e5, 1e8])
@pytest.mark.parametrize("pixels", [0.2, 0.5])
def test_places_that_are_off_are_told_by_how_much(photons, pixels):
    scan = simulated(photons, 1)
    moved = np.random.default_rng(2).normal(size=(scan.frame_count, 2)) * pixels / np.sqrt(2)
    assert measured(scan, moved) == pytest.approx(pixels, rel=0.35)


def test_what_all_have_in_common_belongs_to_the_object():
    scan = simulated(1e8)
    assert measured(scan, 0.3) < 0.1
    assert measured(scan, [[0.3, 0.3], [-0.3, -0.3]] * (scan.frame_count // 2)) > 0.3


def test_light_that_differs_and_bad_pixels_pull_at_no_frame():
    scan = simulated(1e8)
    flux = np.linspace(0.5, 2, scan.frame_count).astype(np.float32)
    frames = scan.diffraction * np.sqrt(flux)[:, None, None]
    frames[:, 3:9, 14:19] = np.nan
    assert measured(replace(scan, diffraction=frames), 0.0, flux) < 0.01


def test_a_background_pulls_at_no_frame_where_it_is_known():
    scan = simulated(1e5)
    counts = np.square(scan.diffraction)
    N = scan.size
    light = (0.4 * counts.mean() * np.linspace(0, 1, N) * np.ones((N, 1))).astype(np.float32)
    counts += np.random.default_rng(0).poisson(light, counts.shape)
    covered = replace(scan, diffraction=np.sqrt(counts))
    assert measured(covered, 0.0, None, light) < 0.03


def test_a_frame_without_light_tells_nothing():
    scan = simulated(1e8)
    frames = scan.diffraction.copy()
    frames[4] = np.nan
    assert measured(replace(scan, diffraction=frames)) < 0.01
