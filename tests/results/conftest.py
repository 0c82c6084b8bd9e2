"""A reconstruction, and the product that it is written as."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_products import make_reconstruction, make_scan, write_product
from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.scan import ScanData


@pytest.fixture(scope="session")
def scan() -> ScanData:
    return make_scan()


@pytest.fixture(scope="session")
def reconstruction(scan: ScanData) -> Reconstruction:
    return make_reconstruction(scan)


@pytest.fixture(scope="session")
def product(
    reconstruction: Reconstruction, scan: ScanData, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file, alone in its folder."""
    path = tmp_path_factory.mktemp("inference") / "reconstruction.h5"
    write_product(path, reconstruction, scan)
    return path
