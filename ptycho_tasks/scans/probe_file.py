"""A probe from a file of its own: NPZ, NPY, CSV or HDF5, as Ptychodus' products, our results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.content import has_hdf5_signature, has_zip_signature
from ptycho_tasks.scans.npz import NpzFile
from ptycho_tasks.scans.raw_scan import Array, Keyed, RawScan, Reading, first_variation

if TYPE_CHECKING:
    from ptycho_tasks.scans.linked_files import LinkedFiles

_KEYS = ("probeGuess", "probe")
_HDF5_KEYS = (*_KEYS, "entry_1/instrument_1/source_1/illumination")


def apply_probe(raw: RawScan, path: Path, reading: Reading) -> None:
    """Take the probe of a scan from a file.

    Raises:
        ScanError: the file cannot be read, or holds no probe.
    """
    if not path.is_file():
        raise ScanError(f"{path}: no such file; check source.probe")
    key, probe = _read(path, reading)
    raw.probe = Keyed(path, key, probe)
    if len(probe.shape) == 4:
        raw.probe = Keyed(path, key, first_variation(raw, key, probe))
    raw.is_probe_estimated = False
    raw.note(f"probe taken from {path.name}")


def _read(path: Path, reading: Reading) -> tuple[str, Array]:
    if has_zip_signature(path):
        with NpzFile(path) as npz:
            keys = [key for key in _KEYS if key in npz]
            if keys:
                return keys[0], npz[keys[0]]
    elif has_hdf5_signature(path):
        from ptycho_tasks.scans.hdf5_values import open_linked

        with open_linked(path, reading) as file:
            for key in (*_HDF5_KEYS, *_list_ptypy_probes(file)):
                dataset = file.dataset(key)
                if dataset is not None:
                    return key, np.asarray(dataset[()])
    elif path.suffix.lower() == ".csv":
        return "probe", _read_csv(path)
    else:
        return "probe", _read_npy(path)
    raise ScanError(f"{path}: holds no {' and no '.join(_KEYS)}; give a file with a probe")


def _list_ptypy_probes(file: LinkedFiles) -> list[str]:
    """Where a reconstruction of PtyPy has its probe: each scan's in a group of its own."""
    return [f"content/probe/{name}/data" for name in file.names("content/probe")]


def _read_csv(path: Path) -> Array:
    """(P, N, N) complex numbers, modes below each other."""
    try:
        # As older numpy writes numbers with a negative imaginary part.
        lines = path.read_text().replace("+-", "-").splitlines()
        rows = np.loadtxt(lines, np.complex128, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise ScanError(
            f"{path}: no table of complex numbers with commas between: {error}; correct it"
        ) from error
    N = rows.shape[1]
    if len(rows) % N:
        raise ScanError(
            f"{path}: {len(rows)} lines of {N} numbers; expected modes of N lines of N numbers, "
            "one below the other; correct it"
        )
    modes: Array = rows.reshape(-1, N, N)
    return modes


def _read_npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ScanError(
            f"{path}: neither NPZ, NPY, CSV nor HDF5; give one of these, with a probe"
        ) from error
    return array
