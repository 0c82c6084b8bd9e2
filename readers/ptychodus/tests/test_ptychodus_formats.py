"""Scans of facilities, in files made from what the readers read, come in as what they are."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tomllib

from facility_files import (
    ENERGY_EV,
    GRID,
    MAKERS,
    PIXEL_M,
    SIZE,
    Made,
    Truth,
    cssi,
    lamni,
    make_truth,
    nanomax,
    nsls_matlab,
    write_hdf5,
)
from ptycho_tasks.errors import ReaderError, ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.raw_scan import METRE_EV
from ptycho_tasks.scans.readers import read_scan

pytest.importorskip("ptychodus", reason="Ptychodus is not installed")
ImageExtent = pytest.importorskip("ptychodus.api.geometry").ImageExtent
savemat = pytest.importorskip("scipy.io").savemat
formats = pytest.importorskip("ptycho_tasks_ptychodus.formats")
library = pytest.importorskip("ptycho_tasks_ptychodus.library")


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make_truth()


def read(name: str, made: Made, **settings: Any) -> ScanData:
    settings = {"probe": "estimate", **made.settings, **settings}
    return read_scan(made.path, reader=name.split()[0], positions=made.positions, **settings)


@pytest.mark.parametrize("name", MAKERS)
def test_a_scan_is_what_it_is_and_every_file_that_is_read_is_named(
    name: str, truth: Truth, tmp_path: Path
) -> None:
    made = MAKERS[name](tmp_path, truth)
    scan = read(name, made)
    # The maker of LCLS files has a frame in too weak a beam, which has no position.
    kept = np.arange(len(truth.counts)) != (3 if name == "LCLS_XPP" else -1)
    np.testing.assert_allclose(scan.diffraction, np.sqrt(truth.counts[kept]), rtol=1e-6)
    expected = np.stack([truth.y_m, truth.x_m], axis=1)[kept] / PIXEL_M
    if name == "APS_BNP MAPS":  # a regular grid, of two axes
        expected = np.stack(np.mgrid[:GRID, :GRID], axis=-1).reshape(-1, 2) * (3.0, 2.0)
    # Files in whole nanometres round, and those in single precision.
    tolerance = 0.06 if "Velociprobe" in name else 1e-4
    shifted = expected - expected.min(axis=0) + SIZE // 2
    np.testing.assert_allclose(scan.positions, shifted, atol=tolerance)
    assert scan.pixel_size_m == pytest.approx((PIXEL_M, PIXEL_M))
    of_other_scans = {"scan_8_001.tif", "fly055_data_001.h5"}
    there = {path.name for path in tmp_path.iterdir()} - of_other_scans
    assert {path.name for path in scan.files} | {made.path.name} == there


def test_the_probe_is_read_where_the_format_has_one(truth: Truth, tmp_path: Path) -> None:
    scan = read("NSLS_II_MATLAB", MAKERS["NSLS_II_MATLAB"](tmp_path, truth), probe=None)
    np.testing.assert_allclose(scan.probe, truth.probe, rtol=1e-6)
    with pytest.raises(ScanError, match=r"gives no probe; set source\.probe to estimate"):
        read("APS_CSSI", cssi(tmp_path, truth), probe=None)


def write_matlab(folder: Path, truth: Truth) -> Path:
    """A reconstruction of fold_slice, of MATLAB 5."""
    contents = {
        "p": {"lambda": METRE_EV / ENERGY_EV, "dx_spec": [PIXEL_M, PIXEL_M]},
        "probe": truth.probe.reshape(-1, SIZE, SIZE).transpose(1, 2, 0),
        "object": np.ones((48, 48), np.complex64),
        "outputs": {
            "probe_positions": np.stack([truth.x_m, truth.y_m], axis=1) / PIXEL_M,
            "fourier_error_out": [0.2, 0.1],
        },
    }
    savemat(folder / "recon.mat", contents)
    return folder / "recon.mat"


@pytest.mark.parametrize("kind", ["fold_slice_mat", "NSLS_II_MATLAB"])
def test_probe_and_positions_of_matlab(kind: str, truth: Truth, tmp_path: Path) -> None:
    is_v5 = kind == "fold_slice_mat"
    made = cssi(tmp_path, truth)
    path = write_matlab(tmp_path, truth) if is_v5 else nsls_matlab(tmp_path, truth).path
    scan = read("APS_CSSI", Made(made.path, path, made.settings), probe=path)
    np.testing.assert_allclose(scan.probe, truth.probe.reshape(-1, SIZE, SIZE), rtol=1e-6)
    expected = np.stack([truth.y_m, truth.x_m], axis=1) / PIXEL_M
    np.testing.assert_allclose(scan.positions, expected - expected.min(axis=0) + SIZE // 2)
    assert path in scan.files


@pytest.mark.parametrize("kind", ["json", "h5"])
def test_masks_of_facilities(
    kind: str, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cssi(tmp_path, truth)
    path = tmp_path / f"mask.{kind}"
    if kind == "json":
        extent = ImageExtent(width_px=SIZE, height_px=SIZE)
        strategy = library.find_plugin("bad_pixels", "APS_34IDE_Bad_Pixels").strategy
        monkeypatch.setattr(strategy, "DETECTOR_EXTENT", extent, raising=False)
        path.write_text('{"Bad pixels": [{"Pixel": [5, 3], "Set": 1}]}')
    else:
        valid = np.ones((SIZE, SIZE), bool)
        valid[3, 5] = False
        write_hdf5(path, {"valid_pixel_mask": valid})
    scan = read("APS_CSSI", made, bad_pixels=str(path))
    assert scan.bad_pixels is not None
    assert np.argwhere(scan.bad_pixels).tolist() == [[3, 5]]
    assert path in scan.files


def test_a_mask_of_another_detector_is_one_line(truth: Truth, tmp_path: Path) -> None:
    (tmp_path / "mask.json").write_text('{"Bad pixels": [{"Pixel": [5, 3]}]}')
    with pytest.raises(ScanError, match=r"a mask of 1062 x 1028 pixels for frames of 16 x 16"):
        read("APS_CSSI", cssi(tmp_path, truth), bad_pixels=str(tmp_path / "mask.json"))


def test_every_reader_of_masks_probes_and_positions_is_reachable() -> None:
    """What is not named by a format is read by ptycho-tasks itself, or chosen by its file."""
    registry = library.load_registry()
    of_core = {"CXI", "NPZ", "SLAC_NPZ", "HDF5", "Ptychodus_Training_Data", "CSV", "NPY"}
    probes = {plugin.simple_name for plugin in registry.probe_file_readers}
    assert probes == of_core | set(formats.MATLAB_PROBES)
    masks = {plugin.simple_name for plugin in registry.bad_pixels_file_readers}
    as_numpy = {"NPY_Bad_Pixels", "NPY_Good_Pixels"}
    assert masks == as_numpy | {formats.VALID_PIXELS, formats.BAD_PIXEL_LIST}
    named = {name for form in formats.FORMATS.values() for name in form.positions}
    positions = {plugin.simple_name for plugin in registry.probe_position_file_readers}
    assert positions - named - set(formats.ANY_POSITIONS) == {"SLAC_NPZ", "fold_slice"}


def test_a_detector_is_cropped_around_its_beam(truth: Truth, tmp_path: Path) -> None:
    counts = np.zeros((len(truth.counts), 24, 30), np.uint32)
    counts[:, 3 : 3 + SIZE, 10 : 10 + SIZE] = truth.counts
    made = lamni(tmp_path, truth)
    with h5py.File(made.path, "a") as file:
        attributes = dict(file["entry/data/eiger_4"].attrs)
        del file["entry/data/eiger_4"]
        file["entry/data/eiger_4"] = counts
        file["entry/data/eiger_4"].attrs.update(attributes)
        file["entry/data/eiger_4"].attrs.update(
            Center_x_pixel=10 + SIZE // 2, Center_y_pixel=3 + SIZE // 2
        )
    scan = read("APS_LamNI", made)
    middle = scan.diffraction[:, scan.size // 2 - SIZE // 2 :, scan.size // 2 - SIZE // 2 :]
    np.testing.assert_allclose(middle[:, :SIZE, :SIZE], np.sqrt(truth.counts), rtol=1e-6)


def test_every_format_is_an_entry_point_and_a_reader_of_ptychodus() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["ptycho_tasks.readers"]
    assert list(points) == list(formats.FORMATS)
    for point in entry_points(group="ptycho_tasks.readers"):
        if point.name in points:
            assert point.load().name == point.name
    for form in formats.FORMATS.values():
        assert library.has_plugin("diffraction", form.diffraction)
        known = [name for name in form.positions if library.has_plugin("probe_position", name)]
        assert known, form.name
    named = {form.diffraction for form in formats.FORMATS.values()}
    others = {p.simple_name for p in library.load_registry().diffraction_file_readers} - named
    assert others == {"CXI", "NPZ", "SLAC_NPZ", "fold_slice"}  # ptycho-tasks reads these itself


def test_a_file_of_another_format_is_refused(truth: Truth, tmp_path: Path) -> None:
    other = Made(write_hdf5(tmp_path / "a.h5", {"nothing": 0}), None, {"pixel_size_m": PIXEL_M})
    with pytest.raises(ScanError, match=r"a\.h5: .*`APS_CSSI` cannot read it: .*it holds nothing"):
        read("APS_CSSI", other)


def test_a_linked_file_that_lies_elsewhere_is_refused(truth: Truth, tmp_path: Path) -> None:
    inside = tmp_path / "scan"
    inside.mkdir()
    made = nanomax(inside, truth)
    (inside / "data.h5").rename(tmp_path / "data.h5")
    with pytest.raises(ScanError, match=r"needs the file data\.h5, which is not there"):
        read("MAX_IV_NanoMAX", made)
    with h5py.File(made.path, "a") as file:
        del file["entry/measurement/Eiger/data"]
        file["entry/measurement/Eiger/data"] = h5py.ExternalLink("../data.h5", "frames")
    with pytest.raises(ScanError, match=r"outside of the scan's folder; allow that with `source"):
        read("MAX_IV_NanoMAX", made)
    assert read("MAX_IV_NanoMAX", made, follow=(tmp_path,)).frame_count == len(truth.counts)


def test_positions_of_another_scan_are_refused(truth: Truth, tmp_path: Path) -> None:
    made = lamni(tmp_path, truth)
    assert made.positions is not None
    text = made.positions.read_text()
    moved = re.sub(r"(?m)^(\d+) ", lambda match: f"{int(match[1]) + 15} ", text)
    made.positions.write_text(moved)
    with pytest.raises(ScanError, match=r"15 of 25 frames have no position and 15 positions no fr"):
        read("APS_LamNI", made)


def test_what_is_missing_is_named(truth: Truth, tmp_path: Path) -> None:
    made = lamni(tmp_path, truth)
    with pytest.raises(ScanError, match=r"APS_LamNI without positions; name their file \(\.dat\)"):
        read("APS_LamNI", Made(made.path))
    with pytest.raises(ScanError, match=r"set source\.energy_ev and source\.distance_m"):
        read("APS_CSSI", Made(cssi(tmp_path, truth).path))


def test_without_ptychodus_the_line_says_what_to_install(
    truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ptychodus.api.plugins", None)
    library.load_registry.cache_clear()
    try:
        with pytest.raises(ReaderError, match=r"install it with `pip install --no-deps ptychodus"):
            read("APS_CSSI", cssi(tmp_path, truth))
    finally:
        library.load_registry.cache_clear()


def test_frames_that_a_detector_compressed(truth: Truth, tmp_path: Path) -> None:
    hdf5plugin: Any = pytest.importorskip("hdf5plugin")
    made = cssi(tmp_path, truth)
    with h5py.File(made.path, "a") as file:
        del file["exchange/data"]
        file.create_dataset("exchange/data", data=truth.counts, **hdf5plugin.Bitshuffle())
    scan = read("APS_CSSI", made)
    np.testing.assert_allclose(scan.diffraction, np.sqrt(truth.counts), rtol=1e-6)


def test_a_centre_of_the_settings_goes_before_the_files(truth: Truth, tmp_path: Path) -> None:
    counts = np.zeros((len(truth.counts), 24, 30), np.uint32)
    counts[:, 5 : 5 + SIZE, 7 : 7 + SIZE] = truth.counts
    made = cssi(tmp_path, truth)
    with h5py.File(made.path, "a") as file:
        del file["exchange/data"]
        file["exchange/data"] = counts
    scan = read("APS_CSSI", made, centre=[5 + SIZE // 2, 7 + SIZE // 2], crop=SIZE)
    np.testing.assert_allclose(scan.diffraction, np.sqrt(truth.counts), rtol=1e-6)


@pytest.mark.parametrize("crop", [None, SIZE // 2])
def test_a_smaller_detector_has_larger_pixels(
    truth: Truth, tmp_path: Path, crop: int | None
) -> None:
    scan = read("APS_LamNI", lamni(tmp_path, truth), crop=crop)
    ratio = SIZE // scan.size
    assert scan.size == (crop or SIZE)
    assert scan.pixel_size_m == pytest.approx((ratio * PIXEL_M, ratio * PIXEL_M))
    assert np.ptp(scan.positions[:, 1]) == pytest.approx(np.ptp(truth.x_m) / PIXEL_M / ratio)
