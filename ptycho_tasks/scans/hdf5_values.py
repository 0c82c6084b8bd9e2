"""Values of HDF5 files: arrays where they lie, numbers with their units."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.linked_files import DAMAGE, LinkedFiles, explain_damage
from ptycho_tasks.scans.mapping import map_array
from ptycho_tasks.scans.raw_scan import (
    METRES,
    Array,
    Keyed,
    RawScan,
    Reading,
    check_stack,
    refused,
    take_common,
)
from ptycho_tasks.scans.stacks import JoinedFrames

JOULES_PER_EV = 1.602176634e-19
LENGTHS = {**METRES, "metre": 1.0, "meter": 1.0, "cm": 1e-2, "\u00b5m": 1e-6, "\u03bcm": 1e-6,
            "micron": 1e-6, "angstrom": 1e-10, "\u00e5": 1e-10, "pm": 1e-12}  # fmt: skip
ENERGIES = {"j": 1.0, "joule": 1.0, "ev": JOULES_PER_EV, "kev": 1e3 * JOULES_PER_EV}


_NUMBERED = re.compile(r"_\d+$")


class Frames(NamedTuple):
    """Frames in an HDF5 file."""

    frames: Keyed
    """(M, N, N), or (N, N, M)."""
    unwritten: Callable[[int], NDArray[np.int64]]
    """See `RawScan.unwritten`."""
    raster: tuple[int, int] | None
    """(rows, columns) of the scan where the file has an axis for each."""


@contextmanager
def open_linked(path: Path, reading: Reading) -> Iterator[LinkedFiles]:
    """An HDF5 file, and those that its links lead to.

    Raises:
        ScanError: it is missing or damaged, also where that shows in the block.
    """
    with LinkedFiles(path, reading.follow) as file:
        try:
            yield file
        except DAMAGE as error:
            raise explain_damage(path, error) from error


def map_frames(file: LinkedFiles, path: Path, key: str) -> Frames | None:
    """Frames, memory-mapped where they lie in one piece; None where there are none at that key.

    A group of numbered datasets, `data_000001` and on, as detectors write them that begin a new
    file now and then, is one stack.

    Raises:
        ScanError: neither three axes, nor the four of a raster scan; or an empty one; or the parts
            of a stack differ.
    """
    dataset = file.dataset(key, in_part=True)
    if dataset is None:
        return _join_series(file, path, key)
    raster = Raster(dataset) if dataset.ndim == 4 and dataset.size else None
    frames = Keyed(path, key, map_dataset(dataset) if raster is None else raster)
    check_stack(frames)
    unwritten = partial(file.unwritten, dataset, key)
    if raster is None:
        return Frames(frames, unwritten, None)
    return Frames(frames, lambda axis: raster.list_frames(unwritten(0)), dataset.shape[:2])


def _join_series(file: LinkedFiles, path: Path, key: str) -> Frames | None:
    names = sorted(name for name in file.names(key) if _NUMBERED.search(name))
    parts = [map_frames(file, path, f"{key}/{name}") for name in names]
    stacks = [part.frames for part in parts if part is not None and part.raster is None]
    if not stacks or len(stacks) < len(parts):
        return None
    first = stacks[0]
    for stack in stacks:
        if (stack.array.shape[1:], stack.array.dtype) != (first.array.shape[1:], first.array.dtype):
            raise stack.refused(
                f"is {stack.array.dtype} of shape {tuple(stack.array.shape)}",
                f"frames as in {first.key}: {first.array.dtype}, {tuple(first.array.shape[1:])}",
                "correct the file",
            )
    starts = np.cumsum([0, *(stack.array.shape[0] for stack in stacks)])

    def list_unwritten(axis: int) -> NDArray[np.int64]:
        found = [part.unwritten(axis) for part in parts if part is not None]
        return np.concatenate([start + one for start, one in zip(starts[:-1], found, strict=True)])

    joined = JoinedFrames([stack.array for stack in stacks])
    return Frames(Keyed(path, key, joined), list_unwritten, None)


class Raster:
    """The frames of a dataset (rows, columns, N, N) as one axis of them."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        """Take a dataset with four axes."""
        self._dataset = dataset
        self._columns = int(dataset.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, N, N)."""
        rows, columns, *frame = self._dataset.shape
        return (rows * columns, *frame)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an entry."""
        dtype: np.dtype[Any] = self._dataset.dtype
        return dtype

    def list_frames(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(K,) the frames of some rows of the scan."""
        return (rows[:, None] * self._columns + np.arange(self._columns)).reshape(-1)

    def __getitem__(self, item: Any) -> NDArray[Any]:
        """Some of the frames, in memory."""
        numbers = np.atleast_1d(np.arange(self.shape[0])[item])
        if not len(numbers):
            return np.empty((0, *self.shape[1:]), self.dtype)
        first, last = int(numbers.min()) // self._columns, int(numbers.max()) // self._columns
        block = np.asarray(self._dataset[first : last + 1]).reshape(-1, *self.shape[1:])
        return np.asarray(block[numbers - first * self._columns])


