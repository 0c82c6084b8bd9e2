"""Scans in HDF5 files of any layout: `source.datasets` says where what is.

    source:
      file: scan.h5
      datasets: {diff3d: entry/frames, xcoords: "motors[:, 0]", ycoords: "motors[:, 1]"}
      units: um

A key of ours that is not named is looked for under its own name. Behind a path, a part may be
taken, as numpy takes it. What the file says of units is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.hdf5_content import Content, Listed, list_datasets
from ptycho_tasks.scans.hdf5_values import (
    ENERGIES,
    JOULES_PER_EV,
    LENGTHS,
    METRE_EV,
    find_array,
    map_frames,
    open_linked,
    read_number,
    read_unit,
)
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading, first_variation

COLUMNS = {
    "xcoords": "x",
    "ycoords": "y",
    "probeGuess": "probe",
    "objectGuess": "object",
    "scan_index": "scan_index",
    "xcoords_start": "start_x",
    "ycoords_start": "start_y",
    "bad_pixels": "bad_pixels",
}
"""Keys of arrays, to the fields of a `RawScan`."""
NUMBERS: Mapping[str, Mapping[str, float]] = {
    "energy_ev": {name: joules / JOULES_PER_EV for name, joules in ENERGIES.items()},
    "wavelength_m": LENGTHS,
    "distance_m": LENGTHS,
    "pixel_size_m": LENGTHS,
    "detector_pixel_m": LENGTHS,
}
"""Keys of numbers, to the units in which they may be; without one, that of their name."""
KEYS = ("diff3d", *COLUMNS, *NUMBERS)
_PART = re.compile(r"(?P<path>.*?)\[(?P<part>[-0-9:, ]+)\]")


@contextmanager
def open_any_hdf5(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of an HDF5 file, where `source.datasets` says.

    Raises:
        ScanError: the file cannot be read, or lacks what is named or needed.
    """
    with open_linked(path, reading) as file:
        yield _Reader(file, path, reading).read()


