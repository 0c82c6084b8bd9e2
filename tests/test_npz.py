"""NPZ files: memory maps, alignment, identical bytes, and nothing unpickled."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptycho_tasks import npz as npz_module
from ptycho_tasks.errors import ScanError
from ptycho_tasks.npz import Rows, open_npz, write_npz, write_scan
from ptycho_tasks.readers import read_scan
from ptycho_tasks.scan import ScanData

ARRAYS = {
    "frames": np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3)),
    "wave": np.full((3, 3), 1 - 2j, dtype=np.complex64),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(20)[::3],
}

any_array = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.complex64, np.int64, np.uint16]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
any_arrays = st.dictionaries(
    st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=8), any_array, max_size=4
)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.trace), 0o755)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays=any_arrays)
def test_what_is_written_is_read_by_us_and_by_numpy(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "any.npz"
    write_npz(path, arrays)
    ours = open_npz(path)
    with np.load(path) as theirs:
        assert list(ours) == list(arrays) == theirs.files
        for key, array in arrays.items():
            for read in (ours[key], theirs[key]):
                assert read.dtype == array.dtype
                np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("key", ARRAYS)
def test_uncompressed_members_are_aligned_read_only_maps(tmp_path: Path, key: str) -> None:
    path = tmp_path / "scan.npz"
    write_npz(path, ARRAYS)
    array = open_npz(path)[key]
    np.testing.assert_array_equal(array, ARRAYS[key])
    if array.size:
        assert isinstance(array, np.memmap)
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable


@pytest.mark.parametrize("key", ARRAYS)
def test_files_of_numpy_are_read(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "stored.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "deflated.npz", **ARRAYS)
    for name, mapped in (("stored", True), ("deflated", False)):
        array = open_npz(tmp_path / f"{name}.npz")[key]
        np.testing.assert_array_equal(array, ARRAYS[key])
        assert isinstance(array, np.memmap) == (mapped and array.size > 0)


def test_identical_arrays_give_identical_bytes(tmp_path: Path) -> None:
    stream = io.BytesIO()
    write_npz(tmp_path / "a.npz", ARRAYS)
    write_npz(stream, {key: array.copy() for key, array in ARRAYS.items()})
    assert (tmp_path / "a.npz").read_bytes() == stream.getvalue()


def test_rows_are_written_like_the_array_they_stand_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz_module, "CHUNK_BYTES", 100)
    source = np.random.default_rng(0).random((40, 5))
    indices = np.array([1, 4, 4, 39, 0])
    write_npz(tmp_path / "rows.npz", {"a": Rows(source, indices)})
    write_npz(tmp_path / "array.npz", {"a": source[indices]})
    assert (tmp_path / "rows.npz").read_bytes() == (tmp_path / "array.npz").read_bytes()


def test_rows_of_a_large_map_are_never_in_memory_together(tmp_path: Path) -> None:
    source = np.memmap(tmp_path / "big", np.float32, "w+", shape=(64, 512, 512))
    tracemalloc.start()
    write_npz(tmp_path / "big.npz", {"a": Rows(source, np.arange(64))})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < source.nbytes / 1.5


def test_large_members_get_zip64_headers_and_stay_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz_module, "_ZIP64_FROM_BYTES", 10)
    write_npz(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz") as theirs:
        np.testing.assert_array_equal(theirs["frames"], ARRAYS["frames"])
    assert open_npz(tmp_path / "a.npz")["frames"].ctypes.data % 64 == 0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pickles_are_named_and_not_run(tmp_path: Path, save: object) -> None:
    trace = tmp_path / "ran"
    save(tmp_path / "evil.npz", good=np.ones(2), evil=np.array([Evil(trace)], dtype=object))
    npz = open_npz(tmp_path / "evil.npz")
    np.testing.assert_array_equal(npz["good"], 1)
    with pytest.raises(ScanError, match=r"evil\.npz: key 'evil' is an object array"):
        npz["evil"]
    assert not trace.exists()


def test_a_pickle_in_place_of_an_array_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("xcoords.npy", pickle.dumps(Evil(trace)))
    with pytest.raises(ScanError, match="key 'xcoords' cannot be read"):
        open_npz(tmp_path / "evil.npz")["xcoords"]
    assert not trace.exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.9, -1])
def test_truncated_files_are_refused(tmp_path: Path, save: object, kept: float) -> None:
    path = tmp_path / "cut.npz"
    save(path, a=np.random.default_rng(0).random((50, 8)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ScanError, match=r"cut\.npz: not a complete NPZ .*truncated"):
        open_npz(path)


def test_a_member_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**6,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(80))
    with pytest.raises(ScanError, match="key 'a' cannot be read: fewer bytes"):
        open_npz(path)["a"]


def test_damaged_compressed_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).random(500))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ScanError, match=r"bad\.npz: key 'a' cannot be read"):
        open_npz(path)["a"]


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no such file"):
        open_npz(tmp_path / "none.npz")
    with pytest.raises(ScanError, match="cannot be read"):
        open_npz(tmp_path)


def test_other_members_are_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    npz = open_npz(tmp_path / "a.npz")
    assert (list(npz), npz.others) == ([], ("readme.txt",))


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Python objects"):
        write_npz(tmp_path / "a.npz", {"a": np.array([None])})


def test_a_written_scan_reads_back_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scan = ScanData(
        diffraction=rng.random((8, 8, 8), dtype=np.float32),
        positions=rng.random((8, 2)),
        probe=np.ones((2, 8, 8), dtype=np.complex64),
        object=np.ones((12, 14), dtype=np.complex64),
        scan_index=np.arange(8),
        start_positions=rng.random((8, 2)),
        pixel_size_m=(1e-8, 2e-8),
        energy_ev=8000.0,
        distance_m=2.0,
        exposure_s=0.1,
        name="mine",
    )
    write_scan(tmp_path / "mine.npz", scan)
    read = read_scan(tmp_path / "mine.npz")
    assert read.notes == ()
    for field in ScanData.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(read, field), getattr(scan, field), err_msg=field)
