"""What the real Ptychodus makes of a reconstruction, and what it writes itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from made_products import PIXEL_M
from ptycho_tasks.backend import Reconstruction
from ptycho_tasks.results.export import export_product
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan

PluginRegistry = pytest.importorskip(
    "ptychodus.api.plugins", reason="Ptychodus is not installed"
).PluginRegistry


@pytest.fixture(scope="module")
def registry() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        return PluginRegistry.load_plugins()


def opened(registry: Any, name: str, path: Path) -> Any:
    return registry.product_file_readers.get_strategy_by_name(name).read(path)


def test_it_opens_as_what_it_is(
    registry: Any, product: Path, reconstruction: Reconstruction, scan: ScanData
) -> None:
    found = opened(registry, "HDF5", product)
    assert np.array_equal(found.object_.get_array(), reconstruction.object[None])
    assert np.array_equal(found.probes.get_array(), reconstruction.probe[None])
    for pixel in (found.object_.get_pixel_geometry(), found.probes.get_pixel_geometry()):
        assert (pixel.height_m, pixel.width_m) == PIXEL_M
    geometry = found.object_.get_geometry()
    rows = geometry.map_probe_positions_to_object_y_px(found.probe_positions)
    columns = geometry.map_probe_positions_to_object_x_px(found.probe_positions)
    # Ptychodus means the middle of a patch, which lies half a pixel before its pixel N // 2.
    expected = reconstruction.positions - reconstruction.origin - 0.5
    np.testing.assert_allclose(np.stack([rows, columns], axis=1), expected, atol=1e-9)
    across = geometry.get_transverse_coordinates()
    with h5py.File(product) as file:
        view = file["ptycho_tasks/image"]
        np.testing.assert_allclose(view["y"], geometry.center_y_m + across.y_m[:, 0])
        np.testing.assert_allclose(view["x"], geometry.center_x_m + across.x_m[0])
    assert [loss.value for loss in found.losses] == list(reconstruction.losses)
    metadata = found.metadata
    assert (metadata.photon_energy_eV, metadata.detector_distance_m) == (8000.0, 2.0)
    assert (metadata.exposure_time_s, metadata.name) == (0.1, scan.name)


@pytest.mark.parametrize("name", ["CXI", "NPZ"])
def test_an_export_is_the_same_product(
    registry: Any, product: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / f"product.{name.lower()}"
    export_product(product, output)
    expected, found = opened(registry, "HDF5", product), opened(registry, name, output)
    assert found.metadata == expected.metadata
    assert found.object_.get_geometry() == expected.object_.get_geometry()
    assert found.probes.get_pixel_geometry() == expected.probes.get_pixel_geometry()
    assert np.array_equal(found.object_.get_array(), expected.object_.get_array())
    assert np.array_equal(found.probes.get_array(), expected.probes.get_array())
    assert list(found.probe_positions) == list(expected.probe_positions)
    assert found.losses == expected.losses


@pytest.mark.parametrize("name", ["CXI", "HDF5", "NPZ"])
def test_what_ptychodus_writes_is_read_again(
    registry: Any,
    product: Path,
    reconstruction: Reconstruction,
    scan: ScanData,
    tmp_path: Path,
    name: str,
) -> None:
    written = tmp_path / f"written.{name.lower()}"
    found = opened(registry, "HDF5", product)
    registry.product_file_writers.get_strategy_by_name(name).write(written, found)
    write_scan(tmp_path / "frames.npz", scan)
    back = read_scan(tmp_path / "frames.npz", product=written)
    assert np.array_equal(back.probe, reconstruction.probe)
    assert back.object is not None
    assert np.array_equal(back.object, reconstruction.object)
    np.testing.assert_allclose(
        back.positions, reconstruction.positions - reconstruction.origin, atol=1e-9
    )
    assert back.pixel_size_m == PIXEL_M
    assert (back.energy_ev, back.distance_m, back.exposure_s) == (8000.0, 2.0, 0.1)
