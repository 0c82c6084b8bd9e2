"""Scans in CXI (Maia, Nature Methods 9, 854, 2012) and NXcxi_ptycho, and frames of Ptychodus.

CXI holds counts, SI units and the zero frequency in the centre. Its translations are taken as
positions of the beam on the object, x to the right and y down, as Ptychodus takes them. A raster
scan of NXcxi_ptycho has two axes of frames, which are read as one.

Axis letters:  M frames,  N detector pixels along one side,  P probe modes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.bad_pixels import CXI_GOOD_BITS
from ptycho_tasks.scans.hdf5_content import list_datasets
from ptycho_tasks.scans.hdf5_values import (
    LENGTHS,
    find_array,
    map_frames,
    open_linked,
    read_number,
    read_unit,
)
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.scans.nexus_beam import (
    CXI_DETECTOR,
    CXI_ENERGY,
    DISTANCES,
    find_energy_ev,
    find_number,
    pixel_sizes,
)
from ptycho_tasks.scans.raw_scan import (
    METRE_EV,
    METRES,
    WITHOUT_PROBE,
    Keyed,
    RawScan,
    Reading,
    finite_column,
    first_variation,
    frame_numbers,
    refused,
)

_SOURCE = "entry_1/instrument_1/source_1"
_DETECTOR = CXI_DETECTOR
_CXI_FRAMES = ("entry_1/data_1/data", f"{_DETECTOR}/data")
_OTHER_FRAMES = ("entry/data/data", "exchange/data", "patterns", "entry/data")
"""Where Ptychodus' readers find frames in files that hold no positions and no probe."""
_TRANSLATIONS = (
    "entry_1/data_1/translation",
    "entry_1/sample_1/geometry_1/translation",
    f"{_DETECTOR}/translation",
)
_ILLUMINATIONS = (
    f"{_SOURCE}/illumination",
    f"{_SOURCE}/data_illumination",
    f"{_DETECTOR}/data_illumination",
    f"{_SOURCE}/probe",
)
_EXPOSURE = "entry_1/ptychodus/exposure_time_s"
_MASK = f"{_DETECTOR}/mask"
_NEXUS_MASK = "entry/instrument/detector/detectorSpecific/pixel_mask"
_BASIS = f"{_DETECTOR}/basis_vectors"
_SHIFTED = "is_fft_shifted"
"""What CXI calls the flag of an image whose zero frequency lies in the corner."""
_SMALLEST_PIXEL_M, _LARGEST_PIXEL_M = 1e-13, 1e-2


def can_open(path: Path) -> bool:
    """Whether an HDF5 file can be opened: it is as long as it says, and no one writes to it."""
    try:
        h5py.File(path, "r").close()
    except OSError:
        return False
    return True


