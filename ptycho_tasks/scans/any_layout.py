"""Scans in files of any layout, HDF5 or NPZ: `source.datasets` says where what is.

    source:
      file: scan.h5
      datasets: {diff3d: entry/frames, xcoords: "motors[:, 0]", ycoords: "motors[:, 1]"}
      units: um

A key of ours that is not named is looked for under its own name. Behind a path, a part may be
taken, as numpy takes it. What the file says of units is followed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.content import Content, Listed
from ptycho_tasks.scans.raw_scan import METRE_EV, Keyed, RawScan, Reading, first_variation
from ptycho_tasks.system.files import FileStamp

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
COORDINATES = ("xcoords", "ycoords")
NUMBERS = ("energy_ev", "wavelength_m", "distance_m", "pixel_size_m", "detector_pixel_m")
KEYS = ("diff3d", *COLUMNS, *NUMBERS)
_PART = re.compile(r"(?P<path>.*?)\[(?P<part>[-0-9:, ]+)\]")


class Layout(Protocol):
    """A file of arrays by their names, which are paths in HDF5."""

    path: Path

    def frames(self, place: str) -> Keyed | None:
        """(M, N, N) or (N, N, M); None where there is no such array."""

    def unwritten(self) -> Callable[[int], NDArray[np.int64]] | None:
        """See `RawScan.unwritten`, of the frames."""

    def array(self, place: str) -> Keyed | None:
        """Any array."""

    def number(self, raw: RawScan, place: str, key: str) -> float | None:
        """What an array holds, in the unit that a key of `NUMBERS` names; None where there is
        none.

        Raises:
            ScanError: no number, or several that differ.
        """

    def unit_m(self, raw: RawScan, place: str) -> float | None:
        """What the unit of an array is in metres; None where it does not say, or says pixels."""

    def content(self) -> Content:
        """What there is."""

    def stamps(self) -> Mapping[Path, FileStamp]:
        """Further files that were read, behind links: what they were then."""


def read_layout(file: Layout, reading: Reading) -> RawScan:
    """The arrays of a scan, where `source.datasets` says.

    Raises:
        ScanError: the file lacks what is named or needed.
    """
    return _Reader(file, reading, reading.own_datasets).read()


def read_positions(file: Layout, raw: RawScan, datasets: Mapping[str, str]) -> None:
    """Take the positions of a scan from another file, and their unit where that says it.

    Args:
        file: holds them.
        raw: gets them.
        datasets: of `source`.

    Raises:
        ScanError: the file lacks what is named or needed.
    """
    places = {key: place for key, place in datasets.items() if key in COORDINATES}
    _Reader(file, Reading(), places, raw.frames.array.shape[0]).read_positions(raw)


class _Reader:
    """Reads one file."""

    def __init__(
        self, file: Layout, reading: Reading, places: Mapping[str, str], count: int = 0
    ) -> None:
        """Check what is named.

        Args:
            file: to be read.
            reading: how.
            places: our keys to names in the file.
            count: of the frames, where they are in another file.
        """
        self.file, self.path, self.reading = file, file.path, reading
        self.places, self.counts = places, {count}
        unknown = sorted(self.places.keys() - set(KEYS))
        if unknown:
            raise ScanError(
                f"{self.path}: source.datasets: unknown key `{unknown[0]}`; known keys: "
                f"{', '.join(KEYS)}"
            )

    def read(self) -> RawScan:
        frames = self.file.frames(self.places.get("diff3d", "diff3d"))
        if frames is None:
            raise self._missing("diff3d")
        self.counts = {frames.array.shape[0], frames.array.shape[-1]}
        raw = RawScan(self.path, frames, unwritten=self.file.unwritten())
        raw.holds_counts = True if frames.array.dtype.kind in "iu" else None
        raw.grid = frames.array.shape[1]
        for key, field in COLUMNS.items():
            setattr(raw, field, self._array(key))
        self._check_needed(raw)
        if raw.probe is not None and len(raw.probe.array.shape) == 4:
            probe = first_variation(raw, raw.probe.key, raw.probe.array)
            raw.probe = replace(raw.probe, array=probe)
        self._add_numbers(raw)
        self._add_unit(raw)
        return raw

    def read_positions(self, raw: RawScan) -> None:
        """Give a scan its positions."""
        raw.positions_are_pixels, raw.unit_m, raw.rows = False, None, None
        for key in COORDINATES:
            keyed = self._array(key)
            if keyed is None:
                raise self._missing(key)
            self._check_coordinate(key, keyed)
            setattr(raw, COLUMNS[key], replace(keyed, array=np.asarray(keyed.array[()])))
        self._add_unit(raw)
        raw.note_files(self.path, self.file.stamps())

    def _add_unit(self, raw: RawScan) -> None:
        if raw.x is not None:
            raw.unit_m = self.file.unit_m(raw, raw.x.key.partition("[")[0])

    def _array(self, key: str) -> Keyed | None:
        place = self.places.get(key, key)
        part = _PART.fullmatch(place)
        keyed = self.file.array(part["path"] if part else place)
        if keyed is None:
            if key in self.places:
                raise self._missing(key)
            return None
        if part is None:
            return self._flatten(keyed) if key.startswith(COORDINATES) else keyed
        try:
            array = np.asarray(keyed.array[_parse_part(part["part"])])
        except (IndexError, ValueError, TypeError) as error:
            raise keyed.refused(
                f"has shape {tuple(keyed.array.shape)}, of which [{part['part']}] cannot be taken",
                "a part as in [:, 0]",
                f"correct source.datasets.{key}",
            ) from error
        return Keyed(self.path, place, array)

    def _flatten(self, keyed: Keyed) -> Keyed:
        """Coordinates as a column of n rows or 1 x n, as MATLAB writes it, or as the points of a
        raster, row by row."""
        shape = keyed.array.shape
        is_raster = len(shape) == 2 and math.prod(shape) in self.counts
        return replace(keyed, array=np.ravel(keyed.array[:])) if 1 in shape or is_raster else keyed

    def _check_needed(self, raw: RawScan) -> None:
        needed = [*COORDINATES] if self.reading.needs_positions else []
        needed += ["probeGuess"] if self.reading.needs_probe else []
        for key in needed:
            keyed = getattr(raw, COLUMNS[key])
            if keyed is None:
                raise self._missing(key)
            if key in COORDINATES:
                self._check_coordinate(key, keyed)

    def _check_coordinate(self, key: str, keyed: Keyed) -> None:
        if len(keyed.array.shape) == 2:
            axis = 1 if keyed.array.shape[1] in (2, 3) else 0
            column = "[:, 0]" if axis else "[0]"
            raise keyed.refused(
                f"has shape {tuple(keyed.array.shape)}",
                "(M,), one coordinate",
                f"say which in source.datasets, as in `{key}: {keyed.key}{column}`",
            )

    def _add_numbers(self, raw: RawScan) -> None:
        reading = self.reading
        energy_ev = reading.energy_ev or self._number(raw, "energy_ev")
        if not energy_ev:
            wavelength = self._number(raw, "wavelength_m")
            energy_ev = METRE_EV / wavelength if wavelength else 0.0
        raw.energy_ev = energy_ev
        raw.distance_m = reading.distance_m or self._number(raw, "distance_m")
        raw.pixel_size_m = reading.pixel_size_m
        if raw.pixel_size_m is None:
            size = self._number(raw, "pixel_size_m") or self._far_field_pixel(raw)
            raw.pixel_size_m = (size, size) if size else None

    def _far_field_pixel(self, raw: RawScan) -> float:
        """Wavelength times distance over the detector's width; zero where one is not known."""
        width = raw.frames.array.shape[1] * self._number(raw, "detector_pixel_m")
        known = width and raw.energy_ev and raw.distance_m
        return METRE_EV / raw.energy_ev * raw.distance_m / width if known else 0.0

    def _number(self, raw: RawScan, key: str) -> float:
        value = self.file.number(raw, self.places.get(key, key), key)
        if value is None and key in self.places:
            raise self._missing(key)
        return abs(value or 0.0)

    def _missing(self, key: str) -> ScanError:
        content = self.file.content()
        named = f" ({self.places[key]})" if key in self.places else ""
        taken = {place for other, place in self.places.items() if other != key}
        guesses = [guess for guess in _guess(key, content, self.counts) if guess not in taken]
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


