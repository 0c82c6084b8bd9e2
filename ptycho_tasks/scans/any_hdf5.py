"""HDF5 files of any layout; see `any_layout`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.any_layout import Layout, read_layout
from ptycho_tasks.scans.content import Content
from ptycho_tasks.scans.hdf5_content import list_datasets
from ptycho_tasks.scans.hdf5_values import (
    ENERGIES,
    JOULES_PER_EV,
    LENGTHS,
    Frames,
    find_array,
    map_frames,
    open_linked,
    read_number,
    read_unit,
)
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading
from ptycho_tasks.system.files import FileStamp

_ENERGIES_EV = {name: joules / JOULES_PER_EV for name, joules in ENERGIES.items()}
_UNITS_OF_PLACES = {**LENGTHS, "pixel": 0.0, "px": 0.0, "pix": 0.0}


class _HDF5:
    """Arrays by their paths."""

    def __init__(self, file: LinkedFiles, path: Path) -> None:
        self.path = path
        self._file = file
        self._found: Frames | None = None

    def frames(self, place: str) -> Keyed | None:
        self._found = map_frames(self._file, self.path, place)
        return None if self._found is None else self._found.frames

    def unwritten(self) -> Callable[[int], NDArray[np.int64]] | None:
        return None if self._found is None else self._found.unwritten

    def array(self, place: str) -> Keyed | None:
        return find_array(self._file, self.path, (place,))

    def number(self, raw: RawScan, place: str, key: str) -> float | None:
        if self._file.dataset(place) is None:
            return None
        return read_number(self._file, raw, place, _ENERGIES_EV if key == "energy_ev" else LENGTHS)

    def unit_m(self, raw: RawScan, place: str) -> float | None:
        dataset = self._file.dataset(place)
        if dataset is None or not {"units", "unit"} & set(dataset.attrs):
            return None
        return read_unit(raw, place, dataset, _UNITS_OF_PLACES) or None

    def content(self) -> Content:
        return list_datasets(self.path)

    def stamps(self) -> Mapping[Path, FileStamp]:
        return self._file.stamps


@contextmanager
def open_hdf5_layout(path: Path, reading: Reading) -> Iterator[Layout]:
    """The arrays of an HDF5 file.

    Raises:
        ScanError: the file cannot be read.
    """
    with open_linked(path, reading) as file:
        yield _HDF5(file, path)


@contextmanager
def open_any_hdf5(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of an HDF5 file, where `source.datasets` says.

    Raises:
        ScanError: the file cannot be read, or lacks what is named or needed.
    """
    with open_hdf5_layout(path, reading) as file:
        raw = read_layout(file, reading)
        raw.note_files(path, file.stamps())
        yield raw