@contextmanager
def open_cxi_scan(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of a CXI file, but for those that come from elsewhere.

    Raises:
        ScanError: the file cannot be read, or lacks what a scan needs.
    """
    with open_linked(path, reading) as file:
        yield _read(file, path, reading, _CXI_FRAMES)


@contextmanager
def open_ptychodus_frames(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The frames of a file of Ptychodus, which holds neither positions nor a probe.

    Raises:
        ScanError: the file cannot be read, or nothing gives the positions and the probe.
    """
    with open_linked(path, reading) as file:
        if reading.needs_positions or reading.needs_probe:
            raise _frames_alone(file, path, reading)
        yield _read(file, path, reading, _OTHER_FRAMES)


def _read(file: LinkedFiles, path: Path, reading: Reading, frames: Sequence[str]) -> RawScan:
    raw = _frames(file, path, frames)
    if reading.centre is None:  # else the user says where it lies
        _refuse_shifted(file, raw)
    _add_cxi_metadata(raw, file, reading)
    if reading.needs_positions:
        _add_cxi_positions(raw, file, reading)
    else:
        raw.numbers = frame_numbers(find_array(file, path, ("indexes",)))
        with suppress(ScanError):  # where it is needed, its absence is refused
            raw.pixel_size_m = raw.pixel_size_m or _far_field_pixel(raw, file, _side(raw))
    raw.grid = _side(raw)
    if reading.needs_probe:
        _add_cxi_probe(raw, file)
    raw.bad_pixels = find_array(file, path, (reading.bad_pixels, _MASK, "bad_pixels", _NEXUS_MASK))
    if raw.bad_pixels is not None and raw.bad_pixels.key.endswith("/mask"):
        raw.good_bits = CXI_GOOD_BITS
    raw.note_files(path, file.stamps)
    return raw


def _frames(file: LinkedFiles, path: Path, keys: Sequence[str]) -> RawScan:
    for key in keys:
        found = map_frames(file, path, key)
        if found is not None:
            raw = RawScan(path, found.frames, holds_counts=True, unwritten=found.unwritten)
            if found.raster is not None:
                rows, columns = found.raster
                raw.note(f"{key}: {rows} rows of {columns} frames read as {rows * columns} frames")
            return raw
    raise refused(
        path,
        keys[0],
        f"and {keys[1]!r} are missing or damaged",
        "frames (M, N, N)",
        "give a CXI file, or say with source.datasets where the file has its frames",
    )


def _frames_alone(file: LinkedFiles, path: Path, reading: Reading) -> ScanError:
    if file.dataset("probe_position_x_m") is not None:
        return ScanError(
            f"{path}: a Ptychodus product, which holds no frames; give the frames in source.file "
            "and this file in source.product"
        )
    needed = {
        "positions": reading.needs_positions,
        "a probe": reading.needs_probe,
    }
    lacking = " nor ".join(name for name, is_needed in needed.items() if is_needed)
    return ScanError(
        f"{path}: holds no {lacking} where Ptychodus writes them, but "
        f"{list_datasets(path).describe()}; set source.product to the product that belongs to the "
        "frames, or source.positions and source.probe (`estimate` finds one), or say where the "
        "file has what, as in `source.datasets: {diff3d: PATH, xcoords: PATH, ycoords: PATH, "
        "probeGuess: PATH}`"
    )


def _refuse_shifted(file: LinkedFiles, raw: RawScan) -> None:
    """Refuse frames that are said to have the zero frequency in the corner."""
    group = raw.frames.key.rpartition("/")[0]
    dataset = file.dataset(raw.frames.key, in_part=True)
    items = [] if dataset is None else [dataset, dataset.parent]  # none of a stack of several
    flags = [item.attrs.get(_SHIFTED) for item in items]
    for place in {group, _DETECTOR}:
        flag = file.dataset(f"{place}/{_SHIFTED}")
        flags.append(None if flag is None else flag[()])
    if any(flag is not None and bool(np.any(flag)) for flag in flags):
        raise raw.frames.refused(
            f"is said to be shifted ({_SHIFTED})",
            "the zero frequency in the centre, at index N//2",
            "set source.centre to corner, or remove the flag if it is wrong",
        )


def _add_cxi_metadata(raw: RawScan, file: LinkedFiles, reading: Reading) -> None:
    raw.energy_ev = reading.energy_ev or find_energy_ev(file, raw)
    raw.distance_m = reading.distance_m or find_number(file, raw, DISTANCES, LENGTHS)
    raw.exposure_s = read_number(file, raw, _EXPOSURE, {"s": 1.0})
    raw.pixel_size_m = reading.pixel_size_m


def _add_cxi_positions(raw: RawScan, file: LinkedFiles, reading: Reading) -> None:
    translation = find_array(file, raw.path, _TRANSLATIONS)
    if translation is None:
        raise refused(
            raw.path,
            _TRANSLATIONS[0],
            f"and {_TRANSLATIONS[1]!r} are missing or damaged",
            "(M, 3) or (M, 2) metres",
            "add them, or give a product",
        )
    x, y = _along_detector(raw, file, *_translation_columns(raw, translation))
    size = _side(raw)
    raw.pixel_size_m = raw.pixel_size_m or _far_field_pixel(raw, file, size)
    height, width = _pixel_in_unit(raw, file, translation.key, reading)
    # The smallest position puts its patch into the corner of the object grid.
    with np.errstate(over="ignore", invalid="ignore"):
        x_px = (x - x.min(initial=np.inf)) / width + size // 2
        y_px = (y - y.min(initial=np.inf)) / height + size // 2
    raw.x = Keyed(raw.path, translation.key, x_px)
    raw.y = Keyed(raw.path, translation.key, y_px)
    raw.positions_are_pixels = True
    raw.note(
        f"{translation.key}: taken as x (right) and y (down) of the beam on the object, in pixels "
        f"of {raw.pixel_size_m[1]:.6g} m x {raw.pixel_size_m[0]:.6g} m"
    )


def _side(raw: RawScan) -> int:
    """N: in either order of the axes, the middle one is a side of the detector."""
    return raw.frames.array.shape[1]


def _pixel_in_unit(
    raw: RawScan, file: LinkedFiles, key: str, reading: Reading
) -> tuple[float, float]:
    """(height, width) of a pixel in the unit of the positions."""
    assert raw.pixel_size_m is not None
    if reading.units == "pixels":
        return 1.0, 1.0
    dataset = file.dataset(key)
    assert dataset is not None
    auto = reading.units == "auto"
    metres = read_unit(raw, key, dataset, LENGTHS) if auto else METRES[reading.units]
    return raw.pixel_size_m[0] / metres, raw.pixel_size_m[1] / metres


def _along_detector(
    raw: RawScan, file: LinkedFiles, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions along the columns and rows of the detector, where the file says how it lies."""
    rows_and_columns = _basis(raw, file)
    if rows_and_columns is None:
        return x, y
    slow, fast = (vector[:2] / np.linalg.norm(vector) for vector in rows_and_columns)
    if not np.allclose([slow, fast], [[0, 1], [1, 0]]):
        raw.note(
            f"{_BASIS}: rows run along (x, y) = ({slow[0]:.3g}, {slow[1]:.3g}), columns along "
            f"({fast[0]:.3g}, {fast[1]:.3g}); positions turned so"
        )
    return fast[0] * x + fast[1] * y, slow[0] * x + slow[1] * y


def _basis(raw: RawScan, file: LinkedFiles) -> NDArray[np.float64] | None:
    """(2, 3) x, y, z in metres of a step to the next row, and to the next column.

    CXI names them from the slow axis of the frames to the fast one.
    """
    keyed = find_array(file, raw.path, (_BASIS,))
    if keyed is None:
        return None
    array = keyed.array
    shape = tuple(array.shape)
    if array.dtype.kind == "f" and shape[-2:] == (2, 3) and 0 not in shape:
        vectors = np.asarray(array[:], np.float64).reshape(-1, 2, 3)
        first, lengths = vectors[0], np.linalg.norm(vectors[0], axis=1)
        flat = np.abs(first[:, 2]).max() < 0.01 * lengths.min()
        square = abs(first[0] @ first[1]) < 0.01 * lengths.prod()
        if np.isfinite(vectors).all() and (vectors == first).all() and flat and square:
            return np.asarray(first)
    raise keyed.refused(
        f"is {array.dtype} of shape {shape}, varies, or is no flat detector's with square pixels",
        "(2, 3) metres, one row for the rows and one for the columns of the detector",
        "correct or remove it",
    )


def _translation_columns(
    raw: RawScan, translation: Keyed
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    array = translation.array
    shape = tuple(array.shape)
    if len(shape) == 3 and shape[2] in (2, 3):  # of a raster
        array = array[:].reshape(-1, shape[2])
        shape = array.shape
    if len(shape) != 2 or (shape[1] not in (2, 3) and shape[0] not in (2, 3)):
        raise translation.refused(
            f"is {array.dtype} of shape {shape}", "(M, 3) or (M, 2) metres", "correct the file"
        )
    values = array[:]
    if shape[1] not in (2, 3):
        raw.note(f"{translation.key}: transposed from {shape}")
        values = values.T
    x, y = (finite_column(Keyed(raw.path, translation.key, values[:, i])) for i in (0, 1))
    return x, y


def _far_field_pixel(raw: RawScan, file: LinkedFiles, size: int) -> tuple[float, float]:
    """(height, width) of the object pixel: wavelength times distance over detector width."""
    pixels = {axis: f"{_DETECTOR}/{axis}_pixel_size" for axis in "yx"}
    values = {pixels[axis]: find_number(file, raw, pixel_sizes(axis), LENGTHS) for axis in "yx"}
    basis = _basis(raw, file)
    for axis, vector in zip("yx", () if basis is None else basis, strict=False):
        values[pixels[axis]] = values[pixels[axis]] or float(np.linalg.norm(vector))
    values[CXI_ENERGY] = raw.energy_ev
    values[f"{_DETECTOR}/distance"] = raw.distance_m
    for key, value in values.items():
        if value <= 0:
            raise refused(
                raw.path,
                key,
                "is missing or not positive",
                "energy (J), distance (m) and pixel size (m), from which the object pixel follows",
                "add it, or set energy_ev, distance_m or pixel_size_m",
            )
    scale = METRE_EV / raw.energy_ev * raw.distance_m / size
    with np.errstate(over="ignore"):
        height, width = (float(np.float64(scale) / values[pixels[axis]]) for axis in "yx")
    for side in (height, width):
        if not _SMALLEST_PIXEL_M < side < _LARGEST_PIXEL_M:
            shown = ", ".join(
                f"{key.rpartition('/')[2]} {value:.3g}" for key, value in values.items()
            )
            raise refused(
                raw.path,
                pixels["x"],
                f"and the rest give object pixels of {side:.3g} m (in SI units: {shown})",
                f"{_SMALLEST_PIXEL_M:g} to {_LARGEST_PIXEL_M:g} m",
                "correct them, or set pixel_size_m",
            )
    return height, width


def _add_cxi_probe(raw: RawScan, file: LinkedFiles) -> None:
    for key in _ILLUMINATIONS:
        dataset = file.dataset(key)
        # A real array is an intensity, from which no probe follows.
        if dataset is not None and dataset.dtype.kind == "c":
            raw.probe = Keyed(raw.path, key, first_variation(raw, key, dataset))
            return
    raise refused(
        raw.path,
        _ILLUMINATIONS[0],
        "is missing or damaged",
        "a probe, (N, N) or (P, N, N) complex",
        f"add it, give a Ptychodus product with one in source.product, or {WITHOUT_PROBE}",
    )
