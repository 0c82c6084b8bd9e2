"""The scans of the benchmark of regimes: one from one seed, and what their regimes say."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ptycho_tasks.physics.forward import expected_intensity
from regime_scans import GEOMETRIES, REGIMES, Regime, is_here, make_probe, make_scan

HERE = [regime for regime in REGIMES.values() if is_here(regime)]
ARRAYS = ("diffraction", "positions", "probe", "object")


def small(regime: Regime) -> Regime:
    """Of few frames; the star's probe has a size of its own."""
    size = regime.size if regime.probe == "star" else 32
    return msgspec.structs.replace(regime, frames=16, size=size, radius=5.0)


@pytest.mark.parametrize("regime", [small(regime) for regime in HERE], ids=lambda each: each.name)
def test_a_regime_and_a_seed_give_one_scan(regime):
    first, again, other = (make_scan(regime, seed) for seed in (1, 1, 2))
    for name in ARRAYS:
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert first.diffraction.tobytes() != other.diffraction.tobytes()
    assert first.object.tobytes() != other.object[: len(first.object)].tobytes()


@pytest.mark.parametrize("regime", [small(regime) for regime in HERE], ids=lambda each: each.name)
def test_a_scan_is_what_its_regime_says(regime):
    scan = make_scan(regime, 0)
    assert scan.diffraction.shape == (16, regime.size, regime.size)
    assert len(scan.probe) == regime.modes
    counts = np.square(scan.diffraction, dtype=np.float64).sum(axis=(1, 2))
    assert counts.mean() == pytest.approx(regime.photons, rel=5 / np.sqrt(16 * regime.photons))
    expected = [each for _, each in expected_intensity(scan.object, scan.probe, scan.positions)]
    assert np.concatenate(expected).sum() == pytest.approx(16 * regime.photons, rel=1e-3)
    amplitude, phase = np.abs(scan.object), np.angle(scan.object)
    assert amplitude.min() == pytest.approx(regime.amplitude_min, abs=1e-3)
    assert amplitude.max() == pytest.approx(1, abs=1e-3)
    if regime.phase < 2 * np.pi:
        assert np.ptp(phase) == pytest.approx(regime.phase, abs=1e-3)


@pytest.mark.parametrize("regime", HERE, ids=lambda each: each.name)
def test_a_spot_is_as_wide_as_its_regime_says(regime):
    light = np.square(np.abs(make_probe(regime, np.random.default_rng(0)))).sum(axis=0)
    y, x = np.mgrid[: regime.size, : regime.size]
    middle = [(light * axis).sum() for axis in (y, x)]
    square = (light * ((y - middle[0]) ** 2 + (x - middle[1]) ** 2)).sum()
    assert np.sqrt(square) == pytest.approx(regime.radius, rel=0.12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_frame_has_a_unit_area_for_itself(geometry):
    nominal = GEOMETRIES[geometry](900, np.random.default_rng(0))
    assert np.prod(np.ptp(nominal, axis=0)) == pytest.approx(900, rel=0.1)
    assert len(np.unique(nominal, axis=0)) == 900
