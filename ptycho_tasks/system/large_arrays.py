"""Arrays that may be larger than memory: in parts, and in a file without a name.

Axis letters:  M frames,  m frames of a part.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.system.memory import format_gb, has_memory_for

CHUNK_BYTES = 16 << 20
"""How much of a large array is in memory at a time while it is read, checked or written."""
HELD_BYTES = 1 << 28
"""Up to this size an array is kept in memory."""
_MEMORY_SYSTEMS = ("tmpfs", "ramfs")
"""File systems whose files are memory."""


def row_chunks(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[slice]:
    """Slices of the first axis that cover an array, each some `CHUNK_BYTES` large."""
    row_bytes = max(1, dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def forget_pages(array: Any) -> None:
    """See `ptycho_tasks.scan.release_pages`."""
    if not isinstance(array, np.ndarray) or array.flags.writeable:
        return  # of a private map, changes would be lost
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Rows:
    """Rows of an array along its first axis, taken only while they are written."""

    source: NDArray[Any]
    indices: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows together."""
        return (len(self.indices), *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the source."""
        return self.source.dtype

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The rows in order, some `CHUNK_BYTES` at a time."""
        for part in row_chunks(self.shape, self.dtype):
            yield np.asarray(self.source[self.indices[part]])
            forget_pages(self.source)


def stack_parts(
    shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[NDArray[Any]]
) -> NDArray[Any]:
    """One array of all parts, read-only where it is large: it then lies in a file of the folder
    for temporary ones, without a name, mapped, and the file goes with the array.

    Args:
        shape: (M, ...) of the whole.
        dtype: of all.
        parts: (m, ...), in order; each is done with before the next is asked for.

    Raises:
        FileWriteError: the file cannot be written.
    """
    size = math.prod(shape) * dtype.itemsize
    if not _is_filed(size):
        whole, begin = np.empty(shape, dtype), 0
        for part in parts:
            whole[begin : begin + len(part)] = part
            begin += len(part)
        return whole
    with _explain_failure(size):
        file = tempfile.TemporaryFile(dir=scratch_folder(), prefix="ptycho-tasks-")  # noqa: SIM115
    with file:
        for part in parts:
            with _explain_failure(size):
                file.write(np.ascontiguousarray(part).data)
        with _explain_failure(size):
            file.flush()
            return np.memmap(file, dtype, "r", shape=shape)


@contextmanager
def _explain_failure(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileWriteError(
            f"{scratch_folder()}: {error.strerror or error}: no place for "
            f"{format_gb(size)} of frames while they are worked on; set TMPDIR to a folder with "
            "more room"
        ) from error


def has_room_for(count: float) -> bool:
    """Whether `stack_parts` finds a place for so many bytes."""
    return _is_filed(count) or has_memory_for(count)


def _is_filed(count: float) -> bool:
    """Whether an array of so many bytes gets a file: it is large, and there is one."""
    if count <= HELD_BYTES:
        return False
    folder = scratch_folder()
    try:
        has_disk = shutil.disk_usage(folder).free > count
    except OSError:
        return False
    return has_disk and os.access(folder, os.W_OK) and not _is_memory(folder)


def scratch_folder() -> Path:
    """Where temporary files that may be large belong: TMPDIR, or else /var/tmp, which unlike /tmp
    lies on a disk (file-hierarchy(7))."""
    usual, large = Path(tempfile.gettempdir()), Path("/var/tmp")
    return large if "TMPDIR" not in os.environ and large.is_dir() else usual


def _is_memory(folder: Path) -> bool:
    import psutil

    real = folder.resolve()
    places = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((places[p] for p in (real, *real.parents) if p in places), "") in _MEMORY_SYSTEMS
