"""What a reader is: it knows the files of one format, and gives the arrays of a scan as a file
holds them. The core checks and converts them.

A reader is found by the entry point group `ptycho_tasks.readers`, or as `readers/NAME.py` in a
project, which defines `reader`.
"""

from ptycho_tasks.scans.content import (
    has_hdf5_signature,
    has_zip_signature,
    list_hdf5_names,
    list_npz_keys,
)
from ptycho_tasks.scans.raw_scan import Array, Keyed, RawScan, Reading
from ptycho_tasks.scans.recognition import Reader

__all__ = [
    "Array",
    "Keyed",
    "RawScan",
    "Reader",
    "Reading",
    "has_hdf5_signature",
    "has_zip_signature",
    "list_hdf5_names",
    "list_npz_keys",
]
