"""Scans of tike in NPZ.

`data` holds counts with the zero frequency in the corner, `scan` the pixel (row, column) of the
object under the corner of each patch, and `probe` the modes; each may have an axis of one entry,
for one of several regions, before these.

Axis letters:  M frames,  N detector pixels along one side,  P probe modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading
from ptycho_tasks.scans.stacks import ShiftedFrames


@contextmanager
def open_tike_scan(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of a scan of tike.

    Raises:
        ScanError: the file cannot be read, or holds several regions.
    """
    with NpzFile(path) as npz:
        data = Keyed(path, "data", npz["data"])
        stack = _without_regions(data, 3)
        raw = RawScan(path, Keyed(path, "data", ShiftedFrames(stack)), holds_counts=True)
        raw.note("data: zero frequency moved from the corner to the centre")
        if reading.needs_positions:
            places = _without_regions(Keyed(path, "scan", npz["scan"]), 2)
            half = stack.shape[-1] // 2
            raw.y, raw.x = (Keyed(path, "scan", places[:, i].astype(float) + half) for i in (0, 1))
            raw.note("scan: taken as the (row, column) of each patch's corner, in pixels")
        if reading.needs_probe and "probe" in npz:
            probe = npz["probe"]
            side = probe.shape[-1] if probe.ndim else 0
            raw.probe = Keyed(path, "probe", probe.reshape(-1, side, side) if side else probe)
        yield raw


def _without_regions(keyed: Keyed, axes: int) -> NDArray[Any]:
    array = np.asarray(keyed.array)
    while array.ndim > axes and array.shape[0] == 1:
        array = array[0]
    if array.ndim != axes or (axes == 2 and array.shape[1] != 2):
        raise keyed.refused(
            f"has shape {tuple(keyed.array.shape)}",
            "frames (M, N, N) and places (M, 2), of one region",
            "write a file for each region",
        )
    return array
