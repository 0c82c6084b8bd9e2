"""A small scan to reconstruct."""

from __future__ import annotations

import pytest

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData
from ptycho_tasks.testing.project import doit, write_project  # noqa: F401


@pytest.fixture(scope="session")
def scan() -> ScanData:
    """Frames of 32 x 32 pixels, read-only as a mapped file is."""
    scan = simulate(SimulationOptions(size=32, grid=9, step=3.5, jitter=1.0, photons=1e6, seed=2))
    scan.diffraction.flags.writeable = False
    scan.positions.flags.writeable = False
    return scan
