"""NPZ files: memory maps, alignment, identical bytes, and nothing unpickled."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans import npz as npz_module
from ptycho_tasks.scans.npz import NpzFile, write_npz, write_scan
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.system import large_arrays
from ptycho_tasks.system.large_arrays import Rows

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
    ours = NpzFile(path)
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
    array = NpzFile(path)[key]
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
        array = NpzFile(tmp_path / f"{name}.npz")[key]
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
    monkeypatch.setattr(large_arrays, "CHUNK_BYTES", 100)
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
    assert NpzFile(tmp_path / "a.npz")["frames"].ctypes.data % 64 == 0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pickles_are_named_and_not_run(tmp_path: Path, save: object) -> None:
    trace = tmp_path / "ran"
    save(tmp_path / "evil.npz", good=np.ones(2), evil=np.array([Evil(trace)], dtype=object))
    npz = NpzFile(tmp_path / "evil.npz")
    np.testing.assert_array_equal(npz["good"], 1)
    with pytest.raises(ScanError, match=r"evil\.npz: key 'evil' is an object array"):
        npz["evil"]
    assert not trace.exists()


def test_a_pickle_in_place_of_an_array_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("xcoords.npy", pickle.dumps(Evil(trace)))
    with pytest.raises(ScanError, match="key 'xcoords' cannot be read"):
        NpzFile(tmp_path / "evil.npz")["xcoords"]
    assert not trace.exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.9, -1])
def test_truncated_files_are_refused(tmp_path: Path, save: object, kept: float) -> None:
    path = tmp_path / "cut.npz"
    save(path, a=np.random.default_rng(0).random((50, 8)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ScanError, match=r"cut\.npz: not a complete NPZ .*truncated"):
        NpzFile(path)


def test_a_member_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**6,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(80))
    with pytest.raises(ScanError, match="key 'a' cannot be read: fewer bytes"):
        NpzFile(path)["a"]


def test_damaged_compressed_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).random(500))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ScanError, match=r"bad\.npz: key 'a' cannot be read"):
        NpzFile(path)["a"]


def test_damaged_stored_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    # Longer than zipfile reads ahead, so that the end is not read by chance.
    write_npz(path, {"frames": np.zeros((100, 32, 32), dtype=np.float32)})
    array = NpzFile(path)["frames"]
    assert isinstance(array, np.memmap)
    data = bytearray(path.read_bytes())
    data[array.offset + array.nbytes - 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ScanError, match=r"bad\.npz: key 'frames' cannot be read: Bad CRC-32"):
        NpzFile(path)["frames"]


HEADERS = [
    ("'<f8'", "(-1,)"),
    ("'<f8'", "(-2, -2)"),
    ("'<f8'", "(4294967296, 4294967296)"),
    ("'<f8'", "(1180591620717411303424,)"),
    ("'<f8'", "(1.5,)"),
    ("'<f8'", "(True,)"),
    ("'<f8'", "7"),
    ("'<f8'", "("),
    ("'zz'", "(1,)"),
    ("[('a',)]", "(1,)"),
    ("('<f8', (9,))", "(1,)"),
]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(("descr", "shape"), HEADERS)
def test_headers_that_make_no_sense_are_refused(
    tmp_path: Path, method: int, descr: str, shape: str
) -> None:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(8)
    with zipfile.ZipFile(tmp_path / "odd.npz", "w", method) as archive:
        archive.writestr("a.npy", npy)
    with pytest.raises(ScanError, match=r"odd\.npz: key 'a' cannot be read") as caught:
        NpzFile(tmp_path / "odd.npz")["a"]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gives_another_array_or_another_error(
    tmp_path: Path, compressed: bool, data: st.DataObject
) -> None:
    path = tmp_path / "hurt.npz"
    np.savez_compressed(path, a=ARRAYS["frames"]) if compressed else write_npz(
        path, {"a": ARRAYS["frames"]}
    )
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    refusal = str(path)
    try:
        npz = NpzFile(path)
        if "a" in npz:
            np.testing.assert_array_equal(npz["a"], ARRAYS["frames"])
    except ScanError as error:
        refusal = str(error)
    assert str(path) in refusal
    assert "\n" not in refusal


def test_asking_whether_a_key_is_there_reads_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"no array")
    assert "a" in NpzFile(tmp_path / "a.npz")
    assert "b" not in NpzFile(tmp_path / "a.npz")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no such file"):
        NpzFile(tmp_path / "none.npz")
    with pytest.raises(ScanError, match="cannot be read"):
        NpzFile(tmp_path)


def test_other_members_are_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    npz = NpzFile(tmp_path / "a.npz")
    assert (list(npz), npz.others) == ([], ("readme.txt",))


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Python objects"):
        write_npz(tmp_path / "a.npz", {"a": np.array([None])})


@st.composite
def scans(draw: st.DrawFn) -> ScanData:
    """Any scan that the contract allows."""
    M, N, P = draw(st.integers(1, 9)), 2 * draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def wave(*shape: int) -> np.ndarray:
        return (1 + rng.random(shape) + 1j * rng.random(shape)).astype(np.complex64)

    known = st.floats(1e-12, 1e6)
    return ScanData(
        diffraction=rng.random((M, N, N), dtype=np.float32),
        positions=rng.normal(0, 1e3, (M, 2)),
        probe=wave(P, N, N),
        object=draw(st.sampled_from([None, wave(N + 3, N + 1)])),
        scan_index=draw(st.sampled_from([None, rng.integers(0, 5, M)])),
        start_positions=draw(st.sampled_from([None, rng.random((M, 2))])),
        pixel_size_m=draw(st.none() | st.tuples(known, known)),
        energy_ev=draw(st.just(0.0) | known),
        distance_m=draw(st.just(0.0) | known),
        exposure_s=draw(st.just(0.0) | known),
        name="mine",
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scan=scans())
def test_a_written_scan_reads_back_equal(tmp_path: Path, scan: ScanData) -> None:
    path = tmp_path / "mine.npz"
    write_scan(path, scan)
    read = read_scan(path)
    assert isinstance(read.diffraction, np.memmap)
    for field in ScanData.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(read, field), getattr(scan, field), err_msg=field)
    before = path.read_bytes()
    write_scan(path, read)
    assert path.read_bytes() == before


def test_a_compressed_array_larger_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100))
    monkeypatch.setattr("ptycho_tasks.scans.npz.has_room_for", lambda count: count < 800)
    with pytest.raises(ScanError, match="key 'a' fits neither into memory nor"):
        NpzFile(tmp_path / "a.npz")["a"]
