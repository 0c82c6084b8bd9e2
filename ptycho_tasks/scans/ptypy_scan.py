"""Scans of PtyPy, `.ptyd` (PtyPy documentation, "Data management").

`chunks/N/data` (m, N, N) holds frames of counts, `positions` (m, 2) metres along rows and columns,
`weights` zero where the detector is not to be trusted; `meta` has the energy in keV, the distance
and the detector's pixel in metres. There is no probe. A reconstruction, `.ptyr`, has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.hdf5_values import (
    LENGTHS,
    find_array,
    map_frames,
    open_linked,
    read_number,
)
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.scans.raw_scan import METRE_EV, WITHOUT_PROBE, Keyed, RawScan, Reading, refused
from ptycho_tasks.scans.stacks import JoinedFrames

_KEV = {"kev": 1.0, "ev": 1e-3}
_MASKS = ("common/weight2d", "meta/weight2d", "info/weight2d", "meta/weight")


@contextmanager
def open_ptypy_scan(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of a `.ptyd` file.

    Raises:
        ScanError: the file cannot be read, or lacks what a scan needs.
    """
    with open_linked(path, reading) as file:
        if "content" in file.names(""):
            raise ScanError(
                f"{path}: a reconstruction of PtyPy, which holds no frames; give the .ptyd file "
                "that it was made from in source.file, and this one in source.probe"
            )
        names = _list_chunks(file, path)
        raw = _frames(file, path, names)
        _add_metadata(raw, file, reading)
        if reading.needs_positions:
            _add_positions(raw, file, names)
        if reading.needs_probe:
            raise refused(
                path,
                "probe",
                "is missing, as in every .ptyd file",
                "a probe",
                f"set source.probe to a .ptyr file or another that holds one, or {WITHOUT_PROBE}",
            )
        raw.bad_pixels = _bad_pixels(file, path, names)
        raw.note_files(path, file.stamps)
        yield raw


def _list_chunks(file: LinkedFiles, path: Path) -> list[str]:
    # A chunk is written when its frames are there, so that numbers may be left out.
    names = sorted((name for name in file.names("chunks") if name.isdigit()), key=int)
    if not names:
        raise refused(path, "chunks", "holds none", "chunks/0, ... with frames", "load it again")
    return [f"chunks/{name}" for name in names]


def _frames(file: LinkedFiles, path: Path, names: list[str]) -> RawScan:
    found = [map_frames(file, path, f"{name}/data") for name in names]
    stacks = [one.frames for one in found if one is not None]
    frames = {stack.array.shape[1:] for stack in stacks}
    if len(stacks) < len(names) or len(frames) != 1:
        raise refused(
            path, "chunks", "lacks data, or has frames of several sizes", "frames of one size",
            "load it again",
        )  # fmt: skip
    joined = JoinedFrames([stack.array for stack in stacks])
    return RawScan(path, Keyed(path, "chunks", joined), holds_counts=True, frame_axis="first")


def _add_metadata(raw: RawScan, file: LinkedFiles, reading: Reading) -> None:
    values = {
        key: _first(file, raw, key, units)
        for key, units in (("energy", _KEV), ("distance", LENGTHS), ("psize", LENGTHS))
    }
    raw.energy_ev = reading.energy_ev or 1e3 * values["energy"]
    raw.distance_m = reading.distance_m or values["distance"]
    raw.grid = raw.frames.array.shape[1]
    _doubt_centre(raw, file)
    raw.pixel_size_m = reading.pixel_size_m
    if raw.pixel_size_m is None and all((raw.energy_ev, raw.distance_m, values["psize"])):
        size = METRE_EV / raw.energy_ev * raw.distance_m / (raw.grid * values["psize"])
        raw.pixel_size_m = size, size


def _doubt_centre(raw: RawScan, file: LinkedFiles) -> None:
    centre = find_array(file, raw.path, ("meta/center", "info/center"))
    if centre is None or centre.array.dtype.kind not in "fiu":
        return
    found = np.ravel(centre.array[()])
    middle = raw.frames.array.shape[1] // 2
    if found.size == 2 and np.abs(found - middle).max() > 0.5:
        y, x = found.tolist()
        raw.doubts.append(
            f"{centre.key} puts the zero frequency at ({y:g}, {x:g}), and the middle of the frames "
            f"is ({middle}, {middle}); set source.centre if they were not cut around it"
        )


def _first(file: LinkedFiles, raw: RawScan, key: str, units: dict[str, float]) -> float:
    """A number of `meta`, or of `info`, where older files have it."""
    return read_number(file, raw, f"meta/{key}", units) or read_number(
        file, raw, f"info/{key}", units
    )


def _add_positions(raw: RawScan, file: LinkedFiles, names: list[str]) -> None:
    found = [find_array(file, raw.path, (f"{name}/positions",)) for name in names]
    parts = [np.asarray(one.array[:]) for one in found if one is not None]
    if len(parts) < len(names) or any(one.ndim != 2 or one.shape[1] != 2 for one in parts):
        raise refused(
            raw.path, "chunks", "lacks positions", "positions (m, 2) in each chunk",
            "load it again, or set source.positions",
        )  # fmt: skip
    places = np.concatenate(parts)
    raw.y, raw.x = (Keyed(raw.path, "positions", places[:, i]) for i in (0, 1))
    raw.unit_m = 1.0
    raw.note("positions: taken as (y, x) in metres, y down and x to the right")


def _bad_pixels(file: LinkedFiles, path: Path, names: list[str]) -> Keyed | None:
    """Pixels of no weight: of the scan, or else of all frames of its first chunk."""
    weights = find_array(file, path, _MASKS) or find_array(file, path, (f"{names[0]}/weights",))
    if weights is None or len(weights.array.shape) not in (2, 3) or 0 in weights.array.shape:
        return None
    values = np.asarray(weights.array[:])
    bad = values == 0 if values.ndim == 2 else (values == 0).all(axis=0)
    return Keyed(path, weights.key, bad)