def _show_column(one: Listed, column: int, counts: Set[int]) -> str:
    """A dataset of coordinates, with the part of it where it holds several."""
    if len(one.shape) < 2 or 1 in one.shape or math.prod(one.shape) in counts:
        return one.name
    return f"{one.name}[:, {column}]" if one.shape[1] <= 3 else f"{one.name}[{column}]"


def _guess(key: str, content: Content, counts: Set[int]) -> list[str]:
    """Datasets of the shape and type that a key asks for, those with a name like it first; the
    file, or `counts`, says how many frames there may be."""
    frames = content.find_frames()
    counts = counts if frames is None else {frames.shape[0]}
    words = {"diff3d": "data", "xcoords": "x", "ycoords": "y", "probeGuess": "prob"}
    column = {"xcoords": 0, "ycoords": 1}.get(key, 0)
    fitting = [
        _show_column(one, column, counts) if "coords" in key else one.name
        for one in content.datasets
        if (key == "diff3d" and len(one.shape) in (3, 4) and one.kind in "fiu")
        or (key == "probeGuess" and len(one.shape) in (2, 3, 4) and one.kind == "c")
        or (
            key[1:7] == "coords"
            and not counts.isdisjoint((*one.shape, math.prod(one.shape)))
            and len(one.shape) <= 2
            and one.kind in "fiu"
        )
        or (key == "objectGuess" and len(one.shape) == 2 and one.kind == "c")
    ]
    word = words.get(key, key.partition("_")[0])
    return sorted(fitting, key=lambda name: word not in name.rpartition("/")[2].casefold())
