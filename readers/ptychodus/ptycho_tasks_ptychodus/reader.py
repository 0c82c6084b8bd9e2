"""The readers that ptycho-tasks finds, one for each format; see `formats`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_tasks_ptychodus.formats import FORMATS, Format

if TYPE_CHECKING:
    from ptycho_tasks.reader import RawScan, Reading


class FacilityReader:
    """Reads scans of one format, when it is named: most are HDF5 with names that others use too."""

    def __init__(self, form: Format) -> None:
        """Take a format."""
        self.name = form.name
        self._form = form

    def claims(self, path: Path) -> bool:
        """No: `source.reader` names it."""
        return False

    def files(self, path: Path, reading: Reading) -> Sequence[Path]:
        """Those of positions, probe and mask that Ptychodus reads; the members of a series are
        listed when they are met."""
        from ptycho_tasks_ptychodus.beside import find_mask, find_probe

        beside = (reading.positions, find_probe(reading), find_mask(reading))
        return [file for file in beside if file is not None]

    @contextmanager
    def open(self, path: Path, reading: Reading) -> Iterator[RawScan]:
        """Frames, and positions and probe where the files give them.

        Raises:
            ScanError: a file cannot be read, or something is missing in it.
            ReaderError: Ptychodus, or what it needs, is not installed.
        """
        from ptycho_tasks_ptychodus.scan import read_facility_scan

        yield read_facility_scan(self._form, path, reading.positions, reading)


def __getattr__(name: str) -> FacilityReader:
    """The reader of a format, for the entry point of its name."""
    if name not in FORMATS:
        raise AttributeError(f"no format {name!r}")
    return FacilityReader(FORMATS[name])
