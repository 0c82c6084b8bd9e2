"""Scan files after the contract, small and in every form, to be spoilt by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.readers import read_scan

M, N, H, W = 6, 8, 20, 24
COUNTS = np.random.default_rng(0).poisson(9.0, (M, N, N))
ENERGY_EV, DISTANCE_M, DETECTOR_PIXEL_M = 8000.0, 2.0, (50e-6, 40e-6)
WAVELENGTH_M = 6.62607015e-34 * 299792458.0 / (ENERGY_EV * 1.602176634e-19)

Arrays = dict[str, Any]


def canonical() -> Arrays:
    """A scan after the contract, to be spoilt."""
    rng = np.random.default_rng(1)
    return {
        "diff3d": np.sqrt(COUNTS).astype(np.float32),
        "xcoords": rng.uniform(4, 16, M),
        "ycoords": rng.uniform(4, 12, M),
        "probeGuess": (rng.random((N, N)) + 1j).astype(np.complex64),
        "objectGuess": (rng.random((H, W)) + 1j).astype(np.complex64),
        "scan_index": np.zeros(M, dtype=np.int64),
    }


def with_value(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


def save(folder: Path, arrays: Arrays, name: str = "scan.npz") -> Path:
    np.savez(folder / name, **{k: v for k, v in arrays.items() if v is not None})
    return folder / name


def message(path: Path, **options: Any) -> str:
    """The one line with which a scan is refused."""
    with pytest.raises(ScanError) as caught:
        read_scan(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def cxi() -> Arrays:
    """A CXI file's datasets; translations in metres, x right and y down."""
    return {
        "entry_1/data_1/data": COUNTS.astype(np.uint16),
        "entry_1/data_1/translation": np.array([[3e-6 * i, -4e-7 * i * i, 0.0] for i in range(M)]),
        "entry_1/instrument_1/source_1/energy": ENERGY_EV * 1.602176634e-19,
        "entry_1/instrument_1/source_1/illumination": canonical()["probeGuess"],
        "entry_1/instrument_1/detector_1/distance": DISTANCE_M,
        "entry_1/instrument_1/detector_1/y_pixel_size": DETECTOR_PIXEL_M[0],
        "entry_1/instrument_1/detector_1/x_pixel_size": DETECTOR_PIXEL_M[1],
    }


def save_hdf5(folder: Path, arrays: Arrays, name: str = "scan.cxi", **storage: Any) -> Path:
    with h5py.File(folder / name, "w") as file:
        for key, value in arrays.items():
            if value is not None:
                options = storage if np.ndim(value) == 3 else {}
                file.create_dataset(key, data=value, **options)
    return folder / name
