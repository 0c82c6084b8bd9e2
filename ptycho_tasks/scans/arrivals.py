"""Which scan files have come whole, and since when: files may be looked at while they are written.

A file has come once its size and time have settled and it has the end that its format asks for: the
directory of a zip, or an HDF5 file that nobody has open for writing and that is as long as it says.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ptycho_tasks.scans.content import has_hdf5_signature
from ptycho_tasks.system.files import file_stamp

SETTLED_S, ENDED_S = 0.3, 0.1
"""How long a file must be as it is; and one that has the end that its format asks for."""
PATIENCE_S = 60.0
"""After how long without a change a file that is not complete will not be any more."""

Stamp = tuple[int, int, int]
"""Size in bytes, time of modification in ns, inode."""


class Arrival(NamedTuple):
    """A file that has come."""

    stamp: Stamp
    """Another one after the file was changed or replaced."""
    since: float
    """When it was complete, by the clock `time.monotonic`; not before one began to look."""


class Arrivals:
    """Looks at files again and again."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin to look."""
        self._clock, self._wall_clock = clock, wall_clock
        self._begun = clock()
        self._seen: dict[Path, tuple[Stamp, float]] = {}

    def find(self, path: Path) -> Arrival | None:
        """A file's arrival; None while it is not there or not complete.

        A file that stays incomplete for `PATIENCE_S` counts as come: who reads it says what is
        wrong with it.
        """
        stamp = read_stamp(path)
        if stamp is None:
            self._seen.pop(path, None)
            return None
        seen, since = self._seen.get(path, (None, 0.0))
        if seen != stamp:
            # Clocks of file servers differ: a time to come says nothing.
            since = self._clock() - max(0.0, self._wall_clock() - stamp[1] / 1e9)
            self._seen[path] = stamp, since
        quiet_s = self._clock() - since
        if quiet_s < ENDED_S:
            return None
        if quiet_s < PATIENCE_S:
            ends = has_end(path)
            if ends is False or (ends is None and quiet_s < SETTLED_S):
                return None
        return Arrival(stamp, max(since, self._begun))


def read_stamp(path: Path) -> Stamp | None:
    """What tells a file from what it was before; None if there is no file."""
    stamp = file_stamp(path)
    return None if stamp is None else (stamp[0], stamp[1], stamp[3])


def has_end(path: Path) -> bool | None:
    """Whether a file has the end that its format asks for; None for a format that asks for none,
    and for what cannot be read, which is for a reader to report."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return None
    if head.startswith(b"PK"):
        return zipfile.is_zipfile(path)
    if not head.strip(b"\0"):  # empty, or room that was made beforehand
        return False
    if not has_hdf5_signature(path):
        return None
    from ptycho_tasks.scans.hdf5_scan import can_open

    return can_open(path)
