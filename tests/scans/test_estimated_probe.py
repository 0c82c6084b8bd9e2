"""A scan without a probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho_tasks.errors import ScanError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.npz import scan_arrays, write_npz, write_scan
from ptycho_tasks.scans.readers import read_scan


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arrays = scan_arrays(simulate(SimulationOptions(size=16, grid=4, step=3)))
    del arrays["probeGuess"]
    file = tmp_path_factory.mktemp("scans") / "blind.npz"
    write_npz(file, arrays)
    return file


def test_a_scan_without_a_probe_is_refused_by_the_name_of_the_setting(path: Path) -> None:
    with pytest.raises(ScanError, match=r"'probeGuess'.*set source.probe to estimate"):
        read_scan(path)


def test_an_estimate_has_the_light_of_the_frames_and_stays_one_in_a_file(
    path: Path, tmp_path: Path
) -> None:
    scan = read_scan(path, probe="estimate")
    assert scan.is_probe_estimated
    assert any(note.startswith("probe: estimated from the mean frame") for note in scan.notes)
    counts = np.square(scan.diffraction, dtype=np.float64).sum() / scan.frame_count
    assert np.square(np.abs(scan.probe)).sum() == pytest.approx(counts, rel=1e-4)
    write_scan(tmp_path / "again.npz", scan)
    again = read_scan(tmp_path / "again.npz")
    assert again.is_probe_estimated
    np.testing.assert_array_equal(again.probe, scan.probe)
