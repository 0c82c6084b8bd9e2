"""Ptychodus products, HDF5, NPZ and CXI, as what gives positions, probe and object to frames.

Ptychodus counts object pixels from the centre of the first one to the centre of the array,
(W - 1) / 2, and puts the patch's own centre, (N - 1) / 2, on the position. Here the position
is where the patch's pixel N // 2 lies, so with N even it is half a pixel larger: W / 2.

Axis letters:  M frames,  N detector pixels along one side,  P probe modes,  C probe
variations,  L object layers,  H, W object grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.content import has_zip_signature, list_hdf5_names
from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.raw_scan import (
    Array,
    Keyed,
    RawScan,
    Reading,
    finite_column,
    first_variation,
    refused,
    whole_numbers,
)
from ptycho_tasks.system.files import FileStamp

_ADVICE = "write the product again"
_INDEXES = "probe_position_indexes"


class ProductFile(Protocol):
    """The values of a product, whatever kind of file it is."""

    path: Path
    stamps: dict[Path, FileStamp]
    """Further files that hold a part of it."""

    def find(self, key: str) -> Array | None:
        """An array; None where there is none."""

    def number(self, name: str, of: str = "", missing: float = 0.0) -> float:
        """A number, of the product or of one of its arrays; `missing` where there is none."""

    def metres(self, key: str) -> float:
        """What a unit of an array of positions is in metres."""


class _NpzProduct:
    """A product in NPZ, which is flat: what belongs to an array has its name before its own."""

    def __init__(self, npz: NpzFile) -> None:
        self.path, self._npz = npz.path, npz
        self.stamps: dict[Path, FileStamp] = {}

    def find(self, key: str) -> Array | None:
        return self._npz[key] if key in self._npz else None  # noqa: SIM401

    def number(self, name: str, of: str = "", missing: float = 0.0) -> float:
        key = f"{of}_{name}" if of else name
        if key not in self._npz:
            return missing
        values = self._npz[key].reshape(-1)
        if values.dtype.kind not in "fiub" or len(values) != 1 or not np.isfinite(values[0]):
            raise refused(self.path, key, "has no usable value", "one finite number", _ADVICE)
        return float(values[0])

    def metres(self, key: str) -> float:
        return 1.0


def apply_product(raw: RawScan, path: Path, reading: Reading) -> None:
    """Take positions, probe, object and metadata of a scan from a Ptychodus product.

    Raises:
        ScanError: the product cannot be read, or does not belong to the frames.
    """
    with _open(path, reading, raw) as product:
        if product is None:
            _apply_cxi(raw, path, reading)
            return
        if not product.number("far_field", missing=1.0):
            raise refused(
                path,
                "far_field",
                "is false",
                "a scan in the far field",
                "reconstruct it with a program that propagates in the near field",
            )
        wave = _require(product, "object", "(L, H, W) complex64")
        raw.pixel_size_m = _pixel(product)
        raw.object = _object(raw, product, wave)
        probe = _require(product, "probe", "(C, P, N, N) complex64")
        raw.probe = Keyed(path, "probe", first_variation(raw, "probe", probe))
        _place(raw, product, wave)
        energy_ev = product.number("photon_energy_eV") or product.number("probe_energy_eV")
        distance_m = product.number("detector_object_distance_m")
        exposure_s = product.number("exposure_time_s")
        raw.note_files(path, product.stamps)
    # The caller's word goes before the product's, and that before the frames' own file's.
    raw.energy_ev = reading.energy_ev or energy_ev or raw.energy_ev
    raw.distance_m = reading.distance_m or distance_m or raw.distance_m
    raw.exposure_s = exposure_s or raw.exposure_s
    if reading.pixel_size_m:
        raw.note(f"pixel_size_m: ignored, the pixel of the product {path.name} is taken")
    raw.note(f"positions, probe and object taken from the product {path.name}")


def _list_names(path: Path) -> frozenset[str]:
    names = list_hdf5_names(path) if path.is_file() else None
    return names or frozenset()


def _apply_cxi(raw: RawScan, path: Path, reading: Reading) -> None:
    """Take what a product gives from a CXI file, which has a position for each frame."""
    from ptycho_tasks.scans.hdf5_scan import open_cxi_scan

    own = replace(reading, has_product=False, positions=None, probe=None)
    with open_cxi_scan(path, own) as product:
        raw.x, raw.y, raw.probe, raw.numbers = product.x, product.y, product.probe, None
        raw.positions_are_pixels, raw.grid = product.positions_are_pixels, product.grid
        raw.pixel_size_m = product.pixel_size_m
        raw.energy_ev, raw.distance_m = product.energy_ev, product.distance_m
        raw.exposure_s = product.exposure_s or raw.exposure_s
        raw.files |= product.files
    raw.note(f"positions and probe taken from the CXI file {path.name}")


@contextmanager
def _open(path: Path, reading: Reading, raw: RawScan) -> Iterator[ProductFile | None]:
    """The product in a file; None for a CXI file that holds a scan instead."""
    if "entry_1" in _list_names(path):
        from ptycho_tasks.scans.cxi_product import open_cxi_product

        with open_cxi_product(path, reading, raw) as cxi:
            yield cxi
        return
    if path.is_file() and has_zip_signature(path):
        with NpzFile(path) as npz:
            yield _NpzProduct(npz)
        return
    from ptycho_tasks.scans.hdf5_values import open_hdf5_product

    with open_hdf5_product(path, reading, raw) as product:
        yield product


def _require(product: ProductFile, key: str, expected: str) -> Array:
    array = product.find(key)
    if array is None:
        raise refused(
            product.path, key, "is missing or damaged", expected, "add it, or give another file"
        )
    return array


def _pixel(product: ProductFile) -> tuple[float, float]:
    height, width = (product.number(f"pixel_{side}_m", "object") for side in ("height", "width"))
    if height <= 0 or width <= 0:
        raise refused(
            product.path,
            "object",
            f"has pixels of {width:g} m x {height:g} m",
            "attributes pixel_width_m and pixel_height_m above zero",
            _ADVICE,
        )
    return height, width


def _object(raw: RawScan, product: ProductFile, wave: Array) -> Keyed | None:
    if len(wave.shape) not in (2, 3) or 0 in wave.shape:
        raise refused(
            product.path,
            "object",
            f"is {wave.dtype} of shape {wave.shape}",
            "(L, H, W) complex64",
            _ADVICE,
        )
    if len(wave.shape) == 3 and wave.shape[0] > 1:
        raw.note(f"object: ignored, it has {wave.shape[0]} layers")
        return None
    return Keyed(product.path, "object", wave[0] if len(wave.shape) == 3 else wave[()])


def _place(raw: RawScan, product: ProductFile, wave: Array) -> None:
    path = product.path
    x_m, y_m = (_metres(product, f"probe_position_{axis}_m") for axis in "xy")
    indexes = product.find(_INDEXES)
    # Files of PtychoViT and PtychoFM have a position for each frame and no numbers.
    numbers = np.arange(len(x_m))
    if indexes is not None:
        numbers = whole_numbers(Keyed(path, _INDEXES, indexes))
    if not len(numbers) or not len(numbers) == len(x_m) == len(y_m):
        raise refused(
            path,
            _INDEXES,
            f"has {len(numbers)} entries, x {len(x_m)} and y {len(y_m)}",
            "equal numbers of each",
            _ADVICE,
        )
    height, width = raw.pixel_size_m or (1.0, 1.0)
    rows, columns = wave.shape[-2:]
    x_px = (x_m - product.number("center_x_m", "object")) / width + columns / 2
    y_px = (y_m - product.number("center_y_m", "object")) / height + rows / 2
    frames, order = match_frames(raw, path, _INDEXES, numbers)
    raw.rows = frames
    raw.x = Keyed(path, "probe_position_x_m", x_px[order])
    raw.y = Keyed(path, "probe_position_y_m", y_px[order])
    raw.positions_are_pixels = True


def _metres(product: ProductFile, key: str) -> NDArray[np.float64]:
    array = _require(product, key, "(M,) metres")
    return finite_column(Keyed(product.path, key, array)) * product.metres(key)


def match_frames(
    raw: RawScan, path: Path, key: str, numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted places of the numbered frames, and the order that sorts the positions so.

    Raises:
        ScanError: a number under `key` of a file is that of no frame, or stands there twice.
    """
    places = numbers
    if raw.numbers is not None:
        by_number = {int(number): place for place, number in enumerate(raw.numbers)}
        places = np.array([by_number.get(int(n), -1) for n in numbers], dtype=np.int64)
    order = np.argsort(places, kind="stable")
    places = places[order]
    doubles = np.flatnonzero(np.diff(places) == 0)
    if places[0] < 0 or len(doubles):
        problem = "not among the frames" if places[0] < 0 else "there twice"
        wrong = order[0] if places[0] < 0 else order[doubles[0]]
        raise refused(
            path,
            key,
            f"has frame {numbers[wrong]}, which is {problem}",
            "one position a frame",
            "give the frames that the positions belong to",
        )
    return places, order