class _Reader:
    """Reads one file."""

    def __init__(self, file: LinkedFiles, path: Path, reading: Reading) -> None:
        self.file, self.path, self.reading = file, path, reading
        self.places = dict(reading.datasets or {})
        unknown = sorted(self.places.keys() - set(KEYS))
        if unknown:
            raise ScanError(
                f"{path}: source.datasets: unknown key `{unknown[0]}`; known keys: "
                f"{', '.join(KEYS)}"
            )

    def read(self) -> RawScan:
        found = map_frames(self.file, self.path, self.places.get("diff3d", "diff3d"))
        if found is None:
            raise self._missing("diff3d")
        raw = RawScan(self.path, found.frames, unwritten=found.unwritten)
        raw.holds_counts = True if found.frames.array.dtype.kind in "iu" else None
        raw.grid = found.frames.array.shape[1]
        for key, field in COLUMNS.items():
            setattr(raw, field, self._array(key))
        self._check_needed(raw)
        if raw.probe is not None and len(raw.probe.array.shape) == 4:
            probe = first_variation(raw, raw.probe.key, raw.probe.array)
            raw.probe = replace(raw.probe, array=probe)
        self._add_numbers(raw)
        self._add_units(raw)
        raw.note_files(self.path, self.file.stamps)
        return raw

    def _array(self, key: str) -> Keyed | None:
        place = self.places.get(key, key)
        part = _PART.fullmatch(place)
        keyed = find_array(self.file, self.path, (part["path"] if part else place,))
        if keyed is None:
            if key in self.places:
                raise self._missing(key)
            return None
        if part is None:
            # A column of n rows or 1 x n, as MATLAB writes it.
            is_flat = key.startswith(("xcoords", "ycoords")) and 1 in keyed.array.shape
            return replace(keyed, array=np.ravel(keyed.array[:])) if is_flat else keyed
        try:
            array = np.asarray(keyed.array[_parse_part(part["part"])])
        except (IndexError, ValueError, TypeError) as error:
            raise keyed.refused(
                f"has shape {tuple(keyed.array.shape)}, of which [{part['part']}] cannot be taken",
                "a part as in [:, 0]",
                f"correct source.datasets.{key}",
            ) from error
        return Keyed(self.path, place, array)

    def _check_needed(self, raw: RawScan) -> None:
        needed = ["xcoords", "ycoords"] if self.reading.needs_positions else []
        needed += ["probeGuess"] if self.reading.needs_probe else []
        for key in needed:
            keyed = getattr(raw, COLUMNS[key])
            if keyed is None:
                raise self._missing(key)
            if key != "probeGuess" and len(keyed.array.shape) == 2:
                axis = 1 if keyed.array.shape[1] in (2, 3) else 0
                column = "[:, 0]" if axis else "[0]"
                raise keyed.refused(
                    f"has shape {tuple(keyed.array.shape)}",
                    "(M,), one coordinate",
                    f"say which in source.datasets, as in `{key}: {keyed.key}{column}`",
                )

    def _add_numbers(self, raw: RawScan) -> None:
        given = {}
        for key, units in NUMBERS.items():
            place = self.places.get(key, key)
            if key in self.places and self.file.dataset(place) is None:
                raise self._missing(key)
            given[key] = abs(read_number(self.file, raw, place, units))
        wavelength = given["wavelength_m"]
        energy_ev = given["energy_ev"] or (METRE_EV / wavelength if wavelength else 0.0)
        raw.energy_ev = self.reading.energy_ev or energy_ev
        raw.distance_m = self.reading.distance_m or given["distance_m"]
        size = given["pixel_size_m"]
        pitch, side = given["detector_pixel_m"], raw.frames.array.shape[1]
        if not size and pitch and raw.energy_ev and raw.distance_m:
            size = METRE_EV / raw.energy_ev * raw.distance_m / (side * pitch)
        raw.pixel_size_m = self.reading.pixel_size_m or ((size, size) if size else None)

    def _add_units(self, raw: RawScan) -> None:
        """Follow what the file says of the unit of the positions."""
        if raw.x is None:
            return
        dataset = self.file.dataset(raw.x.key.partition("[")[0])
        if dataset is not None and {"units", "unit"} & set(dataset.attrs):
            pixels = dict.fromkeys(("pixel", "px", "pix"), 0.0)
            raw.unit_m = read_unit(raw, raw.x.key, dataset, {**LENGTHS, **pixels}) or None

    def _missing(self, key: str) -> ScanError:
        content = list_datasets(self.path)
        named = f" ({self.places[key]})" if key in self.places else ""
        guesses = _guess(key, content)
        hint = f"perhaps `{key}: {guesses[0]}`; " if guesses else ""
        asked = "source.datasets: " if key in self.places else ""
        estimate = ", or set source.probe to estimate" if key == "probeGuess" else ""
        return ScanError(
            f"{self.path}: {asked}{key}{named} is not in the file, which holds "
            f"{content.describe()}; {hint}say with source.datasets where it is{estimate}"
        )


def _parse_part(text: str) -> tuple[int | slice, ...]:
    """`:, 0` as numpy takes it."""
    items: list[int | slice] = []
    for item in text.split(","):
        bounds = [int(bound) if bound.strip() else None for bound in item.split(":")]
        if len(bounds) == 1 and bounds[0] is not None:
            items.append(bounds[0])
        elif len(bounds) in (2, 3):
            items.append(slice(*bounds))
        else:
            raise ValueError(text)
    return tuple(items)


def _show_column(one: Listed, column: int) -> str:
    """A dataset of coordinates, with the part of it where it holds several."""
    if len(one.shape) < 2 or 1 in one.shape:
        return one.name
    return f"{one.name}[:, {column}]" if one.shape[1] <= 3 else f"{one.name}[{column}]"


def _guess(key: str, content: Content) -> list[str]:
    """Datasets of the shape and type that a key asks for, those with a name like it first."""
    frames = content.find_frames()
    count = frames.shape[0] if frames is not None else 0
    words = {"diff3d": "data", "xcoords": "x", "ycoords": "y", "probeGuess": "prob"}
    column = {"xcoords": 0, "ycoords": 1}.get(key, 0)
    fitting = [
        _show_column(one, column) if "coords" in key else one.name
        for one in content.datasets
        if (key == "diff3d" and len(one.shape) in (3, 4) and one.kind in "fiu")
        or (key == "probeGuess" and len(one.shape) in (2, 3, 4) and one.kind == "c")
        or (
            key[1:7] == "coords"
            and count in one.shape
            and len(one.shape) <= 2
            and one.kind in "fiu"
        )
        or (key == "objectGuess" and len(one.shape) == 2 and one.kind == "c")
    ]
    word = words.get(key, key.partition("_")[0])
    return sorted(fitting, key=lambda name: word not in name.rpartition("/")[2].casefold())
