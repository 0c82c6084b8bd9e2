"""What a file is, by its first bytes and the names in it: cheap, and without following any link."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ptycho_tasks.errors import ScanError

_ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST = 12
"""Arrays that are listed."""


class Listed(NamedTuple):
    """An array of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    """As numpy's dtypes have it: `f` for floats, `c` for complex."""


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    datasets: tuple[Listed, ...]
    """The largest first."""
    links: tuple[str, ...] = ()
    """Names that lead to other files."""

    def find_frames(self) -> Listed | None:
        """The largest stack of real images."""
        stacks = (one for one in self.datasets if len(one.shape) == 3 and one.kind in "fiu")
        return next(stacks, None)

    def describe(self) -> str:
        """The arrays with their shapes and types, and the links, in a line."""
        shown = [
            f"{one.name} ({' x '.join(map(str, one.shape)) or 'one'} {one.dtype})"
            for one in self.datasets[:_MOST]
        ]
        shown += [f"{name} (in another file)" for name in self.links[: _MOST - len(shown)]]
        more = len(self.datasets) + len(self.links) - len(shown)
        return (", ".join(shown) or "no dataset") + (f" and {more} more" if more > 0 else "")


def explain_unreadable(path: Path, error: OSError) -> ScanError:
    """The error of a scan's file that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return ScanError(f"{path}: no such file; check the path")
    return ScanError(
        f"{path}: cannot be read: {error.strerror or error}; check the path and its permissions"
    )


def has_zip_signature(path: Path) -> bool:
    """Whether a file starts like a zip, as an NPZ file does."""
    return _read(path, 0, 4) in _ZIP_SIGNATURES


def has_hdf5_signature(path: Path) -> bool:
    """Whether a file is HDF5: its signature stands at byte 0, or at 512, 1024, 2048 and so on
    (HDF5 File Format Specification, "Superblock")."""
    place, size = 0, path.stat().st_size
    while place < size:
        if _read(path, place, 8) == _HDF5_SIGNATURE:
            return True
        place = max(512, 2 * place)
    return False


def list_npz_keys(path: Path) -> frozenset[str] | None:
    """The names of the arrays of an NPZ file; None for another file, or one that is damaged."""
    if not has_zip_signature(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None


def list_hdf5_names(path: Path) -> frozenset[str] | None:
    """The names at the root of an HDF5 file; None for another file, or one that is damaged."""
    if not has_hdf5_signature(path):
        return None
    import h5py  # costs more to import than all else that an NPZ file needs

    try:
        with h5py.File(path, "r") as file:
            return frozenset(file)
    except (OSError, RuntimeError, KeyError, ValueError):
        return None


def _read(path: Path, place: int, count: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(place)
        return stream.read(count)
