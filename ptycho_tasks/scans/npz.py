"""Read and write NPZ files without pickle and, where they are uncompressed, without copies.

numpy reads every member of an NPZ whole, ignores `mmap_mode` for archives, and writes zip
dates. So this module keeps numpy's header parser and Python's zip container, and adds where a
member's bytes lie in the file and which bytes the container gets.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ptycho_tasks.errors import FileWriteError, ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.content import Listed, explain_unreadable
from ptycho_tasks.scans.mapping import map_array
from ptycho_tasks.system.files import replace_file
from ptycho_tasks.system.large_arrays import (
    CHUNK_BYTES,
    Rows,
    has_room_for,
    row_chunks,
    scratch_folder,
    stack_parts,
)

ESTIMATED_PROBE = "probe_is_estimated"
"""The key that says so of `probeGuess`."""

_ALIGNMENT = 64
_ZIP_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ZIP64_FIELD_BYTES = 20
_ZIP64_FROM_BYTES = 1 << 30
_PADDING_FIELD_ID = 0xD935
"""The zip extra field that Android's zipalign registered for alignment padding."""
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class NpzFile:
    """The arrays of an NPZ file by name; nothing is read before it is asked for.

    The file stays open until the block that it is used in ends, so that all that is read is of
    one and the same file, also where another takes its place meanwhile.

    Raises:
        ScanError: the file or a member cannot be read, or a name stands twice in it; the message
            names both.
    """

    def __init__(self, path: Path) -> None:
        """List the members of the file."""
        self.path = Path(path)
        self._archive = _opened(self.path)
        members = self._unique_members()
        self._members = {
            name.removesuffix(".npy"): info
            for name, info in members.items()
            if name.endswith(".npy")
        }
        self.others = tuple(name for name in members if not name.endswith(".npy"))
        """Names of members that are not arrays."""

    def __enter__(self) -> NpzFile:
        """The file itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; arrays that are memory maps of it stay readable."""
        self._archive.close()

    def _unique_members(self) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            if info.filename in members:
                name = info.filename.removesuffix(".npy")
                raise ScanError(
                    f"{self.path}: key {name!r} stands in the file twice, so that it cannot be "
                    "told which is meant; write the file again with one of them"
                )
            members[info.filename] = info
        return members

    def __iter__(self) -> Iterator[str]:
        """Names of the arrays, in file order."""
        return iter(self._members)

    def __contains__(self, key: str) -> bool:
        """Whether there is an array of that name; reads nothing."""
        return key in self._members

    def __getitem__(self, key: str) -> NDArray[Any]:
        """The array of that name: a read-only memory map where the member is uncompressed, else see
        `stack_parts`.

        The archive's checksum is compared in either case.
        """
        member = self._members[key]
        with self._reading(key) as stream:
            shape, fortran, dtype = self._header(key, stream)
            if member.compress_type == zipfile.ZIP_STORED and 0 not in shape:
                return self._mapped(member, stream, shape, "F" if fortran else "C", dtype)
            size = math.prod(shape) * dtype.itemsize
            if stream.tell() + size > member.file_size:
                raise EOFError("fewer bytes than its shape needs")
            if not has_room_for(size):
                raise MemoryError
            count = math.prod(shape)
            flat = stack_parts((count,), dtype, _read_values(stream, dtype, count))
            return flat.reshape(shape, order="F" if fortran else "C")

    def check_plain(self, key: str) -> None:
        """Refuse a member that only pickle could read; reads its header only."""
        self.describe(key)

    def describe(self, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and the dtype of the array of that name; reads its header only."""
        with self._reading(key) as stream:
            shape, _, dtype = self._header(key, stream)
        return shape, dtype

    def list_arrays(self) -> list[Listed]:
        """What there is, the largest first."""
        arrays = {key: self.describe(key) for key in self}
        listed = [
            Listed(key, shape, str(dtype), dtype.kind) for key, (shape, dtype) in arrays.items()
        ]
        return sorted(listed, key=lambda one: -math.prod(one.shape))

    def _header(self, key: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        """Shape, Fortran order and dtype; leaves the stream at the array's first byte."""
        version = npy.read_magic(stream)
        if version not in _READ_HEADER:
            raise ValueError(f"npy format version {version} is not known")
        shape, fortran, dtype = _READ_HEADER[version](stream)
        if dtype.hasobject:
            raise ScanError(
                f"{self.path}: key {key!r} is an object array, which only pickle can read; "
                "expected plain numbers; remove it or save it as a numeric array"
            )
        return shape, fortran, dtype

    def _mapped(
        self,
        member: zipfile.ZipInfo,
        stream: IO[bytes],
        shape: tuple[int, ...],
        order: Literal["C", "F"],
        dtype: np.dtype[Any],
    ) -> NDArray[Any]:
        start = stream.tell()
        # A memory map past the end of the file would end the process with a bus error.
        if start + math.prod(shape) * dtype.itemsize > member.file_size:
            raise EOFError("fewer bytes than its shape needs")
        while stream.read(CHUNK_BYTES):  # zipfile compares the checksum at the end
            pass
        file = self._archive.fp
        assert file is not None
        offset = _data_offset(file, member) + start
        array = map_array(self.path, file, dtype, offset, shape or (1,), order)
        return array.reshape(shape, order=order)

    @contextmanager
    def _reading(self, key: str) -> Iterator[IO[bytes]]:
        """A member's bytes; whatever goes wrong in the block is a ScanError that names the key."""
        try:
            with self._archive.open(self._members[key]) as stream:
                yield stream
        except (ScanError, FileWriteError):
            raise
        except MemoryError:
            raise ScanError(
                f"{self.path}: key {key!r} fits neither into memory nor into {scratch_folder()}; "
                "expected an array that does; store it uncompressed (numpy.savez), it is then "
                "memory-mapped, or set TMPDIR to a folder on a disk with more room"
            ) from None
        except Exception as error:  # zlib, lzma, zipfile, tokenize and numpy raise their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ScanError(
                f"{self.path}: key {key!r} cannot be read: {reason}; expected a plain array; "
                "the file is damaged, copy or make it again"
            ) from error


