"""A file of arrays, HDF5 or NPZ, opened by its content; see `any_layout`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptycho_tasks.scans.any_layout import Layout
from ptycho_tasks.scans.content import has_hdf5_signature, has_zip_signature
from ptycho_tasks.scans.raw_scan import Reading


@contextmanager
def open_layout(path: Path, reading: Reading) -> Iterator[Layout | None]:
    """The arrays of an HDF5 or NPZ file; None for any other.

    Raises:
        ScanError: the file is damaged.
    """
    if has_hdf5_signature(path):
        from ptycho_tasks.scans.any_hdf5 import open_hdf5_layout

        with open_hdf5_layout(path, reading) as file:
            yield file
    elif has_zip_signature(path):
        from ptycho_tasks.scans.any_npz import open_npz_layout

        with open_npz_layout(path) as file:
            yield file
    else:
        yield None
