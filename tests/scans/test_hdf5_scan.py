"""What a CXI file may hold, and what it is refused for."""

from __future__ import annotations

import os
import struct
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
    Arrays,
    M,
    N,
    canonical,
    cxi,
    message,
    save,
    save_hdf5,
    with_value,
)


def test_cxi_gives_amplitude_and_pixels(tmp_path: Path) -> None:
    scan = read_scan(save_hdf5(tmp_path, cxi()))
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    height, width = (WAVELENGTH_M * DISTANCE_M / (N * pixel) for pixel in DETECTOR_PIXEL_M)
    assert scan.pixel_size_m == pytest.approx((height, width))
    assert (scan.energy_ev, scan.distance_m) == pytest.approx((ENERGY_EV, DISTANCE_M))
    i = np.arange(M)
    y = -4e-7 * i * i / height
    np.testing.assert_allclose(scan.positions[:, 1], 3e-6 * i / width + N // 2)
    np.testing.assert_allclose(scan.positions[:, 0], y - y.min() + N // 2)
    assert (np.rint(scan.positions) - N // 2).min() == 0
    np.testing.assert_array_equal(scan.probe[0], canonical()["probeGuess"])


def test_translations_too_short_for_a_pixel_are_not_rounded(tmp_path: Path) -> None:
    """Positions keep their fractions: steps of 0.3 um in pixels of some 1 um."""
    short = cxi()["entry_1/data_1/translation"] * [0.1, 1.0, 0.0]
    path = save_hdf5(tmp_path, cxi() | {"entry_1/data_1/translation": short})
    positions = read_scan(path).positions
    assert np.ptp(positions[:, 1]) < 2
    assert len(np.unique(positions[:, 1])) == M


@pytest.mark.parametrize("storage", [{}, {"compression": "gzip"}, {"chunks": (1, N, N)}])
def test_cxi_amplitude_is_mapped_where_it_lies_in_one_piece(
    tmp_path: Path, storage: dict[str, Any]
) -> None:
    amplitude = canonical()["diff3d"]
    path = save_hdf5(tmp_path, cxi() | {"entry_1/data_1/data": amplitude}, **storage)
    scan = read_scan(path, measurement="amplitude")
    assert isinstance(scan.diffraction, np.memmap) == (not storage)
    np.testing.assert_array_equal(scan.diffraction, amplitude)


def test_frames_that_lie_elsewhere_are_read(tmp_path: Path) -> None:
    """After a user block, in another file, or pieced together: no place in the file to map."""
    key, amplitude = "entry_1/data_1/data", canonical()["diff3d"]
    files = [tmp_path / f"{name}.cxi" for name in ("block", "external", "virtual")]
    for path in files:
        with h5py.File(path, "w", userblock_size=512 if path.stem == "block" else 0) as file:
            for other, value in cxi().items():
                if other != key:
                    file[other] = value
            if path.stem == "block":
                file[key] = amplitude
            elif path.stem == "external":
                amplitude.tofile(tmp_path / "raw")
                file.create_dataset(
                    key, amplitude.shape, "f4", external=[(str(tmp_path / "raw"), 0, 1 << 20)]
                )
            else:
                layout = h5py.VirtualLayout(amplitude.shape, "f4")
                layout[:] = h5py.VirtualSource(str(files[0]), key, amplitude.shape)
                file.create_virtual_dataset(key, layout)
        scan = read_scan(path, measurement="amplitude", follow=(tmp_path,))
        np.testing.assert_array_equal(scan.diffraction, amplitude)


CXI_ACCEPTED: dict[str, Arrays] = {
    "frames of the detector": {
        "entry_1/data_1/data": None,
        "entry_1/instrument_1/detector_1/data": COUNTS.astype(np.uint16),
    },
    "translation of the sample": {
        "entry_1/data_1/translation": None,
        "entry_1/sample_1/geometry_1/translation": cxi()["entry_1/data_1/translation"],
    },
    "two columns": {
        "entry_1/data_1/translation": cxi()["entry_1/data_1/translation"][:, :2],
    },
    "transposed translation": {
        "entry_1/data_1/translation": cxi()["entry_1/data_1/translation"].T,
    },
    "numbers as arrays": {
        "entry_1/instrument_1/detector_1/distance": np.full(M, DISTANCE_M),
    },
    "frames last": {"entry_1/data_1/data": np.moveaxis(COUNTS.astype(np.uint16), 0, -1)},
    "probe under another name": {
        "entry_1/instrument_1/source_1/illumination": None,
        "entry_1/instrument_1/detector_1/data_illumination": canonical()["probeGuess"],
    },
}


@pytest.mark.parametrize("change", CXI_ACCEPTED.values(), ids=CXI_ACCEPTED)
def test_cxi_variants_give_the_same_scan(tmp_path: Path, change: Arrays) -> None:
    usual = read_scan(save_hdf5(tmp_path, cxi(), "usual.cxi"))
    scan = read_scan(save_hdf5(tmp_path, cxi() | change))
    np.testing.assert_array_equal(scan.diffraction, usual.diffraction)
    np.testing.assert_allclose(scan.positions, usual.positions)
    np.testing.assert_array_equal(scan.probe, usual.probe)


CXI_REFUSED: list[tuple[str, Arrays, str, str]] = [
    ("frames", {"entry_1/data_1/data": None}, "entry_1/data_1/data", "missing"),
    ("places", {"entry_1/data_1/translation": None}, "entry_1/data_1/translation", "missing"),
    (
        "probe",
        {"entry_1/instrument_1/source_1/illumination": None},
        "entry_1/instrument_1/source_1/illumination",
        "give a Ptychodus product",
    ),
    (
        "real illumination",
        {"entry_1/instrument_1/source_1/illumination": np.ones((N, N))},
        "entry_1/instrument_1/source_1/illumination",
        "give a Ptychodus product",
    ),
    (
        "energy",
        {"entry_1/instrument_1/source_1/energy": None},
        "entry_1/instrument_1/source_1/energy",
        "set energy_ev",
    ),
    (
        "energy in eV",
        {"entry_1/instrument_1/source_1/energy": 8000.0},
        "entry_1/instrument_1/source_1/energy",
        "joules",
    ),
    (
        "distance",
        {"entry_1/instrument_1/detector_1/distance": None},
        "entry_1/instrument_1/detector_1/distance",
        "distance_m",
    ),
    (
        "pixel",
        {"entry_1/instrument_1/detector_1/x_pixel_size": None},
        "entry_1/instrument_1/detector_1/x_pixel_size",
        "pixel_size_m",
    ),
    (
        "distance varies",
        {"entry_1/instrument_1/detector_1/distance": np.arange(1.0, 7.0)},
        "entry_1/instrument_1/detector_1/distance",
        "holds 6 values from 1 to 6; expected one for all frames",
    ),
    (
        "translation of one column",
        {"entry_1/data_1/translation": np.ones((M, 1))},
        "entry_1/data_1/translation",
        "(M, 3)",
    ),
    (
        "translation NaN",
        {"entry_1/data_1/translation": np.full((M, 3), np.nan)},
        "entry_1/data_1/translation",
        "frame 0",
    ),
    (
        "lengths",
        {"entry_1/data_1/translation": np.ones((M - 1, 3))},
        "entry_1/data_1/data",
        "has 6 frames",
    ),
    (
        "negative counts",
        {"entry_1/data_1/data": with_value(COUNTS, (2, 0, 0), -3)},
        "entry_1/data_1/data",
        "frame 2",
    ),
    ("one frame", {"entry_1/data_1/data": COUNTS[0]}, "entry_1/data_1/", "expected"),
]


@pytest.mark.parametrize(
    ("change", "key", "reason"),
    [case[1:] for case in CXI_REFUSED],
    ids=[case[0] for case in CXI_REFUSED],
)
def test_cxi_refused(tmp_path: Path, change: Arrays, key: str, reason: str) -> None:
    text = message(save_hdf5(tmp_path, cxi() | change))
    assert f"key '{key}" in text
    assert reason in text


def test_what_the_caller_gives_goes_before_the_file(tmp_path: Path) -> None:
    missing = {key: None for key in cxi() if key.endswith(("energy", "distance", "pixel_size"))}
    path = save_hdf5(tmp_path, cxi() | missing)
    scan = read_scan(path, pixel_size_m=1e-9, energy_ev=500.0, distance_m=0.1)
    assert scan.pixel_size_m == (1e-9, 1e-9)
    assert (scan.energy_ev, scan.distance_m) == (500.0, 0.1)
    npz = save(tmp_path, canonical() | {"energy_ev": np.array(9.0)})
    assert read_scan(npz).energy_ev == 9.0
    assert read_scan(npz, energy_ev=7.0, pixel_size_m=(1e-9, 2e-9)).energy_ev == 7.0


def test_truncated_hdf5_is_refused(tmp_path: Path) -> None:
    path = save_hdf5(tmp_path, cxi())
    os.truncate(path, path.stat().st_size // 2)
    assert "truncated" in message(path)


def test_damaged_compressed_frames_are_refused(tmp_path: Path) -> None:
    path = save_hdf5(tmp_path, cxi(), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["entry_1/data_1/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 4] = b"evil"
    path.write_bytes(content)
    text = message(path)
    assert "key 'entry_1/data_1/data' cannot be read" in text
    assert "h5repack" in text


def test_frames_that_claim_to_lie_past_the_end_are_refused(tmp_path: Path) -> None:
    path = save_hdf5(tmp_path, cxi())
    with h5py.File(path) as file:
        start = file["entry_1/data_1/data"].id.get_offset()
    content = path.read_bytes()
    assert content.count(struct.pack("<Q", start)) == 1
    wrong = struct.pack("<Q", len(content) - 20)
    path.write_bytes(content.replace(struct.pack("<Q", start), wrong))
    assert "missing or damaged" in message(path)


def test_a_type_that_numpy_does_not_know_counts_as_damaged(tmp_path: Path) -> None:
    path = save_hdf5(tmp_path, cxi() | {"entry_1/data_1/translation": None})
    with h5py.File(path, "a") as file:
        odd = h5py.h5t.IEEE_F64LE.copy()
        odd.set_ebias(2**30)
        space = h5py.h5s.create_simple((M, 3))
        h5py.h5d.create(file["entry_1/data_1"].id, b"translation", odd, space)
    assert "key 'entry_1/data_1/translation'" in message(path)


def test_a_broken_link_counts_as_missing(tmp_path: Path) -> None:
    path = save_hdf5(tmp_path, cxi() | {"entry_1/data_1/data": None})
    with h5py.File(path, "a") as file:
        file["entry_1/data_1/data"] = h5py.SoftLink("/nowhere")
    assert "'entry_1/data_1/data'" in message(path)
