"""What an NPZ file may hold: each acceptance is noted and logged, each refusal is one line."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.system import large_arrays
from scan_files import COUNTS, Arrays, M, N, canonical, message, save, with_value


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
        {"diff3d": with_value(COUNTS, (1, 1, 1), -3)},
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
    ("integers", {"diff3d": COUNTS}, {}, "diff3d", "set source.measurement to counts"),
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
    ("an energy a frame", {"energy_ev": np.linspace(8e3, 8.1e3, M)}, {}, "energy_ev", "from 8000"),
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
    monkeypatch.setattr(large_arrays, "CHUNK_BYTES", chunk_bytes)
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
    assert "set source.frame_axis to first or last" in message(path)
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
