"""NPZ files of any layout; see `any_layout`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.any_layout import Layout, read_layout
from ptycho_tasks.scans.content import Content
from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading, check_stack, take_common
from ptycho_tasks.system.files import FileStamp


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
        return Content(tuple(self._npz.list_arrays()))

    def stamps(self) -> Mapping[Path, FileStamp]:
        return {}


@contextmanager
def open_npz_layout(path: Path) -> Iterator[Layout]:
    """The arrays of an NPZ file.

    Raises:
        ScanError: the file cannot be read.
    """
    with NpzFile(path) as npz:
        yield _NPZ(npz)


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
