"""The core's own readers. What reads a format is imported when a file of it is there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ptycho_tasks.scans.content import (
    has_hdf5_signature,
    has_zip_signature,
    list_hdf5_names,
    list_npz_keys,
)
from ptycho_tasks.scans.raw_scan import RawScan, Reading

_TIKE = frozenset({"data", "scan"})


class OneFile:
    """What most formats have in common: a scan is one file."""

    def files(self, path: Path, reading: Reading) -> Sequence[Path]:
        """None besides the scan's own; those behind links are listed when they are met."""
        return ()


class NPZ(OneFile):
    """NPZ after the raw-scan contract, and with the older keys of PtychoPINN."""

    name = "npz"

    def claims(self, path: Path) -> bool:
        """Every zip that is not of another kind."""
        return has_zip_signature(path) and not (list_npz_keys(path) or frozenset()) >= _TIKE

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.npz_scan`."""
        from ptycho_tasks.scans.npz_scan import open_npz_scan

        return open_npz_scan(path, reading)


class CXI(OneFile):
    """CXI, and NXcxi_ptycho."""

    name = "cxi"

    def claims(self, path: Path) -> bool:
        """By the names that CXI gives; what is damaged counts as one, and its reader says so."""
        names = list_hdf5_names(path)
        if names is None:
            return has_hdf5_signature(path)
        return "entry_1" in names

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.hdf5_scan`."""
        from ptycho_tasks.scans.hdf5_scan import open_cxi_scan

        return open_cxi_scan(path, reading)


class Ptychodus(OneFile):
    """Frames as Ptychodus reads and writes them, for a product that gives the rest."""

    name = "ptychodus"

    def claims(self, path: Path) -> bool:
        """By the names that its readers look for, or those of a product."""
        names = list_hdf5_names(path) or frozenset()
        return bool(names & {"entry", "exchange", "patterns", "probe_position_x_m"}) and (
            "entry_1" not in names
        )

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.hdf5_scan`."""
        from ptycho_tasks.scans.hdf5_scan import open_ptychodus_frames

        return open_ptychodus_frames(path, reading)


npz, cxi, ptychodus = NPZ(), CXI(), Ptychodus()