def _read_values(stream: IO[bytes], dtype: np.dtype[Any], count: int) -> Iterator[NDArray[Any]]:
    """(count,) values of a stream, some `CHUNK_BYTES` at a time."""
    for part in row_chunks((count,), dtype):
        wanted = part.stop - part.start
        values = stream.read(wanted * dtype.itemsize)
        yield np.frombuffer(values, dtype, wanted)
    while stream.read(CHUNK_BYTES):  # zipfile compares the checksum at the end
        pass


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise explain_unreadable(path, error) from error
    except Exception as error:  # damage shows as errors of zipfile, struct and codecs
        raise ScanError(
            f"{path}: not a complete NPZ (zip) file: {error}; it may be truncated, "
            "copy or make it again"
        ) from error


def _data_offset(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin in the file: after its local header."""
    file.seek(member.header_offset)
    fields = _ZIP_LOCAL_HEADER.unpack(file.read(_ZIP_LOCAL_HEADER.size))
    name_bytes, extra_bytes = fields[-2:]
    return int(member.header_offset + _ZIP_LOCAL_HEADER.size + name_bytes + extra_bytes)


def write_npz(file: Path | IO[bytes], arrays: Mapping[str, NDArray[Any] | Rows]) -> None:
    """Write an uncompressed NPZ; identical arrays in identical order give identical bytes.

    Every array's data starts at a multiple of 64 bytes, so that memory maps are aligned. No
    more than one chunk of an array is held in memory.

    Args:
        file: a path, or a seekable binary stream.
        arrays: what to write, in the order to write it.

    Raises:
        OSError: the file cannot be written.
        ValueError: an array holds Python objects.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key, array in arrays.items():
            _write_member(archive, f"{key}.npy", array)


def scan_arrays(
    scan: ScanData, indices: NDArray[np.int64] | None = None
) -> dict[str, NDArray[Any] | Rows]:
    """A scan under the keys of the raw-scan contract, in a fixed order.

    Args:
        scan: what to write; metadata become scalar keys where they are known.
        indices: (K,) frames to take, the same from every per-frame array; None takes all.
    """
    if indices is None:
        indices = np.arange(scan.frame_count, dtype=np.int64)
    per_frame: dict[str, NDArray[Any] | None] = {
        "diff3d": scan.diffraction,
        "xcoords": scan.positions[:, 1],
        "ycoords": scan.positions[:, 0],
        "scan_index": scan.scan_index,
    }
    if scan.start_positions is not None:
        per_frame["xcoords_start"] = scan.start_positions[:, 1]
        per_frame["ycoords_start"] = scan.start_positions[:, 0]
    arrays: dict[str, NDArray[Any] | Rows] = {
        key: Rows(array, indices) for key, array in per_frame.items() if array is not None
    }
    # Without it, a reader could not tell the order of the axes where M equals N.
    arrays["frame_axis"] = np.zeros((), dtype=np.int64)
    arrays["probeGuess"] = scan.probe
    if scan.is_probe_estimated:
        arrays[ESTIMATED_PROBE] = np.ones((), dtype=np.bool_)
    if scan.bad_pixels is not None:
        arrays["bad_pixels"] = scan.bad_pixels
    if scan.object is not None:
        arrays["objectGuess"] = scan.object
    if scan.pixel_size_m is not None:
        arrays["pixel_size_m"] = np.array(scan.pixel_size_m, dtype=np.float64)
    for key in ("energy_ev", "distance_m", "exposure_s"):
        if getattr(scan, key):
            arrays[key] = np.array(getattr(scan, key), dtype=np.float64)
    return arrays


def write_scan(path: Path, scan: ScanData) -> None:
    """Write a scan as an uncompressed NPZ after the raw-scan contract, whole or not at all.

    Raises:
        FileWriteError: the file cannot be written; what was there is unchanged.
    """
    with replace_file(path) as temp:
        write_npz(temp, scan_arrays(scan))


def _write_member(archive: zipfile.ZipFile, name: str, array: NDArray[Any] | Rows) -> None:
    if array.dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which only pickle could write")
    header = {
        "descr": npy.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    size = array.dtype.itemsize * int(np.prod(array.shape, dtype=np.int64))
    large = size > _ZIP64_FROM_BYTES
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0o644 << 16
    assert archive.fp is not None
    info.extra = _padding(archive.fp.tell() + _ZIP_LOCAL_HEADER.size + len(name.encode()), large)
    with archive.open(info, "w", force_zip64=large) as stream:
        npy.write_array_header_1_0(stream, header)
        for piece in _pieces(array):
            stream.write(np.ascontiguousarray(piece).data)


def _padding(position: int, large: bool) -> bytes:
    """A zip extra field after which the member's data starts at a multiple of 64.

    numpy pads its own header to a multiple of 64, so the array's data is then aligned too.
    """
    position += _ZIP64_FIELD_BYTES if large else 0
    filler = -(position + 6) % _ALIGNMENT
    return struct.pack("<HHH", _PADDING_FIELD_ID, 2 + filler, _ALIGNMENT) + bytes(filler)


def _pieces(array: NDArray[Any] | Rows) -> Iterator[NDArray[Any]]:
    if isinstance(array, Rows):
        yield from array.chunks()
    elif array.ndim == 0 or array.size == 0:
        yield np.atleast_1d(array)
    else:
        for part in row_chunks(array.shape, array.dtype):
            yield array[part]
