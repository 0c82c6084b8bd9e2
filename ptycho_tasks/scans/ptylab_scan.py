"""Scans of PtyLab in HDF5.

`ptychogram` (M, N, N) holds counts, `encoder` (M, 2) metres along rows and columns, `zo` the
distance, `dxd` the pixel of the detector, `wavelength`; all in metres. There is no probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ptycho_tasks.scans.any_hdf5 import open_any_hdf5
from ptycho_tasks.scans.raw_scan import RawScan, Reading

_PLACES = {
    "diff3d": "ptychogram",
    "xcoords": "encoder[:, 1]",
    "ycoords": "encoder[:, 0]",
    "wavelength_m": "wavelength",
    "distance_m": "zo",
    "detector_pixel_m": "dxd",
}


@contextmanager
def open_ptylab_scan(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of a scan of PtyLab.

    Raises:
        ScanError: the file cannot be read, or lacks what a scan needs.
    """
    places = _PLACES | reading.own_datasets
    with open_any_hdf5(path, replace(reading, datasets=places)) as raw:
        raw.holds_counts = True
        raw.unit_m = raw.unit_m or 1.0
        yield raw
