"""HDF5 and NPZ of any layout, by `source.datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_tasks.scans.readers import read_scan
from scan_files import (
    COUNTS,
    DETECTOR_PIXEL_M,
    DISTANCE_M,
    ENERGY_EV,
    WAVELENGTH_M,
    M,
    N,
    canonical,
    message,
    save,
)

C = canonical()
PITCH = DETECTOR_PIXEL_M[0]
PIXEL_UM = WAVELENGTH_M * DISTANCE_M / (N * PITCH) * 1e6
PLACES = {
    "diff3d": "entry/frames",
    "xcoords": "motors[:, 0]",
    "ycoords": "motors[:, 1]",
    "probeGuess": "guess/wave",
    "energy_ev": "beam/energy",
    "distance_m": "beam/z",
    "detector_pixel_m": "beam/pitch",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/frames"] = COUNTS.astype("u2")
        file["motors"] = np.stack([C["xcoords"], C["ycoords"], np.zeros(M)], axis=1) * PIXEL_UM
        file["motors"].attrs["units"] = "um"
        file["guess/wave"] = C["probeGuess"]
        for key, value, unit in (
            ("energy", ENERGY_EV / 1e3, "keV"), ("z", DISTANCE_M * 1e3, "mm"), ("pitch", PITCH, "m")
        ):  # fmt: skip
            file[f"beam/{key}"] = value
            file[f"beam/{key}"].attrs["units"] = unit
    return tmp_path / "scan.h5"


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    arrays = {
        "entry/frames": COUNTS.astype("u2"),
        "motors": np.stack([C["xcoords"], C["ycoords"], np.zeros(M)], axis=1) * PIXEL_UM,
        "guess/wave": C["probeGuess"],
        "beam/energy": np.linspace(0.99995, 1.00005, M) * ENERGY_EV,
        "beam/z": np.array(DISTANCE_M),
        "beam/pitch": np.array(PITCH),
    }
    return save(tmp_path, arrays)


def test_an_npz_of_any_layout_is_read_in_the_units_of_the_settings(npz: Path) -> None:
    scan = read_scan(npz, datasets=PLACES, units="um")
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    np.testing.assert_allclose(scan.positions, np.stack([C["ycoords"], C["xcoords"]], axis=1))
    np.testing.assert_array_equal(scan.probe, C["probeGuess"][None])
    assert (scan.energy_ev, scan.distance_m) == pytest.approx((ENERGY_EV, DISTANCE_M))
    assert any("beam/energy: mean of 6 values from" in note for note in scan.notes)


def test_a_file_of_any_layout_is_read_with_its_units(file: Path) -> None:
    scan = read_scan(file, datasets=PLACES)
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    np.testing.assert_allclose(scan.positions, np.stack([C["ycoords"], C["xcoords"]], axis=1))
    np.testing.assert_array_equal(scan.probe, C["probeGuess"][None])
    assert (scan.energy_ev, scan.distance_m) == pytest.approx((ENERGY_EV, DISTANCE_M))
    assert scan.pixel_size_m == pytest.approx((PIXEL_UM * 1e-6,) * 2)


def test_keys_of_ours_need_not_be_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ours.h5", "w") as file:
        for key, value in C.items():
            file[key] = value
    scan = read_scan(tmp_path / "ours.h5", datasets={"diff3d": "diff3d"})
    np.testing.assert_array_equal(scan.diffraction, C["diff3d"])
    assert scan.object is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"diff3d": "entry/data"}, "perhaps `diff3d: entry/frames`"),
        ({"xcoords": "motor_x"}, "perhaps `xcoords: motors[:, 0]`"),
        ({"ycoords": None}, "ycoords is not in the file"),
        ({"ycoords": "y"}, "perhaps `ycoords: motors[:, 1]`"),
        ({"probeGuess": "guess"}, "perhaps `probeGuess: guess/wave`"),
        ({"xcoords": "motors"}, "as in `xcoords: motors[:, 0]`"),
        ({"xcoords": "motors[:, 7]"}, "of which [:, 7] cannot be taken"),
        ({"probe": "guess/wave"}, "unknown key `probe`; known keys: diff3d, xcoords"),
        ({"energy_ev": "beam/e"}, "energy_ev (beam/e) is not in the file"),
        ({"energy_ev": None}, "the size of a pixel is unknown"),
        ({"diff3d": "guess/wave"}, "three axes"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "npz"])
def test_what_is_not_there_is_said_with_what_is(
    request: pytest.FixtureRequest, kind: str, change: dict[str, Any], said: str
) -> None:
    file = request.getfixturevalue(kind)
    places = {key: place for key, place in (PLACES | change).items() if place is not None}
    text = message(file, datasets=places, **({"units": "um"} if kind == "npz" else {}))
    assert said in text
    if "is not in the file" in text:
        assert "entry/frames (6 x 8 x 8 uint16)" in text


def test_the_user_s_word_on_units_goes_first(file: Path) -> None:
    scan = read_scan(file, datasets=PLACES, units="pixels")
    assert np.ptp(scan.positions, axis=0) == pytest.approx(
        np.ptp([C["ycoords"], C["xcoords"]], axis=1) * PIXEL_UM
    )


def test_compression_that_is_not_known_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "packed.h5"
    with h5py.File(path, "w") as file:
        for key, value in C.items():
            file[key] = value
        del file["diff3d"]
        file.create_dataset("diff3d", data=C["diff3d"], compression="lzf")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: number < 256)
    monkeypatch.setitem(__import__("sys").modules, "hdf5plugin", None)
    said = message(path, datasets={"diff3d": "diff3d"})
    assert "'diff3d' is compressed with lzf (32000)" in said
    assert "pip install 'ptycho-tasks[compressed]'" in said


@pytest.fixture
def master(file: Path, tmp_path: Path) -> Path:
    """The frames in numbered files, as detectors write them."""
    with h5py.File(file, "a") as whole:
        counts = whole["entry/frames"][()]
        del whole["entry/frames"]
        for number, part in enumerate((counts[:4], counts[4:]), 1):
            name = f"part_{number:06d}.h5"
            with h5py.File(tmp_path / name, "w") as one:
                one["entry/data/data"] = part
            link = h5py.ExternalLink(name, "/entry/data/data")
            whole[f"entry/data/data_{number:06d}"] = link
        mask = np.zeros((N, N), "u4")
        mask[1, 2] = 8
        whole["entry/instrument/detector/detectorSpecific/pixel_mask"] = mask
    return file


def test_a_zip_is_no_hdf5(tmp_path: Path) -> None:
    assert "a zip, as NPZ is, and not HDF5" in message(
        save(tmp_path, C), datasets=PLACES, reader="hdf5"
    )


def test_numbered_files_are_one_stack(master: Path, tmp_path: Path) -> None:
    scan = read_scan(master, datasets=PLACES | {"diff3d": "entry/data"})
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    assert {file.name for file in scan.files} == {"part_000001.h5", "part_000002.h5"}


def test_the_mask_of_a_master_file_counts(master: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "places.txt", np.stack([C["xcoords"], C["ycoords"]], axis=1))
    scan = read_scan(
        master,
        positions=tmp_path / "places.txt",
        probe="estimate",
        units="pixels",
        reader="ptychodus",
    )
    np.testing.assert_array_equal(np.argwhere(scan.bad_pixels), [[1, 2]])


def test_a_numbered_file_that_is_missing_is_named(master: Path, tmp_path: Path) -> None:
    (tmp_path / "part_000002.h5").unlink()
    assert "part_000002.h5" in message(master, datasets=PLACES | {"diff3d": "entry/data"})


def test_numbered_files_of_other_frames_are_refused(master: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "part_000002.h5", "w") as one:
        one["entry/data/data"] = np.zeros((2, N, N + 2), "u2")
    said = message(master, datasets=PLACES | {"diff3d": "entry/data"})
    assert "data_000002" in said
    assert "expected frames as in entry/data/data_000001" in said


def test_first_contact_with_frames_alone_lists_what_there_is(master: Path) -> None:
    said = message(master)
    assert "motors (6 x 3 float64)" in said
    assert "entry/data/data_000001 (in another file)" in said
    assert "source.datasets" in said


def test_positions_of_a_raster_are_taken_row_by_row(file: Path) -> None:
    places = PLACES | {"xcoords": "raster/x", "ycoords": "raster/y"}
    with h5py.File(file, "a") as opened:
        for name in ("xcoords", "ycoords"):
            opened[f"raster/{name[0]}"] = np.reshape(C[name], (2, M // 2))
    scan = read_scan(file, datasets=places, units="pixels")
    np.testing.assert_allclose(scan.positions, np.stack([C["ycoords"], C["xcoords"]], axis=1))
    del places["ycoords"]
    assert "perhaps `ycoords: raster/y`" in message(file, datasets=places)


def test_a_mask_lies_under_any_key_of_the_file(file: Path, npz: Path) -> None:
    mask = np.zeros((N, N), bool)
    mask[1, 2] = True
    with h5py.File(file, "a") as opened:
        opened["detector/mask"] = mask
    with np.load(npz) as arrays:
        save(npz.parent, {**arrays, "detector/mask": mask})
    for path in (file, npz):
        scan = read_scan(path, datasets=PLACES, units="um", bad_pixels="detector/mask")
        np.testing.assert_array_equal(scan.bad_pixels, mask)
        said = message(path, datasets=PLACES, units="um", bad_pixels="detector/none")
        assert "key 'detector/none' is missing; expected the mask" in said
        assert f"detector/mask ({N} x {N} bool)" in said
