"""Frames whose positions, probe and object lie in a product of Ptychodus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.readers import read_scan
from scan_files import COUNTS, Arrays, H, M, W, canonical, message, save, save_hdf5, with_value

PIXEL_M = (2e-8, 1e-8)
CENTER_M = (3e-6, -1e-6)


def write_product(path: Path, **changes: Any) -> Path:
    """A Ptychodus product for the frames 4, 0, 2 of a scan; positions in (W, H) pixels."""
    scan = canonical()
    columns = {
        "probe_position_indexes": np.array([4, 0, 2]),
        "probe_position_x_m": CENTER_M[1] + PIXEL_M[1] * np.array([1.0, -2.5, 0.0]),
        "probe_position_y_m": CENTER_M[0] + PIXEL_M[0] * np.array([3.0, 0.0, -4.25]),
        "probe": scan["probeGuess"][None, None],
        "object": scan["objectGuess"][None],
    } | changes
    with h5py.File(path, "w") as file:
        file.attrs.update({"name": "p", "probe_energy_eV": 9000.0, "exposure_time_s": 0.5})
        file.attrs["detector_object_distance_m"] = 1.5
        for key, value in columns.items():
            if value is not None:
                file[key] = value
        if "object" in file:
            file["object"].attrs.update(
                dict(
                    zip(
                        ("pixel_height_m", "pixel_width_m", "center_y_m", "center_x_m"),
                        (*PIXEL_M, *CENTER_M),
                        strict=True,
                    )
                )
            )
    return path


def frames_npz(folder: Path) -> Path:
    return save(folder, {"patterns": COUNTS}, "frames.npz")


def frames_canonical(folder: Path) -> Path:
    return save(folder, canonical(), "frames.npz")


def frames_hdf5(folder: Path) -> Path:
    return save_hdf5(folder, {"entry/data/data": COUNTS}, "frames.h5")


def frames_cxi(folder: Path) -> Path:
    return save_hdf5(folder, {"entry_1/data_1/data": COUNTS}, "frames.cxi")


@pytest.mark.parametrize("write", [frames_npz, frames_canonical, frames_hdf5, frames_cxi])
def test_a_product_gives_positions_by_frame_number(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    scan = read_scan(write(tmp_path), product=write_product(tmp_path / "p.h5"))
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS[[0, 2, 4]]), rtol=1e-6)
    # A Ptychodus position on the object's centre is on the edge between the middle pixels.
    np.testing.assert_allclose(
        scan.positions, [[H / 2, W / 2 - 2.5], [H / 2 - 4.25, W / 2], [H / 2 + 3, W / 2 + 1]]
    )
    np.testing.assert_array_equal(scan.object, canonical()["objectGuess"])
    assert scan.pixel_size_m == PIXEL_M
    assert (scan.energy_ev, scan.distance_m, scan.exposure_s) == (9000.0, 1.5, 0.5)
    assert "positions, probe and object taken from the product p.h5" in scan.notes


def test_frames_may_carry_their_own_numbers(tmp_path: Path) -> None:
    frames = save(tmp_path, {"patterns": COUNTS[:3], "indexes": np.array([2, 4, 0])}, "f.npz")
    scan = read_scan(frames, product=write_product(tmp_path / "p.h5"))
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS[:3]), rtol=1e-6)
    np.testing.assert_allclose(scan.positions[:, 0], [H / 2 - 4.25, H / 2 + 3, H / 2])


def test_metadata_come_from_caller_product_and_frames_in_this_order(tmp_path: Path) -> None:
    own = {"energy_ev": np.array(1.0), "distance_m": np.array(2.0), "exposure_s": np.array(3.0)}
    frames = save(tmp_path, canonical() | own, "frames.npz")
    product = write_product(tmp_path / "p.h5")
    scan = read_scan(frames, product=product, energy_ev=7.0)
    assert (scan.energy_ev, scan.distance_m, scan.exposure_s) == (7.0, 1.5, 0.5)
    with h5py.File(product, "a") as file:
        for name in ("probe_energy_eV", "detector_object_distance_m", "exposure_time_s"):
            del file.attrs[name]
    scan = read_scan(frames, product=product)
    assert (scan.energy_ev, scan.distance_m, scan.exposure_s) == (1.0, 2.0, 3.0)


def test_a_bad_frame_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    frames = save(tmp_path, {"diff3d": with_value(canonical()["diff3d"], (4, 1, 1), -3)})
    text = message(frames, product=write_product(tmp_path / "p.h5"))
    assert "negative values, down to -3 (first at frame 4)" in text


def test_frame_numbers_must_be_as_many_as_frames(tmp_path: Path) -> None:
    frames = save(tmp_path, {"patterns": COUNTS, "indexes": np.array([2, 4, 0])}, "f.npz")
    text = message(frames, product=write_product(tmp_path / "p.h5"))
    assert "has 6 frames (shape (6, 8, 8)) but 3 frame numbers" in text


@pytest.mark.parametrize(
    ("item", "name", "value"),
    [
        ("object", "center_x_m", np.nan),
        ("object", "pixel_width_m", "wide"),
        ("object", "pixel_height_m", [1e-8, 1e-8]),
        ("/", "probe_energy_eV", "9 keV"),
        ("/", "exposure_time_s", np.inf),
    ],
)
def test_attributes_that_are_no_number_are_refused(
    tmp_path: Path, item: str, name: str, value: Any
) -> None:
    product = write_product(tmp_path / "p.h5")
    with h5py.File(product, "a") as file:
        file[item].attrs[name] = value
    with pytest.raises(ScanError, match=rf"p\.h5: key '{name}' .*one finite number; write"):
        read_scan(frames_npz(tmp_path), product=product)


def test_a_product_for_every_frame_leaves_them_mapped(tmp_path: Path) -> None:
    places = {f"probe_position_{axis}_m": 4e-9 * np.arange(M) for axis in "xy"}
    product = write_product(tmp_path / "p.h5", probe_position_indexes=np.arange(M)[::-1], **places)
    scan = read_scan(save(tmp_path, canonical()), product=product)
    assert isinstance(scan.diffraction, np.memmap)


def test_a_product_without_frames_says_where_it_goes(tmp_path: Path) -> None:
    text = message(write_product(tmp_path / "p.h5"))
    assert "give the frames in source.file and this file in source.product" in text


PRODUCT_REFUSED: list[tuple[str, Arrays, str, str]] = [
    ("no object", {"object": None}, "object", "missing"),
    ("object of one axis", {"object": np.ones(3, "c8")}, "object", "(L, H, W)"),
    ("object without pixels", {"object": np.ones((1, 0, 3), "c8")}, "object", "(L, H, W)"),
    ("object of text", {"object": b"none"}, "object", "(L, H, W)"),
    ("no probe", {"probe": None}, "probe", "missing"),
    ("no positions", {"probe_position_x_m": None}, "probe_position_x_m", "missing"),
    ("lengths", {"probe_position_x_m": np.ones(2)}, "probe_position_indexes", "x 2"),
    ("twice", {"probe_position_indexes": [1, 3, 1]}, "probe_position_indexes", "there twice"),
    ("negative", {"probe_position_indexes": [1, -3, 2]}, "probe_position_indexes", "frame -3"),
    ("NaN", {"probe_position_y_m": [0, np.nan, 1]}, "probe_position_y_m", "frame 1"),
    ("probe size", {"probe": np.ones((1, 1, 4, 4), "c8")}, "probe", "frames are 8 x 8"),
]


@pytest.mark.parametrize(
    ("change", "key", "reason"),
    [case[1:] for case in PRODUCT_REFUSED],
    ids=[case[0] for case in PRODUCT_REFUSED],
)
def test_products_refused(tmp_path: Path, change: Arrays, key: str, reason: str) -> None:
    product = write_product(tmp_path / "p.h5", **change)
    with pytest.raises(ScanError) as caught:
        read_scan(frames_npz(tmp_path), product=product)
    assert f"{product}: key {key!r}" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_product_of_other_frames_is_refused(tmp_path: Path) -> None:
    product = write_product(tmp_path / "p.h5", probe_position_indexes=[1, 7, 2])
    assert "position for frame 7" in message(frames_npz(tmp_path), product=product)
