"""NPZ files of any layout; see `any_layout`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.any_layout import read_layout, read_positions
from ptycho_tasks.scans.content import Content, Listed
from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading, check_stack, take_common


class _NPZ:
    """Arrays by their names, which have no units."""

    def __init__(self, npz: NpzFile) -> None:
        self.path = npz.path
        self._npz = npz

    def frames(self, place: str) -> Keyed | None:
        frames = self.array(place)
        if frames is not None:
            check_stack(frames)
        return frames

    def unwritten(self) -> Callable[[int], NDArray[np.int64]] | None:
        return None

    def array(self, place: str) -> Keyed | None:
        return Keyed(self.path, place, self._npz[place]) if place in self._npz else None

    def number(self, raw: RawScan, place: str, key: str) -> float | None:
        return take_common(raw, place, self._npz[place]) if place in self._npz else None

    def unit_m(self, raw: RawScan, place: str) -> float | None:
        return None

    def content(self) -> Content:
        arrays = {name: self._npz.describe(name) for name in self._npz}
        listed = [
            Listed(name, shape, str(dtype), dtype.kind) for name, (shape, dtype) in arrays.items()
        ]
        return Content(tuple(sorted(listed, key=lambda one: -math.prod(one.shape))))


@contextmanager
def open_any_npz(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of an NPZ file, where `source.datasets` says.

    Raises:
        ScanError: the file cannot be read, or lacks what is named or needed.
    """
    with NpzFile(path) as npz:
        for key in npz:
            npz.check_plain(key)
        yield read_layout(_NPZ(npz), reading)


def apply_npz_positions(raw: RawScan, path: Path, reading: Reading) -> None:
    """Take the positions of a scan from another NPZ file; see `any_layout.read_positions`.

    Raises:
        ScanError: the file cannot be read, or lacks what is named or needed.
    """
    with NpzFile(path) as npz:
        read_positions(_NPZ(npz), raw, reading.datasets or {})
