"""The simulated scan: the same bytes for the same options, and physics that holds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData, canvas_of

SMALL: dict[str, Any] = {"size": 32, "grid": 6, "step": 4.0, "jitter": 1.0, "seed": 3}
ARRAYS = ("diffraction", "positions", "probe", "object")


def small(**changes: Any) -> ScanData:
    return simulate(SimulationOptions(**{**SMALL, **changes}))


def content(scan: ScanData) -> dict[str, bytes]:
    return {name: getattr(scan, name).tobytes() for name in ARRAYS}


KINDS = list(itertools.product(("lines", "siemens", "blobs"), ("disc", "defocused")))


@pytest.mark.parametrize(("object", "probe"), KINDS)
def test_follows_the_contract(object: str, probe: str) -> None:
    scan = small(object=object, probe=probe, amplitude_min=0.3, phase_range=1.0)
    assert (scan.frame_count, scan.size) == (36, 32)
    assert scan.diffraction.dtype == np.float32
    assert scan.positions.dtype == np.float64
    assert scan.probe.dtype == np.complex64
    assert scan.probe.shape == (1, 32, 32)
    truth = scan.object
    assert truth is not None
    assert truth.dtype == np.complex64
    assert np.abs(truth).min() == pytest.approx(0.3, abs=1e-5)
    assert np.abs(truth).max() == pytest.approx(1.0, abs=1e-5)
    assert np.ptp(np.angle(truth)) == pytest.approx(1.0, abs=1e-5)
    counts = scan.diffraction.astype(np.float64) ** 2
    np.testing.assert_allclose(counts, np.rint(counts), rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize(("object", "probe"), KINDS)
def test_the_same_options_give_the_same_bytes(object: str, probe: str) -> None:
    assert content(small(object=object, probe=probe)) == content(small(object=object, probe=probe))


def test_another_seed_changes_object_positions_and_noise() -> None:
    one, other = content(small()), content(small(seed=4))
    assert [name for name in ARRAYS if one[name] == other[name]] == []


def test_photons_change_neither_object_nor_positions() -> None:
    one, other = small(photons=1e4), small(photons=1e7)
    assert content(one)["object"] == content(other)["object"]
    assert content(one)["positions"] == content(other)["positions"]


def test_jitter_does_not_change_the_object() -> None:
    assert content(small(jitter=0.0))["object"] == content(small(jitter=4.0))["object"]


@pytest.mark.parametrize("photons", [3.0, 1e4, 1e9])
def test_the_mean_frame_has_the_photons_asked_for(photons: float) -> None:
    scan = small(photons=photons, grid=8)
    total = float((scan.diffraction.astype(np.float64) ** 2).sum())
    expected = photons * scan.frame_count
    assert abs(total - expected) < 5 * np.sqrt(expected) + 1e-6 * expected


def test_the_noise_is_poisson() -> None:
    """Counts less expectation, over its root, has mean 0 and variance 1."""
    scan = small(photons=1e6, object="blobs")
    assert scan.object is not None
    pulls = []
    for frames, intensity in expected_intensity(scan.object, scan.probe, scan.positions):
        counts = scan.diffraction[frames].astype(np.float64) ** 2
        bright = intensity > 50
        pulls.append((counts[bright] - intensity[bright]) / np.sqrt(intensity[bright]))
    pull = np.concatenate(pulls)
    assert pull.size > 5000
    assert abs(pull.mean()) < 5 / np.sqrt(pull.size)
    assert pull.var() == pytest.approx(1.0, abs=5 * np.sqrt(2 / pull.size))


def test_each_frame_belongs_to_its_position() -> None:
    scan = small(photons=1e7)
    assert scan.object is not None
    right = data_misfit(scan.object, (0, 0), scan.probe, scan.positions, scan.diffraction)
    one_off = np.roll(scan.positions, 1, axis=0)
    wrong = data_misfit(scan.object, (0, 0), scan.probe, one_off, scan.diffraction)
    swapped = scan.positions[:, ::-1]
    transposed = data_misfit(scan.object, (0, 0), scan.probe, swapped, scan.diffraction)
    # Where a frame has fewer counts than pixels, the deviance's floor lies under one.
    assert right.poisson_deviance is not None
    assert right.poisson_deviance < 1.05
    assert right.r_factor is not None
    for other in (wrong, transposed):
        assert other.r_factor is not None
        assert other.r_factor > 5 * right.r_factor


def test_positions_are_a_jittered_raster_inside_the_object() -> None:
    scan = small(jitter=1.0)
    assert scan.object is not None
    nominal = small(jitter=0.0).positions
    assert np.abs(scan.positions - nominal).max() <= 1.0
    assert (nominal[1] - nominal[0]).tolist() == [0.0, 4.0]
    assert (nominal[6] - nominal[0]).tolist() == [4.0, 0.0]
    canvas = canvas_of(scan.positions, scan.size)
    assert min(canvas.origin) >= 0
    assert canvas.origin[0] + canvas.shape[0] <= scan.object.shape[0]
    assert canvas.origin[1] + canvas.shape[1] <= scan.object.shape[1]


@pytest.mark.parametrize("kind", ["disc", "defocused"])
def test_the_spot_is_centred_and_as_wide_as_asked(kind: str) -> None:
    scan = small(size=64, probe=kind, probe_radius=12.0, grid=2)
    power = np.abs(scan.probe[0].astype(np.complex128)) ** 2
    y, x = np.mgrid[:64, :64] - 32
    assert abs(float((power * y).sum() / power.sum())) < 0.05
    assert abs(float((power * x).sum() / power.sum())) < 0.05
    inside = power[np.hypot(y, x) < 1.25 * 12].sum() / power.sum()
    assert inside > 0.8


def test_one_frame_and_odd_steps_work() -> None:
    scan = simulate(SimulationOptions(size=8, grid=1, step=0.3, jitter=0.2, photons=10.0))
    assert scan.diffraction.shape == (1, 8, 8)


def test_the_name_is_given_or_tells_the_options() -> None:
    options = SimulationOptions(**SMALL)
    assert simulate(options).name == "simulated_lines_defocused_seed3"
    assert simulate(options, name="demo").name == "demo"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"jitter": 9.0}, "jitter 9 exceeds step 4"),
        ({"probe_radius": 16.0}, "probe_radius 16 does not fit size 32"),
        ({"probe": "defocused", "probe_aperture": 0.0}, "at least 0.05"),
        ({"grid": 500, "step": 20.0}, "more than 8192 pixels"),
        ({"grid": 512, "size": 1024, "step": 1.0}, "are 1024 GiB of frames, more than 16"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(changes: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SimulationOptions(**{**SMALL, **changes})
