"""Arrays that may be larger than memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptycho_tasks.scan import take_frames
from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.system import large_arrays
from ptycho_tasks.system.large_arrays import has_room_for, row_chunks, stack_parts
from scan_files import COUNTS, canonical, save

FLOAT = np.dtype(np.float32)


def is_mapped(array: NDArray[np.generic]) -> bool:
    base: object = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap)


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setattr(large_arrays, "HELD_BYTES", -1)
    monkeypatch.setattr(large_arrays, "CHUNK_BYTES", 600)
    return str(request.param)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 40), parts=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0)
)
def test_parts_come_together(
    place: str, temporary: Path, count: int, parts: list[int], seed: int
) -> None:
    whole = np.random.default_rng(seed).random((count, 3, 5), dtype=np.float32)
    edges = [0, *sorted(min(part, count) for part in parts), count]
    pieces = (whole[begin:end] for begin, end in pairwise(edges))
    stacked = stack_parts(whole.shape, whole.dtype, pieces)
    assert np.array_equal(stacked, whole)
    assert is_mapped(stacked) == (place == "file")
    assert stacked.flags.writeable == (place == "memory")
    assert not list(temporary.iterdir())


def test_a_scan_is_the_same_from_a_file(
    place: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts with a hot pixel, compressed and not; and frames taken of a scan."""
    frames = COUNTS.astype(np.uint16)
    frames[:, 0, 1] = 60_000
    path = save(tmp_path, canonical() | {"diff3d": frames})
    packed = tmp_path / "packed.npz"
    np.savez_compressed(packed, **{key: NpzFile(path)[key] for key in NpzFile(path)})
    options = {"measurement": "counts", "bad_pixels": "auto"}
    scans = [read_scan(one, **options) for one in (path, packed)]
    scans += [take_frames(scans[0], np.arange(0, scans[0].frame_count, 2)[::-1])]
    monkeypatch.setattr(large_arrays, "HELD_BYTES", 1 << 28)
    expected = [read_scan(path, **options)] * 2
    expected += [take_frames(expected[0], np.arange(0, scans[0].frame_count, 2)[::-1])]
    for scan, right in zip(scans, expected, strict=True):
        assert np.array_equal(scan.diffraction, right.diffraction, equal_nan=True)
        assert np.array_equal(scan.positions, right.positions)
        assert is_mapped(scan.diffraction) == (place == "file")
    assert np.isnan(scans[0].diffraction[:, 0, 1]).all()
    assert not list(temporary.iterdir())


def test_where_there_is_no_disk_it_is_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: Path
) -> None:
    monkeypatch.setattr(large_arrays, "HELD_BYTES", -1)

    def parts() -> Iterator[NDArray[np.float32]]:
        yield np.ones((2, 2), FLOAT)

    assert is_mapped(stack_parts((2, 2), FLOAT, parts()))
    temporary.rmdir()
    assert not is_mapped(stack_parts((2, 2), FLOAT, parts()))
    assert not has_room_for(1e18)
    memory = Path("/dev/shm")
    if memory.is_dir():
        monkeypatch.setenv("TMPDIR", str(memory))
        monkeypatch.setattr("tempfile.tempdir", None)
        assert not is_mapped(stack_parts((2, 2), FLOAT, parts()))


def test_a_disk_that_fills_up_is_named(temporary: Path) -> None:
    code = (
        "import numpy as np; from ptycho_tasks.system import large_arrays as large\n"
        "large.HELD_BYTES = 0\n"
        "large.stack_parts((100, 100), np.dtype(float), (np.ones((10, 100)) for _ in range(10)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert f"FileWriteError: {temporary}: File too large: no place for 8e-05 GB" in done.stderr
    assert not list(temporary.iterdir())


def test_chunks_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_arrays, "CHUNK_BYTES", 100)
    assert list(row_chunks((5, 10), FLOAT)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(row_chunks((2, 1000), FLOAT)) == [slice(0, 1), slice(1, 2)]
