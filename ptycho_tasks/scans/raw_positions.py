"""Where the frames of a raw scan lie: positions in pixels, and which frames are taken by them.

Axis letters:  M frames,  K frames taken,  N detector pixels along one side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.raw_scan import (
    METRES,
    Keyed,
    RawScan,
    Reading,
    Units,
    finite_column,
    ranges,
)

_LARGEST_OBJECT = 32768
"""Pixels along a side; some hundred times what is usual, and 8 GiB."""
_FARTHEST = 1e9
"""Pixels; positions stay exact to a fraction of a pixel, and their indices whole numbers."""
_FEWEST_PIXELS_A_FRAME = 0.25
"""Area of the object grid that a frame adds, on average; scans that people make add a pixel at
least, and positions in micrometres much less."""
_FEW = 0.05
"""Of all frames: what lies apart and is no more than that was hardly meant."""


def read_positions(raw: RawScan) -> NDArray[np.float64]:
    """(M, 2) float64 (y, x) in the unit of the file.

    Raises:
        ScanError: they are no finite numbers, or of unlike lengths.
    """
    assert raw.x is not None
    assert raw.y is not None
    return _stack_columns(raw, raw.x, raw.y)


def _stack_columns(raw: RawScan, x: Keyed, y: Keyed) -> NDArray[np.float64]:
    columns = [_column(raw, y), _column(raw, x)]
    if len(columns[0]) != len(columns[1]):
        raise x.refused(
            f"has {len(columns[1])} entries but {y.key!r} has {len(columns[0])}",
            "one position a frame in both",
            "correct the file",
        )
    return np.stack(columns, axis=1)


def _column(raw: RawScan, keyed: Keyed) -> NDArray[np.float64]:
    values = finite_column(keyed)
    raw.note_cast(keyed, np.dtype(np.float64))
    return values


def read_start_positions(raw: RawScan, count: int) -> NDArray[np.float64] | None:
    """(M, 2) (y, x) before they were refined, in the unit of the file; where the scan has them.

    Raises:
        ScanError: they are no such positions.
    """
    present = raw.start_x or raw.start_y
    if present is None:
        return None
    if raw.start_x is None or raw.start_y is None:
        raise present.refused(
            "stands alone", "both xcoords_start and ycoords_start", "add or remove one"
        )
    start = _stack_columns(raw, raw.start_x, raw.start_y)
    if len(start) != count:
        raise present.refused(
            f"has {len(start)} entries", f"{count}, one a frame", "correct or remove it"
        )
    return start


def read_scan_index(raw: RawScan, count: int) -> NDArray[np.int64] | None:
    """(M,) the number of each frame's scan; None where the file does not say.

    Raises:
        ScanError: they are no whole numbers, one a frame.
    """
    keyed = raw.scan_index
    if keyed is None:
        return None
    array = keyed.array
    if array.dtype.kind not in "iu" or tuple(array.shape) != (count,):
        raise keyed.refused(
            f"is {keyed.describe()}", f"({count},) int64, one a frame", "correct or remove it"
        )
    values = array[:]
    if len(values) and int(values.max()) > np.iinfo(np.int64).max:
        raise keyed.refused(
            f"holds {int(values.max())}", "numbers below 2^63", "correct or remove it"
        )
    raw.note_cast(keyed, np.dtype(np.int64))
    return np.array(values, dtype=np.int64)


def pixels_a_unit(raw: RawScan, reading: Reading, scale: float) -> NDArray[np.float64]:
    """(2,) what a unit of (y, x) is in pixels; `scale` is what one of the file is.

    Raises:
        ScanError: the unit is a length, and the size of a pixel is unknown.
    """
    assert raw.x is not None
    metres = raw.unit_m if reading.units == "auto" else METRES.get(reading.units)
    if metres is None or raw.positions_are_pixels:
        return np.full(2, scale)
    unit = f"a unit of {metres:g} m" if reading.units == "auto" else reading.units
    if raw.pixel_size_m is None:
        says = "as source.units says" if reading.units != "auto" else "as the file says"
        raise raw.x.refused(
            f"is in {unit}, {says}, and the size of a pixel is unknown",
            "the size of an object pixel",
            "set source.pixel_size_m: wavelength times distance over the detector's width",
        )
    raw.note(f"{raw.x.key}: {unit} converted to pixels")
    return metres / np.array(raw.pixel_size_m)


def choose_frames(
    raw: RawScan, index: NDArray[np.int64] | None, wanted: int | None, count: int
) -> NDArray[np.int64]:
    """(K,) frames of the scan that is wanted; all where none is named.

    Raises:
        ScanError: there is no such scan.
    """
    if wanted is None:
        return np.arange(count)
    of_frame = np.zeros(count, np.int64) if index is None else index
    values = np.unique(of_frame)
    if wanted not in values:
        raise (raw.scan_index or raw.frames).refused(
            f"holds no scan {wanted} (scans: {ranges(values)})",
            "one that is there",
            "correct source.scan_index",
        )
    if len(values) > 1:
        raw.note(f"scan_index: scan {wanted} of {len(values)} taken")
    return np.flatnonzero(of_frame == wanted)


def leave_out_strays(
    raw: RawScan, positions: NDArray[np.float64], keep: NDArray[np.int64], size: int, do: str
) -> NDArray[np.int64]:
    """The frames without the few that lie far from all others, where that is wanted.

    Raises:
        ScanError: there are such frames, and `do` is to refuse them.
    """
    if do == "keep" or len(keep) < 2:
        return keep
    astray = _astray(positions[keep], size)
    if not astray.any():
        return keep
    numbers = _numbered(raw, keep[astray])
    y, x = positions[keep[astray][0]]
    middle = np.median(positions[keep], axis=0)
    column = raw.x if abs(x - middle[1]) > abs(y - middle[0]) else raw.y
    assert column is not None
    with_all, without = (_extent(positions[one], size) for one in (keep, keep[~astray]))
    found = (
        f"puts {numbers} far from all others (the first at y {y:.6g}, x {x:.6g}), which would "
        f"make the object {with_all} pixels instead of {without}"
    )
    if do == "drop":
        raw.note(f"{column.key}: left out {numbers}, far from all others")
        return keep[~astray]
    raise column.refused(
        found,
        "frames that overlap",
        "correct the positions, or set source.stray_frames to drop or keep",
    )


def _numbered(raw: RawScan, frames: NDArray[np.int64]) -> str:
    """Frames by their place in the file, in words."""
    places = frames if raw.rows is None else raw.rows[frames]
    return f"frame{'s' if len(places) > 1 else ''} {ranges(places)}"


def check_places(
    raw: RawScan, positions: NDArray[np.float64], keep: NDArray[np.int64], size: int, units: Units
) -> None:
    """Refuse positions of the frames taken that are in another unit, or missing.

    Raises:
        ScanError: they ask for an object that no memory holds, or hardly differ.
    """
    for keyed, column in ((raw.y, positions[:, 0]), (raw.x, positions[:, 1])):
        assert keyed is not None
        _check_span(raw, keyed, column, keep, size)
    _check_spread(raw, positions[keep], explicit=units != "auto")


def _check_span(
    raw: RawScan, keyed: Keyed, column: NDArray[np.float64], keep: NDArray[np.int64], size: int
) -> None:
    """Refuse positions that ask for an object that no memory holds."""
    values = column[keep]
    with np.errstate(over="ignore"):
        span = np.ptp(values) + size
        place = int(np.argmax(np.abs(values - np.sort(values)[len(values) // 2])))
    if span > _LARGEST_OBJECT or np.abs(values).max() > _FARTHEST:
        raise keyed.refused(
            f"has {values[place]:g} at {_numbered(raw, keep[place : place + 1])}",
            f"pixels, at most {_LARGEST_OBJECT - size} apart and not beyond {_FARTHEST:g}",
            "correct it, or " + _advice_on_units(raw),
        )


def _check_spread(raw: RawScan, positions: NDArray[np.float64], *, explicit: bool) -> None:
    """Refuse positions that hardly differ: they are in another unit, or missing."""
    if len(positions) < 2:
        return
    assert raw.x is not None
    spans = np.ptp(positions, axis=0)
    if not spans.any():
        raise raw.x.refused(
            f"and the other axis put all {len(positions)} frames in one place",
            "frames at different places, which overlap",
            "correct the positions",
        )
    places = len(np.unique(np.round(positions, 6), axis=0))
    dense = spans.min() > 0 and spans.prod() < _FEWEST_PIXELS_A_FRAME * places
    if not explicit and (spans.max() < 1 or dense):
        raise raw.x.refused(
            f"and the other axis span {spans[1]:.3g} x {spans[0]:.3g} pixels (x, y) with "
            f"{len(positions)} frames",
            "positions in pixels of the object",
            _advice_on_units(raw),
        )


def _advice_on_units(raw: RawScan) -> str:
    if raw.positions_are_pixels:
        return "set source.pixel_size_m, energy_ev or distance_m if what the file says is wrong"
    return (
        "set source.units (and source.pixel_size_m) if they are in metres or the like, or "
        "units: pixels if they are right"
    )


def _extent(positions: NDArray[np.float64], size: int) -> str:
    rows, columns = np.ptp(positions, axis=0) + size
    return f"{rows:.0f} x {columns:.0f}"


def _astray(positions: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """(M,) frames in small groups whose patches are a patch or more away from all others.

    Positions are gathered in cells of N pixels; cells that touch belong together. A scan that
    falls into many such groups, or into large ones, was meant so.
    """
    cells, of_frame = np.unique(np.floor(positions / size), axis=0, return_inverse=True)
    group = _touching([(row, column) for row, column in cells.tolist()])[of_frame.reshape(-1)]
    counts = np.bincount(group)
    few = max(1.0, _FEW * len(positions))
    astray = (counts <= few)[group] & (counts.max() > few)
    return astray if np.count_nonzero(astray) <= few else np.zeros_like(astray)


def _touching(cells: list[tuple[float, float]]) -> NDArray[np.int64]:
    """(C,) the number of the group of each cell; cells that touch, at a corner too, are in one."""
    left = {cell: index for index, cell in enumerate(cells)}
    group = np.zeros(len(cells), dtype=np.int64)
    number = -1
    while left:
        number += 1
        reached = [next(iter(left))]
        group[left.pop(reached[0])] = number
        while reached:
            row, column = reached.pop()
            for cell in ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
                if cell in left:
                    group[left.pop(cell)] = number
                    reached.append(cell)
    return group
