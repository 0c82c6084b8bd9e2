"""What a scan file may hold: each acceptance is noted and logged, each refusal is one line."""

from __future__ import annotations

import logging
import os
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans import npz as npz_module
from ptycho_tasks.scans.readers import read_scan

M, N, H, W = 6, 8, 20, 24
COUNTS = np.random.default_rng(0).poisson(9.0, (M, N, N))
ENERGY_EV, DISTANCE_M, DETECTOR_PIXEL_M = 8000.0, 2.0, (50e-6, 40e-6)
WAVELENGTH_M = 6.62607015e-34 * 299792458.0 / (ENERGY_EV * 1.602176634e-19)

Arrays = dict[str, Any]


def canonical() -> Arrays:
    """A scan after the contract, to be spoilt."""
    rng = np.random.default_rng(1)
    return {
        "diff3d": np.sqrt(COUNTS).astype(np.float32),
        "xcoords": rng.uniform(4, 16, M),
        "ycoords": rng.uniform(4, 12, M),
        "probeGuess": (rng.random((N, N)) + 1j).astype(np.complex64),
        "objectGuess": (rng.random((H, W)) + 1j).astype(np.complex64),
        "scan_index": np.zeros(M, dtype=np.int64),
    }


def with_value(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


def save(folder: Path, arrays: Arrays, name: str = "scan.npz") -> Path:
    np.savez(folder / name, **{k: v for k, v in arrays.items() if v is not None})
    return folder / name


def message(path: Path, **options: Any) -> str:
    """The one line with which a scan is refused."""
    with pytest.raises(ScanError) as caught:
        read_scan(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_canonical_scan_is_mapped_and_nothing_is_noted(tmp_path: Path) -> None:
    arrays = canonical()
    scan = read_scan(save(tmp_path, arrays))
    assert isinstance(scan.diffraction, np.memmap)
    np.testing.assert_array_equal(scan.diffraction, arrays["diff3d"])
    np.testing.assert_array_equal(
        scan.positions, np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    )
    np.testing.assert_array_equal(scan.probe, arrays["probeGuess"][None])
    np.testing.assert_array_equal(scan.object, arrays["objectGuess"])
    assert (scan.name, scan.notes, scan.frame_count, scan.size) == ("scan", (), M, N)


def test_only_what_is_needed_must_be_there(tmp_path: Path) -> None:
    needed = {k: v for k, v in canonical().items() if k not in ("objectGuess", "scan_index")}
    scan = read_scan(save(tmp_path, needed))
    assert scan.object is None
    assert scan.scan_index is None
    assert scan.start_positions is None


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = save(tmp_path, canonical()).rename(tmp_path / "scan.h5")
    assert read_scan(path).frame_count == M


def test_probe_modes_are_kept(tmp_path: Path) -> None:
    modes = np.ones((3, N, N), dtype=np.complex64)
    assert read_scan(save(tmp_path, canonical() | {"probeGuess": modes})).probe.shape == (3, N, N)


C = canonical()
ACCEPTED: list[tuple[str, Arrays, dict[str, Any], str]] = [
    ("alias", {"diff3d": None, "diffraction": C["diff3d"]}, {}, "diffraction: read as diff3d"),
    ("both names", {"diffraction": C["diff3d"] + 1}, {}, "diffraction: ignored, diff3d is taken"),
    (
        "frames last",
        {"diff3d": np.moveaxis(C["diff3d"], 0, -1)},
        {},
        "diff3d: frames moved from the last axis to the first",
    ),
    ("float64", {"diff3d": C["diff3d"].astype("f8")}, {}, "diff3d: float64 cast to float32"),
    ("big endian", {"diff3d": C["diff3d"].astype(">f4")}, {}, "diff3d: >f4 cast to float32"),
    (
        "complex128",
        {"probeGuess": C["probeGuess"].astype("c16")},
        {},
        "probeGuess: complex128 cast to complex64",
    ),
    (
        "complex128 object",
        {"objectGuess": C["objectGuess"].astype("c16")},
        {},
        "objectGuess: complex128 cast to complex64",
    ),
    ("float32 x", {"xcoords": C["xcoords"].astype("f4")}, {}, "xcoords: float32 cast to float64"),
    ("int32", {"scan_index": np.zeros(M, "i4")}, {}, "scan_index: int32 cast to int64"),
    (
        "integer counts",
        {"diff3d": COUNTS.astype("u2")},
        {"measurement": "counts"},
        "diff3d: square root of counts taken",
    ),
    (
        "float counts",
        {"diff3d": COUNTS.astype("f4")},
        {"measurement": "counts"},
        "diff3d: square root of counts taken",
    ),
    ("extra keys", {"b": np.ones(2), "a": np.ones(1)}, {}, "keys ignored: b, a"),
]


@pytest.mark.parametrize(
    ("change", "options", "note"),
    [case[1:] for case in ACCEPTED],
    ids=[case[0] for case in ACCEPTED],
)
def test_accepted_with_a_note_and_a_log_line(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Arrays,
    options: dict[str, Any],
    note: str,
) -> None:
    caplog.set_level(logging.INFO, logger="ptycho_tasks")
    path = save(tmp_path, canonical() | change)
    scan = read_scan(path, **options)
    assert scan.notes.count(note) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: {sentence}" for sentence in scan.notes
    ]
    np.testing.assert_allclose(scan.diffraction, canonical()["diff3d"], rtol=1e-6)
    assert (scan.diffraction.dtype, scan.probe.dtype) == (np.float32, np.complex64)
    assert scan.diffraction.flags.c_contiguous


def ragged() -> np.ndarray:
    return np.array([{}, {}], dtype=object)


REFUSED: list[tuple[str, Arrays, dict[str, Any], str, str]] = [
    ("no frames", {"diff3d": None}, {}, "diff3d", "is missing"),
    ("no x", {"xcoords": None}, {}, "xcoords", "is missing"),
    ("no y", {"ycoords": None}, {}, "ycoords", "is missing"),
    ("no probe", {"probeGuess": None}, {}, "probeGuess", "is missing"),
    ("x and y disagree", {"xcoords": C["xcoords"][:5]}, {}, "xcoords", "has 5 entries"),
    (
        "frames and positions disagree",
        {"xcoords": C["xcoords"][:5], "ycoords": C["ycoords"][:5]},
        {},
        "diff3d",
        "has 6 frames",
    ),
    (
        "frames last and positions disagree",
        {
            "diff3d": np.moveaxis(C["diff3d"], 0, -1),
            "xcoords": C["xcoords"][:5],
            "ycoords": C["ycoords"][:5],
        },
        {},
        "diff3d",
        "has 6 frames",
    ),
    ("NaN", {"diff3d": with_value(C["diff3d"], (3, 0, 1), np.nan)}, {}, "diff3d", "frame 3"),
    ("Inf", {"diff3d": with_value(C["diff3d"], (5, 7, 1), np.inf)}, {}, "diff3d", "frame 5"),
    ("negative", {"diff3d": with_value(C["diff3d"], (2, 1, 1), -1)}, {}, "diff3d", "frame 2"),
    (
        "overflow of float32",
        {"diff3d": with_value(C["diff3d"].astype("f8"), (4, 1, 1), 1e300)},
        {},
        "diff3d",
        "frame 4",
    ),
    (
        "negative counts",
        {"diff3d": with_value(COUNTS, (1, 1, 1), -1)},
        {"measurement": "counts"},
        "diff3d",
        "frame 1",
    ),
    (
        "dead pixels",
        {"diff3d": with_value(COUNTS.astype("u4"), (1, 1, 1), 2**32 - 1)},
        {"measurement": "counts"},
        "diff3d",
        "frame 1",
    ),
    ("not square", {"diff3d": C["diff3d"][:, :, :6]}, {}, "diff3d", "8 x 6"),
    ("odd", {"diff3d": C["diff3d"][:, 1:, 1:]}, {}, "diff3d", "even"),
    ("probe size", {"probeGuess": C["probeGuess"][1:, 1:]}, {}, "probeGuess", "8 x 8"),
    ("probe axes", {"probeGuess": C["probeGuess"][0]}, {}, "probeGuess", "(P, N, N)"),
    ("probe NaN", {"probeGuess": C["probeGuess"] * np.nan}, {}, "probeGuess", "NaN"),
    ("probe zero", {"probeGuess": C["probeGuess"] * 0}, {}, "probeGuess", "zero everywhere"),
    ("object NaN", {"objectGuess": C["objectGuess"] * np.nan}, {}, "objectGuess", "NaN"),
    ("object axes", {"objectGuess": C["objectGuess"][0]}, {}, "objectGuess", "(H, W)"),
    ("integers", {"diff3d": COUNTS}, {}, "diff3d", "set measurement to counts"),
    ("complex frames", {"diff3d": C["diff3d"] + 1j}, {}, "diff3d", "real numbers"),
    ("text frames", {"diff3d": C["diff3d"].astype("S8")}, {}, "diff3d", "real numbers"),
    ("flat frames", {"diff3d": C["diff3d"][0]}, {}, "diff3d", "(M, N, N)"),
    ("complex x", {"xcoords": C["xcoords"] + 1j}, {}, "xcoords", "(M,) float64"),
    ("x with two axes", {"xcoords": C["xcoords"][:, None]}, {}, "xcoords", "(M,) float64"),
    ("x NaN", {"xcoords": with_value(C["xcoords"], (4,), np.nan)}, {}, "xcoords", "frame 4"),
    ("one x astray", {"xcoords": with_value(C["xcoords"], (4,), 1e9)}, {}, "xcoords", "frame 4"),
    ("y beyond", {"ycoords": with_value(C["ycoords"], (2,), -1e300)}, {}, "ycoords", "frame 2"),
    ("all beyond", {"ycoords": C["ycoords"] + 1e300}, {}, "ycoords", "set source.units"),
    (
        "both ends of a double",
        {"xcoords": np.where(np.arange(M) % 2, 1e308, -1e308)},
        {},
        "xcoords",
        f"at most {32768 - N} apart",
    ),
    ("scan_index length", {"scan_index": np.zeros(5, int)}, {}, "scan_index", "one a frame"),
    ("scan_index real", {"scan_index": np.zeros(M)}, {}, "scan_index", "int64"),
    ("start alone", {"xcoords_start": C["xcoords"]}, {}, "xcoords_start", "ycoords_start"),
    (
        "start length",
        {"xcoords_start": np.ones(5), "ycoords_start": np.ones(5)},
        {},
        "xcoords_start",
        "one a frame",
    ),
    (
        "no frame at all",
        {"diff3d": C["diff3d"][:0], "xcoords": np.ones(0), "ycoords": np.ones(0)},
        {},
        "diff3d",
        "is empty",
    ),
    ("frames of no pixel", {"diff3d": C["diff3d"][:, :0, :0]}, {}, "diff3d", "is empty"),
    ("object array", {"diff3d": ragged()}, {}, "diff3d", "pickle"),
    ("object array in an extra key", {"extra": ragged()}, {}, "extra", "pickle"),
    ("wrong axis said", {}, {"frame_axis": "last"}, "diff3d", "has 8 frames"),
    ("negative metadata", {"energy_ev": np.array(-1.0)}, {}, "energy_ev", "positive"),
    ("infinite metadata", {"distance_m": np.array(np.inf)}, {}, "distance_m", "finite"),
    ("metadata of text", {"pixel_size_m": np.array("a")}, {}, "pixel_size_m", "positive"),
]


@pytest.mark.parametrize(
    ("change", "options", "key", "reason"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
@pytest.mark.parametrize("chunk_bytes", [16 << 20, 2 * N * N * 4])
def test_refused_in_one_line_that_names_file_and_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk_bytes: int,
    change: Arrays,
    options: dict[str, Any],
    key: str,
    reason: str,
) -> None:
    monkeypatch.setattr(npz_module, "CHUNK_BYTES", chunk_bytes)
    text = message(save(tmp_path, canonical() | change), **options)
    assert f"key {key!r}" in text
    assert reason in text
    assert re.search("; (add|ask|correct|crop|give|mask|remove|set)", text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "neither NPZ"), (b"hello", "neither NPZ"), (b"PK\x03\x04 cut off", "truncated")],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "scan.npz"
    path.write_bytes(content)
    assert reason in message(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "none.npz")
    assert "is a folder" in message(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in message(tmp_path / "pipe")
    scan = save(tmp_path, canonical())
    with pytest.raises(ScanError, match=r"pipe: is not a regular file"):
        read_scan(scan, product=tmp_path / "pipe")


def test_a_key_with_a_newline_keeps_to_one_line(tmp_path: Path) -> None:
    arrays = canonical() | {"a\nb": np.ones(1)}
    assert read_scan(save(tmp_path, arrays)).notes == (r"keys ignored: a\nb",)
    assert r"a\nb" in message(save(tmp_path, arrays | {"xcoords": None}))


def test_a_file_without_permission_is_refused(open_folder: Path) -> None:
    path = save(open_folder, canonical())
    path.chmod(0)
    script = f"""\
import os, h5py
from pathlib import Path
from ptycho_tasks.scans import npz, readers, hdf5_scan
if os.geteuid() == 0:
    os.setuid(65534)
readers.read_scan(Path({str(path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        f"ptycho_tasks.errors.ScanError: {path}: cannot be read: Permission denied; "
        "check the path and its permissions"
    )


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("key", [*canonical(), "an_extra_key"])
def test_pickles_are_refused_and_not_run(tmp_path: Path, key: str, compressed: bool) -> None:
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    (np.savez_compressed if compressed else np.savez)(
        tmp_path / "scan.npz", **canonical() | {key: evil}
    )
    assert f"key {key!r} is an object array, which only pickle can read" in message(
        tmp_path / "scan.npz"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kept", [0.2, 0.7, 0.99])
def test_truncated_scans_are_refused(tmp_path: Path, kept: float, compressed: bool) -> None:
    path = tmp_path / "scan.npz"
    (np.savez_compressed if compressed else np.savez)(path, **canonical())
    os.truncate(path, int(kept * path.stat().st_size))
    assert "it may be truncated, copy or make it again" in message(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("key", canonical())
def test_a_member_that_fails_its_checksum_is_refused(
    tmp_path: Path, key: str, compressed: bool
) -> None:
    path = tmp_path / "scan.npz"
    (np.savez_compressed if compressed else np.savez)(path, **canonical())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{key}.npy")
    content = bytearray(path.read_bytes())
    content[member.header_offset + 30 + len(member.filename) + 20 + member.compress_size - 9] ^= 1
    path.write_bytes(content)
    assert f"key {key!r} cannot be read" in message(path)


def cubic() -> Arrays:
    """A scan with as many frames as pixels along a side."""
    frames = np.random.default_rng(2).random((N, N, N), dtype=np.float32)
    coordinates = np.arange(N, dtype=np.float64)
    return canonical() | {
        "diff3d": frames,
        "xcoords": coordinates,
        "ycoords": coordinates,
        "scan_index": None,
    }


def test_an_axis_order_that_cannot_be_told_must_be_said(tmp_path: Path) -> None:
    path = save(tmp_path, cubic())
    assert "set frame_axis to first or last" in message(path)
    first = read_scan(path, frame_axis="first").diffraction
    last = read_scan(path, frame_axis="last").diffraction
    np.testing.assert_array_equal(first, cubic()["diff3d"])
    np.testing.assert_array_equal(last, np.moveaxis(cubic()["diff3d"], -1, 0))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 9),
    half=st.integers(1, 4),
    last=st.booleans(),
    counts=st.booleans(),
    dtype=st.sampled_from(["f4", "f8", "u2", "i8"]),
)
def test_every_accepted_form_gives_the_same_scan(
    tmp_path: Path, frames: int, half: int, last: bool, counts: bool, dtype: str
) -> None:
    size = 2 * half
    root = np.random.default_rng(frames).integers(0, 50, (frames, size, size))
    stored = (root**2 if counts else root).astype(dtype)
    arrays = {
        "diff3d": np.ascontiguousarray(np.moveaxis(stored, 0, -1)) if last else stored,
        "xcoords": np.arange(frames, dtype=np.float64),
        "ycoords": np.arange(frames, dtype=np.float64),
        "probeGuess": np.ones((size, size), dtype=np.complex64),
    }
    scan = read_scan(
        save(tmp_path, arrays),
        measurement="counts" if counts else "amplitude",
        frame_axis=("last" if last else "first") if frames == size else "auto",
    )
    np.testing.assert_array_equal(scan.diffraction, root.astype(np.float32))


def cxi() -> Arrays:
    """A CXI file's datasets; translations in metres, x right and y down."""
    return {
        "entry_1/data_1/data": COUNTS.astype(np.uint16),
        "entry_1/data_1/translation": np.array([[3e-6 * i, -4e-7 * i * i, 0.0] for i in range(M)]),
        "entry_1/instrument_1/source_1/energy": ENERGY_EV * 1.602176634e-19,
        "entry_1/instrument_1/source_1/illumination": canonical()["probeGuess"],
        "entry_1/instrument_1/detector_1/distance": DISTANCE_M,
        "entry_1/instrument_1/detector_1/y_pixel_size": DETECTOR_PIXEL_M[0],
        "entry_1/instrument_1/detector_1/x_pixel_size": DETECTOR_PIXEL_M[1],
    }


def save_hdf5(folder: Path, arrays: Arrays, name: str = "scan.cxi", **storage: Any) -> Path:
    with h5py.File(folder / name, "w") as file:
        for key, value in arrays.items():
            if value is not None:
                options = storage if np.ndim(value) == 3 else {}
                file.create_dataset(key, data=value, **options)
    return folder / name


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
        "one finite number",
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
        {"entry_1/data_1/data": with_value(COUNTS, (2, 0, 0), -1)},
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
    frames = save(tmp_path, {"diff3d": with_value(canonical()["diff3d"], (4, 1, 1), -1)})
    text = message(frames, product=write_product(tmp_path / "p.h5"))
    assert "negative values (first at frame 4)" in text


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


DATA = Path(__file__).parents[3] / "shared" / "data"
MEASURED = {
    "siemens_star_128": (516, 128),
    "siemens_star_64": (516, 64),
    "synth_disc_1e9_test": (1024, 64),
    "synth_disc_1e9_train": (1024, 64),
    "synth_siemens_1e4_test": (1024, 64),
    "synth_siemens_1e4_train": (1024, 64),
}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
@pytest.mark.parametrize("name", MEASURED)
def test_measured_and_simulated_scans_are_read(name: str) -> None:
    scan = read_scan(DATA / f"{name}.npz")
    assert (scan.frame_count, scan.size) == MEASURED[name]
    assert (scan.name, scan.diffraction.dtype) == (name, np.float32)
    assert scan.object is not None
    # Every patch lies on the object, or the positions mean something else.
    corner = np.rint(scan.positions) - scan.size // 2
    assert corner.min() >= 0
    assert (corner.max(axis=0) + scan.size <= scan.object.shape).all()


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
@pytest.mark.parametrize("name", ["siemens_star_128", "siemens_star_64"])
def test_the_star_numbers_its_frames_in_scan_index(name: str) -> None:
    scan = read_scan(DATA / f"{name}.npz")
    np.testing.assert_array_equal(scan.scan_index, np.arange(516))
    assert scan.start_positions is not None
    # Refined positions stay near the measured ones.
    assert np.median(np.abs(scan.positions - scan.start_positions)) < 5
