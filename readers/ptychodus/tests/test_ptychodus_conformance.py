"""The conformance suite of ptycho-tasks, for one format whose files hold all but a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from facility_files import PIXEL_M, Truth, nsls_2
from ptycho_tasks.reader import Reader
from ptycho_tasks.scan import ScanData
from ptycho_tasks.testing import ReaderConformance

pytest.importorskip("ptychodus", reason="Ptychodus is not installed")
reader = pytest.importorskip("ptycho_tasks_ptychodus.reader")


class TestNSLS(ReaderConformance):
    """NSLS-II 3-ID HXN, style 2: amplitudes."""

    reader: ClassVar[Reader] = reader.NSLS_II_2
    settings: ClassVar[dict[str, Any]] = {"probe": "estimate", "pixel_size_m": (PIXEL_M, PIXEL_M)}

    def write_scan(self, folder: Path, scan: ScanData) -> Path:
        y_m, x_m = scan.positions.T * PIXEL_M
        return nsls_2(folder, Truth(np.square(scan.diffraction), x_m, y_m, scan.probe)).path

    def test_claims_its_own(self, tmp_path: Path) -> None:
        """It must be named: several facilities give frames the same names."""
        _, path = self._written(tmp_path)
        assert self.reader.claims(path) is False