def find_array(file: LinkedFiles, path: Path, keys: Sequence[str]) -> Keyed | None:
    """The first of some arrays that is there."""
    for key in keys:
        dataset = file.dataset(key)
        if dataset is not None:
            return Keyed(path, key, map_dataset(dataset))
    return None


def map_dataset(dataset: h5py.Dataset) -> Array:
    """A memory map of a dataset that lies in one piece in its file, else the dataset."""
    path = Path(dataset.file.filename)
    offset = dataset.id.get_offset()  # None where chunked, virtual or in another file
    mappable = (
        offset is not None
        and dataset.dtype.kind in "fiu"
        and not dataset.external
        # Mapped past the end of the file, it would end the process with a bus error.
        and offset + dataset.nbytes <= path.stat().st_size
    )
    array: Array = (
        map_array(path, path, dataset.dtype, offset, dataset.shape) if mappable else dataset
    )
    return array


def read_number(file: LinkedFiles, raw: RawScan, key: str, units: Mapping[str, float]) -> float:
    """A scalar, or the common value of an array, in SI units; zero where there is none.

    Raises:
        ScanError: no number, or several that differ; or a unit that is not known.
    """
    dataset = file.dataset(key)
    if dataset is None:
        return 0.0
    values = np.asarray(dataset[()]) if dataset.dtype.kind in "fiu" else np.empty(0, dataset.dtype)
    return take_common(raw, key, values) * read_unit(raw, key, dataset, units)


def read_unit(raw: RawScan, key: str, dataset: h5py.Dataset, units: Mapping[str, float]) -> float:
    """What the unit that a dataset is in is in SI; one where it does not say."""
    unit = dataset.attrs.get("units", dataset.attrs.get("unit"))
    if isinstance(unit, np.ndarray) and unit.size == 1:
        unit = unit.reshape(-1)[0]
    text = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit
    if text is None or (isinstance(text, str) and not text.strip()):
        return 1.0
    name = text.strip().casefold() if isinstance(text, str) else ""
    name = name if name in units else name.removesuffix("s")
    if name not in units:
        raise refused(
            raw.path,
            key,
            f"has the units {str(text)[:40]!r}",
            f"one of {', '.join(units)}",
            "correct the attribute",
        )
    if units[name] != 1.0:
        raw.note(f"{key}: in {name}, as it says")
    return units[name]


def read_attribute(item: h5py.HLObject, path: Path, name: str, missing: float = 0.0) -> float:
    """An attribute that is one number; `missing` where there is none."""
    try:
        values = np.ravel(item.attrs.get(name, missing))
    except (TypeError, ValueError):  # of a type that numpy has no name for
        values = np.empty(0)
    if values.dtype.kind not in "fiub" or len(values) != 1 or not np.isfinite(values[0]):
        raise refused(
            path,
            name,
            f"is an attribute of {item.name} without a usable value",
            "one finite number",
            "write the product again",
        )
    return float(values[0])


class _Hdf5Product:
    """A Ptychodus product in HDF5: what belongs to an array is an attribute of it."""

    def __init__(self, file: LinkedFiles, raw: RawScan) -> None:
        self.path, self.stamps = file.path, file.stamps
        self._file, self._raw = file, replace(raw, path=file.path)

    def find(self, key: str) -> Array | None:
        dataset = self._file.dataset(key)
        return None if dataset is None else map_dataset(dataset)

    def number(self, name: str, of: str = "", missing: float = 0.0) -> float:
        item = self._file.dataset(of) if of else self._file.root
        return missing if item is None else read_attribute(item, self.path, name, missing)

    def metres(self, key: str) -> float:
        dataset = self._file.dataset(key)
        return 1.0 if dataset is None else read_unit(self._raw, key, dataset, LENGTHS)


@contextmanager
def open_hdf5_product(path: Path, reading: Reading, raw: RawScan) -> Iterator[_Hdf5Product]:
    """A Ptychodus product in HDF5.

    Raises:
        ScanError: it is missing or damaged.
    """
    with open_linked(path, reading) as file:
        yield _Hdf5Product(file, raw)
