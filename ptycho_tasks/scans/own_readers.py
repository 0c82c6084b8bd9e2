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
        """See `ptycho_tasks.scans.npz_scan`, and `any_npz` where `source.datasets` is set."""
        if reading.own_datasets:
            from ptycho_tasks.scans.any_npz import open_any_npz

            return open_any_npz(path, reading)
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


class AnyHDF5(OneFile):
    """HDF5 of any layout, for which `source.datasets` says what lies where."""

    name = "hdf5"

    def claims(self, path: Path) -> bool:
        """Never: where `source.datasets` is set, it is asked for."""
        return False

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.any_hdf5`."""
        from ptycho_tasks.scans.any_hdf5 import open_any_hdf5

        return open_any_hdf5(path, reading)


class Tike(OneFile):
    """NPZ of tike."""

    name = "tike"

    def claims(self, path: Path) -> bool:
        """By the names of its arrays."""
        return (list_npz_keys(path) or frozenset()) >= _TIKE

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.tike_scan`."""
        from ptycho_tasks.scans.tike_scan import open_tike_scan

        return open_tike_scan(path, reading)


class FoldSlice:
    """Frames `*_dp.hdf5` with parameters `*_para.hdf5`."""

    name = "fold_slice"

    def claims(self, path: Path) -> bool:
        """By the name of its frames."""
        return "dp" in (list_hdf5_names(path) or ())

    def files(self, path: Path, reading: Reading) -> Sequence[Path]:
        """The parameters, where they are needed."""
        from ptycho_tasks.scans.fold_slice_scan import find_parameters

        needed = reading.needs_positions or reading.needs_probe
        return [find_parameters(path)] if needed else []

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.fold_slice_scan`."""
        from ptycho_tasks.scans.fold_slice_scan import open_fold_slice_scan

        return open_fold_slice_scan(path, reading)


class PtyPy(OneFile):
    """Data of PtyPy, `.ptyd`."""

    name = "ptypy"

    def claims(self, path: Path) -> bool:
        """By the groups of its data, or those of its reconstructions."""
        names = list_hdf5_names(path) or frozenset()
        return names >= {"chunks"} or names >= {"content", "header"}

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.ptypy_scan`."""
        from ptycho_tasks.scans.ptypy_scan import open_ptypy_scan

        return open_ptypy_scan(path, reading)


class PtyLab(OneFile):
    """HDF5 of PtyLab."""

    name = "ptylab"

    def claims(self, path: Path) -> bool:
        """By the name of its frames."""
        return "ptychogram" in (list_hdf5_names(path) or ())

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """See `ptycho_tasks.scans.ptylab_scan`."""
        from ptycho_tasks.scans.ptylab_scan import open_ptylab_scan

        return open_ptylab_scan(path, reading)


npz, cxi, ptychodus, hdf5 = NPZ(), CXI(), Ptychodus(), AnyHDF5()
tike, fold_slice, ptypy, ptylab = Tike(), FoldSlice(), PtyPy(), PtyLab()
