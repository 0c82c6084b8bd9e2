"""A Ptychodus product in CXI: no frames, the probe in `image_1`, the object in `image_2`.

What CXI has no place for stands in `entry_1/ptychodus`, under the names of the NPZ products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ptycho_tasks.scans.hdf5_values import (
    ENERGIES,
    JOULES_PER_EV,
    LENGTHS,
    map_dataset,
    open_linked,
    read_number,
    read_unit,
)
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.scans.raw_scan import Array, RawScan, Reading

_EXTRAS = "entry_1/ptychodus"
_TRANSLATION = "entry_1/sample_1/geometry_1/translation"
_OBJECT = "entry_1/image_2/data"
_KEYS = {
    "object": _OBJECT,
    "probe": "entry_1/image_1/data",
    "probe_position_indexes": f"{_EXTRAS}/probe_position_indexes",
}
_COLUMNS = {"probe_position_x_m": 0, "probe_position_y_m": 1}
_NUMBERS = {
    "photon_energy_eV": ("entry_1/instrument_1/source_1/energy", ENERGIES, 1 / JOULES_PER_EV),
    "detector_object_distance_m": ("entry_1/instrument_1/detector_1/distance", LENGTHS, 1.0),
}


class CxiProduct:
    """Its values under the names that they have in the other kinds of product."""

    def __init__(self, file: LinkedFiles, raw: RawScan) -> None:
        """Take an open file; `raw` gets the notes."""
        self.path, self.stamps = file.path, file.stamps
        self._file, self._raw = file, replace(raw, path=file.path)

    def find(self, key: str) -> Array | None:
        """An array; None where there is none."""
        dataset = self._file.dataset(_TRANSLATION if key in _COLUMNS else _KEYS[key])
        if dataset is None:
            return None
        if key not in _COLUMNS:
            return map_dataset(dataset)
        # One of another shape has no columns, and is refused as what it is.
        flat = dataset.ndim == 2 and dataset.shape[1] >= 2
        column: Array = dataset[:, _COLUMNS[key]] if flat else dataset[()]
        return column

    def number(self, name: str, of: str = "", missing: float = 0.0) -> float:
        """A number, of the product or of one of its arrays; `missing` where there is none."""
        key = f"{_EXTRAS}/{of}_{name}" if of else f"{_EXTRAS}/{name}"
        key, units, factor = _NUMBERS.get(name, (key, {"s": 1.0, **LENGTHS}, 1.0))
        if self._file.dataset(key) is None:
            return missing
        return read_number(self._file, self._raw, key, units) * factor

    def metres(self, key: str) -> float:
        """What a unit of an array of positions is in metres."""
        dataset = self._file.dataset(_TRANSLATION)
        return 1.0 if dataset is None else read_unit(self._raw, _TRANSLATION, dataset, LENGTHS)


@contextmanager
def open_cxi_product(path: Path, reading: Reading, raw: RawScan) -> Iterator[CxiProduct | None]:
    """A product in CXI; None where the file has no object, as one with frames.

    Raises:
        ScanError: it is damaged.
    """
    with open_linked(path, reading) as file:
        yield None if file.dataset(_OBJECT) is None else CxiProduct(file, raw)
