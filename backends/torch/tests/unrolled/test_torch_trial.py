"""Trials of `unrolled`, and what the doctor finds by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.doctor.examine import Report, examine
from ptycho_tasks.scans.doctor.geometry import is_own_twin
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks_torch.unrolled.backend import backend

SCAN = replace(
    simulate(SimulationOptions(size=32, grid=10, step=4.0, photons=1e6, seed=5)), object=None
)


def look(folder: Path, **changes: object) -> Report:
    write_scan(folder / "scan.npz", replace(SCAN, **changes))
    return examine(folder / "scan.npz", try_scan=backend.try_scan)


def rotate(positions: np.ndarray, degrees: float) -> np.ndarray:
    (y, x), angle = (positions - positions.mean(axis=0)).T, np.deg2rad(degrees)
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.stack([x * sine + y * cosine, x * cosine - y * sine], axis=1)


def test_the_same_scan_gives_the_same_trial() -> None:
    one, other = (backend.try_scan(SCAN, 12) for _ in range(2))
    assert one.r_factor == other.r_factor
    np.testing.assert_array_equal(one.residuals, other.residuals)
    assert one.residuals.shape == (SCAN.frame_count,)


def test_a_trial_leaves_out_what_was_not_measured() -> None:
    frames = SCAN.diffraction.copy()
    frames[:, 10:12] = np.nan
    holed = replace(SCAN, diffraction=frames, bad_pixels=np.isnan(frames).all(axis=0))
    assert backend.try_scan(holed, 24).r_factor < 1.1 * backend.try_scan(SCAN, 24).r_factor


def test_a_right_scan_has_nothing_wrong(tmp_path: Path) -> None:
    report = look(tmp_path)
    assert not report.is_wrong
    assert report.r_given == report.r_mended


@pytest.mark.parametrize(
    ("positions", "settings"),
    [
        (SCAN.positions[:, ::-1].copy(), {"swap": True}),
        (-SCAN.positions, {"flip_x": True, "flip_y": True}),
    ],
)
def test_orientation(tmp_path: Path, positions: np.ndarray, settings: dict[str, bool]) -> None:
    report = look(tmp_path, positions=positions)
    assert report.settings == {"source.orientation": settings}
    assert report.r_mended is not None
    assert report.r_given is not None
    assert report.r_mended < 0.7 * report.r_given


def test_rotation(tmp_path: Path) -> None:
    found = look(tmp_path, positions=rotate(SCAN.positions, 5)).settings["source.orientation"]
    assert found["rotate_deg"] == pytest.approx(-5, abs=1)


def test_centre_and_orientation_together(tmp_path: Path) -> None:
    report = look(
        tmp_path,
        positions=SCAN.positions[:, ::-1].copy(),
        diffraction=np.roll(SCAN.diffraction, (2, -3), axis=(1, 2)),
    )
    assert report.settings == {
        "source.centre": [18, 13],
        "source.orientation": {"swap": True},
    }


def test_micrometres_without_a_pixel_size(tmp_path: Path) -> None:
    settings = look(tmp_path, positions=SCAN.positions * 0.03).settings
    assert settings["source.units"] == "um"
    assert settings["source.pixel_size_m"] == pytest.approx(3e-8, rel=0.02)


def test_a_flat_probe_hides_what_both_mirrored_is() -> None:
    options = SimulationOptions(size=32, grid=4, probe="disc", probe_aperture=0.0)
    flat, curved = simulate(options), SCAN
    assert is_own_twin(flat.probe)
    assert not is_own_twin(curved.probe)
