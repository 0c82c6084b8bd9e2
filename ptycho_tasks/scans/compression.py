"""Compression that HDF5 does not know by itself, and detectors use: bitshuffle, LZ4, Blosc."""

from __future__ import annotations

import importlib
from contextlib import suppress

import h5py

_FIRST_REGISTERED = 256
"""Filters below are HDF5's own (HDF5 User Guide, "Filter Pipeline")."""


def find_unknown_filter(dataset: h5py.Dataset) -> str | None:
    """The compression that nothing here can undo; `hdf5plugin` is imported where it is asked for.

    Returns:
        Name and number of the filter; None if all is well.
    """
    pipeline = dataset.id.get_create_plist()
    for place in range(pipeline.get_nfilters()):
        number, _, _, name = pipeline.get_filter(place)
        if number < _FIRST_REGISTERED or h5py.h5z.filter_avail(number):
            continue
        with suppress(ImportError):
            importlib.import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(number):
            text = name.decode("ascii", "replace").partition(";")[0].strip()
            return f"{text or 'a filter'} ({number})"
    return None
