"""Scans in the layouts of other programs, each written as its documentation says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.scans.recognition import find_reader
from ptycho_tasks.testing import ReaderConformance
from scan_files import (
    COUNTS,
    DETECTOR_PIXEL_M,
    DISTANCE_M,
    ENERGY_EV,
    WAVELENGTH_M,
    H,
    M,
    N,
    W,
    canonical,
    cxi,
    message,
    save,
    save_hdf5,
)

C = canonical()
PITCH = DETECTOR_PIXEL_M[0]
PIXEL_M = WAVELENGTH_M * DISTANCE_M / (N * PITCH)
X_M, Y_M = C["xcoords"] * PIXEL_M, C["ycoords"] * PIXEL_M
PROBE = C["probeGuess"]


def save_tree(path: Path, tree: dict[str, Any], **attributes: dict[str, float]) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in tree.items():
            file[key] = value
        for key, values in attributes.items():
            file[key].attrs.update(values)
    return path


def product() -> dict[str, Any]:
    return {
        "object": np.ones((1, H, W), "c8"),
        "probe": PROBE[None, None],
        "probe_position_x_m": X_M,
        "probe_position_y_m": Y_M,
    }


PIXELS = {"pixel_height_m": PIXEL_M, "pixel_width_m": PIXEL_M}


def fold_slice(folder: Path) -> tuple[Path, dict[str, Any]]:
    save_tree(folder / "data_roi0_dp.hdf5", {"dp": COUNTS.astype("u2")})
    para = {"ppX": X_M[None], "ppY": Y_M[None], "lambda": WAVELENGTH_M, "dx": PIXEL_M}
    save_tree(folder / "data_roi0_para.hdf5", para)
    save(folder, {"probeGuess": PROBE}, "probe.npz")
    return folder / "data_roi0_dp.hdf5", {"probe": folder / "probe.npz"}


def ptycho_fm(folder: Path) -> tuple[Path, dict[str, Any]]:
    save_tree(folder / "a_dp.hdf5", {"dp": COUNTS.astype("f4")})
    save_tree(folder / "a_para.hdf5", product(), object=PIXELS)
    return folder / "a_dp.hdf5", {}


def ptyd(folder: Path) -> tuple[Path, dict[str, Any]]:
    places = np.stack([Y_M, X_M], axis=1)
    mask = np.ones((N, N))
    mask[2, 3] = 0
    tree = {
        "meta/energy": ENERGY_EV / 1e3,
        "meta/distance": DISTANCE_M,
        "meta/psize": [PITCH, PITCH],
        "common/weight2d": mask,
        "chunks/0/data": COUNTS[:4].astype("i4"),
        "chunks/0/positions": places[:4],
        "chunks/10/data": COUNTS[4:].astype("i4"),
        "chunks/10/positions": places[4:],
    }
    ptyr = {"content/probe/Sscan_00G00/data": PROBE[None], "header/kind": 1.0}
    save_tree(folder / "a.ptyr", ptyr)
    settings = {"probe": folder / "a.ptyr", "bad_pixels": "ignore"}
    return save_tree(folder / "a.ptyd", tree), settings


def ptylab(folder: Path) -> tuple[Path, dict[str, Any]]:
    tree = {
        "ptychogram": COUNTS.astype("f4"),
        "encoder": np.stack([Y_M, X_M], axis=1),
        "zo": [DISTANCE_M],
        "dxd": [PITCH],
        "wavelength": [WAVELENGTH_M],
        "entrancePupilDiameter": [1e-4],
    }
    np.save(folder / "probe.npy", PROBE)
    return save_tree(folder / "a.hdf5", tree), {"probe": folder / "probe.npy"}


def tike(folder: Path) -> tuple[Path, dict[str, Any]]:
    corner = np.stack([C["ycoords"], C["xcoords"]], axis=1) - N // 2
    arrays = {
        "data": np.fft.ifftshift(COUNTS, axes=(1, 2)).astype("f4")[None],
        "scan": corner[None],
        "probe": PROBE[None, None, None, None],
    }
    return save(folder, arrays, "tike.npz"), {}


def ptycho_pinn(folder: Path) -> tuple[Path, dict[str, Any]]:
    arrays = {key: value for key, value in C.items() if key != "diff3d"}
    arrays |= {"diffraction": C["diff3d"][..., None], "Y": np.ones((M, N, N), "c8")}
    return save(folder, arrays | {"_metadata": np.array("{}")}, "old.npz"), {}


def npz_product(folder: Path) -> tuple[Path, dict[str, Any]]:
    arrays = product() | {
        "object_pixel_height_m": PIXEL_M,
        "object_pixel_width_m": PIXEL_M,
        "object_center_x_m": 0.0,
        "object_center_y_m": 0.0,
        "detector_object_distance_m": DISTANCE_M,
        "photon_energy_eV": ENERGY_EV,
        "probe_position_indexes": np.arange(M),
        "name": np.array("a"),
    }
    return save_tree(folder / "frames.h5", {"patterns": COUNTS.astype("u2")}), {
        "product": save(folder, arrays, "product.npz")
    }


def cxi_product(folder: Path) -> tuple[Path, dict[str, Any]]:
    tree = cxi() | {"entry_1/data_1/translation": np.stack([X_M, Y_M, 0 * X_M], axis=1)}
    tree["entry_1/instrument_1/detector_1/x_pixel_size"] = PITCH
    return save_tree(folder / "frames.h5", {"patterns": COUNTS.astype("u2")}), {
        "product": save_hdf5(folder, tree, "product.cxi")
    }


def raster(folder: Path) -> tuple[Path, dict[str, Any]]:
    tree = cxi()
    tree["entry_1/data_1/data"] = COUNTS.reshape(2, 3, N, N).astype("u2")
    places = np.stack([X_M, Y_M, 0 * X_M], axis=1)
    tree["entry_1/data_1/translation"] = places.reshape(2, 3, 3)
    tree["entry_1/instrument_1/detector_1/x_pixel_size"] = PITCH
    return save_hdf5(folder, tree), {}


LAYOUTS = [
    fold_slice, ptycho_fm, ptyd, ptylab, tike, ptycho_pinn, npz_product, cxi_product, raster,
]  # fmt: skip


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda one: one.__name__)
def test_a_layout_is_recognised_and_read(
    tmp_path: Path, write: Callable[[Path], tuple[Path, dict[str, Any]]]
) -> None:
    path, settings = write(tmp_path)
    check(read_scan(path, **settings))


def check(scan: ScanData) -> None:
    """Its frames, the way between its positions, and its probe are those of the scan."""
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    moved = scan.positions - scan.positions[0]
    wanted = np.stack([C["ycoords"], C["xcoords"]], axis=1)
    np.testing.assert_allclose(moved, wanted - wanted[0], atol=1e-6)
    np.testing.assert_array_equal(scan.probe, PROBE[None])


@pytest.mark.parametrize("write", [fold_slice, ptyd, ptylab], ids=lambda one: one.__name__)
def test_metadata_are_followed(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    path, settings = write(tmp_path)
    scan = read_scan(path, **settings)
    assert scan.energy_ev == pytest.approx(ENERGY_EV, rel=1e-6)
    assert scan.pixel_size_m == pytest.approx((PIXEL_M, PIXEL_M), rel=1e-6)


def test_the_mask_of_a_ptyd_is_its_bad_pixels(tmp_path: Path) -> None:
    path, settings = ptyd(tmp_path)
    scan = read_scan(path, **settings | {"bad_pixels": "marked"})
    assert scan.bad_pixels is not None
    np.testing.assert_array_equal(np.argwhere(scan.bad_pixels), [[2, 3]])


def test_the_parameters_of_dp_are_an_input(tmp_path: Path) -> None:
    path, _ = ptycho_fm(tmp_path)
    assert list(read_scan(path).files) == [tmp_path / "a_para.hdf5"]


@pytest.mark.parametrize(
    ("write", "change", "said"),
    [
        (ptycho_fm, lambda folder: (folder / "a_para.hdf5").unlink(), "needs the file"),
        (fold_slice, None, "set source.probe to a file that holds one"),
        (ptyd, None, "set source.probe to a .ptyr file"),
        (ptylab, None, "a.hdf5: probeGuess is not in the file"),
    ],
)
def test_what_a_layout_lacks_is_one_line(
    tmp_path: Path, write: Callable[[Path], Any], change: Any, said: str
) -> None:
    path, _ = write(tmp_path)
    if change is not None:
        change(tmp_path)
    assert said in message(path)


def test_a_ptyr_says_that_it_holds_no_frames(tmp_path: Path) -> None:
    ptyd(tmp_path)
    assert "this one in source.probe" in message(tmp_path / "a.ptyr")


class TestPtychoFM(ReaderConformance):
    """A format of two files, held to what readers promise."""

    reader = find_reader("fold_slice", None).load()

    def write_scan(self, folder: Path, scan: ScanData) -> Path:
        y, x = scan.positions.T * PIXEL_M
        places = {"probe_position_x_m": x, "probe_position_y_m": y}
        tree = product() | places | {"probe": scan.probe[None]}
        save_tree(folder / "a_para.hdf5", tree, object=PIXELS)
        return save_tree(folder / "a_dp.hdf5", {"dp": np.square(scan.diffraction)})
