"""Arrays of files that are mapped into memory, and what becomes of a file that is cut short.

To read a mapped page that its file has no more is a bus error (SIGBUS), which ends the process. No
look at the file's length beforehand rules it out, and a Python handler runs too late: the same
instruction would fail for ever. So in the blocks of `refuse_cut_files` the signal itself puts
zeros in the place of what is missing, also in a thread of a library; all that is made of them is
refused at the next chance, at the latest at the end of the block.

See mmap(2), "SIGBUS", and signal-safety(7): the signal comes where memory is read, within no
function that must not be entered again.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError


class _Place(NamedTuple):
    """Where a map lies, and what it is of."""

    path: Path
    end: int
    """The bytes that the file must have."""
    address: int
    length: int


_maps: WeakKeyDictionary[mmap.mmap, _Place] = WeakKeyDictionary()
"""Those that were made in the present blocks."""
_cut: list[Path] = []
"""Files that were found cut short, of some of which zeros were read."""
_blocks = 0
"""How many were entered and not left: one within another, or in threads."""
_handler = ExitStack()


def map_array(
    path: Path,
    file: Path | IO[bytes],
    dtype: np.dtype[Any],
    offset: int,
    shape: tuple[int, ...],
    order: Literal["C", "F"] = "C",
) -> NDArray[Any]:
    """A read-only memory map of the array that begins at byte `offset` of a file.

    Args:
        path: what messages call the file.
        file: the file, or its path.
        dtype: of the array.
        offset: bytes.
        shape: of the array, which is not empty.
        order: of its axes in the file.
    """
    array = np.memmap(file, dtype, "r", offset, shape, order)
    if _blocks:
        base: Any = array.base
        begin = array.ctypes.data - offset % mmap.ALLOCATIONGRANULARITY
        _maps[base] = _Place(path, offset + array.nbytes, begin, len(base))
    return array


def refuse_cut() -> None:
    """Refuse what was read of mapped files, if one of them is shorter than it was.

    Raises:
        ScanError: names the file.
    """
    _find_cut()
    _refuse_found()


def _refuse_found() -> None:
    if _cut:
        raise ScanError(
            f"{_cut[0]}: was cut short while it was read; run again once it is complete (a scan is "
            "best replaced by renaming a new one)"
        )


@contextmanager
def refuse_cut_files() -> Iterator[None]:
    """In the block, a mapped file that is cut short costs only what the block does.

    Who publishes in the block asks `refuse_cut` before.

    Raises:
        ScanError: names the file, also in place of what else went wrong.
    """
    global _blocks
    if not _blocks:
        _handler.enter_context(_handle_bus_errors())
    _blocks += 1
    try:
        yield
        _refuse_found()
    except Exception as error:
        try:
            refuse_cut()
        except ScanError as cut:
            raise cut from error
        raise
    finally:
        _blocks -= 1
        if not _blocks:
            _handler.close()
            _maps.clear()
            _cut.clear()


def _find_cut() -> list[_Place]:
    """The maps whose files are too short now."""
    found = [place for base, place in list(_maps.items()) if _size(base) < place.end]
    _cut.extend(place.path for place in found)
    return found


def _size(base: mmap.mmap) -> float:
    try:
        return base.size()
    except (OSError, ValueError):  # closed
        return math.inf


_ACTION_BYTES = 1024
"""More than `struct sigaction` takes on any system."""
_FIXED = 0x10
"""MAP_FIXED, which Python does not name; the same on Linux, macOS and BSD."""


@contextmanager
def _handle_bus_errors() -> Iterator[None]:
    number = getattr(signal, "SIGBUS", None)
    if number is None:  # Windows lets nobody shorten a file that is mapped
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    before = ctypes.create_string_buffer(_ACTION_BYTES)

    def handle(received: int) -> None:
        found = _find_cut()
        if not found or not all(_put_zeros(libc, place) for place in found):
            libc.sigaction(number, before, None)  # ends the process, as without us

    # Kept by this frame as long as it may be called.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc.sigaction(number, None, before)
    libc.signal(number, handler)
    try:
        yield
    finally:
        libc.sigaction(number, before, None)


def _put_zeros(libc: Any, place: _Place) -> bool:
    """Have zeros take the place of a map; whether that was done."""
    address = libc.mmap(
        ctypes.c_void_p(place.address),
        ctypes.c_size_t(place.length),
        mmap.PROT_READ,
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED,
        -1,
        ctypes.c_long(0),
    )
    return bool(address == place.address)
