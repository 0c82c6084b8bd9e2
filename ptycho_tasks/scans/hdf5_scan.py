"""Scans in HDF5: CXI (Maia, Nature Methods 9, 854, 2012), Ptychodus' frames and products.

CXI holds counts, SI units and the zero frequency in the centre. Its translations are taken as
positions of the beam on the object, x to the right and y down, as Ptychodus takes them.

Ptychodus counts object pixels from the centre of the first one to the centre of the array,
(W - 1) / 2, and puts the patch's own centre, (N - 1) / 2, on the position. Here the position
is where the patch's pixel N // 2 lies, so with N even it is half a pixel larger: W / 2.

Axis letters:  M frames,  N detector pixels along one side,  P probe modes,  C probe
variations,  L object layers,  H, W object grid.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.bad_pixels import CXI_GOOD_BITS
from ptycho_tasks.scans.linked_files import DAMAGE, LinkedFiles
from ptycho_tasks.scans.mapping import map_array
from ptycho_tasks.scans.raw_scan import (
    METRES,
    WITHOUT_PROBE,
    Array,
    Keyed,
    RawScan,
    Reading,
    check_stack,
    finite_column,
    frame_numbers,
    refused,
    whole_numbers,
)

JOULES_PER_EV = 1.602176634e-19
METRE_EV = 1.2398419843320026e-06
"""Wavelength in metres times photon energy in eV: Planck's constant times speed of light."""

_SOURCE = "entry_1/instrument_1/source_1"
_DETECTOR = "entry_1/instrument_1/detector_1"
_CXI_FRAMES = ("entry_1/data_1/data", f"{_DETECTOR}/data")
_OTHER_FRAMES = ("entry/data/data", "exchange/data", "patterns")
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
_BASIS = f"{_DETECTOR}/basis_vectors"
_SHIFTED = "is_fft_shifted"
"""What CXI calls the flag of an image whose zero frequency lies in the corner."""
_LENGTHS = {**METRES, "metre": 1.0, "meter": 1.0, "cm": 1e-2, "\u00b5m": 1e-6, "\u03bcm": 1e-6,
            "micron": 1e-6, "pm": 1e-12}  # fmt: skip
_ENERGIES = {"j": 1.0, "joule": 1.0, "ev": JOULES_PER_EV, "kev": 1e3 * JOULES_PER_EV}
_SMALLEST_PIXEL_M, _LARGEST_PIXEL_M = 1e-13, 1e-2
_HIGHEST_ENERGY_J = 1e-11
"""Some 60 MeV. A larger number was not written in joules."""


def is_hdf5(path: Path) -> bool:
    """Whether a file starts like HDF5."""
    return bool(h5py.is_hdf5(path))


def can_open(path: Path) -> bool:
    """Whether an HDF5 file can be opened: it is as long as it says, and no one writes to it."""
    try:
        h5py.File(path, "r").close()
    except OSError:
        return False
    return True


@contextmanager
def open_hdf5_scan(path: Path, reading: Reading, *, with_product: bool) -> Iterator[RawScan]:
    """The arrays of a CXI file, or only its frames where a product gives the rest.

    Raises:
        ScanError: the file cannot be read, or lacks what a scan needs.
    """
    with _open_file(path, reading) as file:
        raw = _frames(file, path, with_product=with_product)
        _refuse_shifted(file, raw)
        _add_cxi_metadata(raw, file, reading)
        if with_product:
            raw.numbers = frame_numbers(_find(file, path, ("indexes",)))
        else:
            _add_cxi_positions(raw, file, reading)
            _add_cxi_probe(raw, file, reading)
        raw.bad_pixels = _find(file, path, (reading.bad_pixels, _MASK, "bad_pixels"))
        if raw.bad_pixels is not None and raw.bad_pixels.key.endswith("/mask"):
            raw.good_bits = CXI_GOOD_BITS
        _note_files(raw, file)
        yield raw


def _frames(file: LinkedFiles, path: Path, *, with_product: bool) -> RawScan:
    for key in _CXI_FRAMES + (_OTHER_FRAMES if with_product else ()):
        dataset = file.dataset(key, in_part=True)
        if dataset is not None:
            frames = Keyed(path, key, _map(dataset))
            check_stack(frames)
            unwritten = partial(file.unwritten, dataset, key)
            return RawScan(path, frames, holds_counts=True, unwritten=unwritten)
    raise _without_frames(file, path, with_product=with_product)


def _refuse_shifted(file: LinkedFiles, raw: RawScan) -> None:
    """Refuse frames that are said to have the zero frequency in the corner."""
    group = raw.frames.key.rpartition("/")[0]
    dataset = file.dataset(raw.frames.key, in_part=True)
    assert dataset is not None
    flags = [dataset.attrs.get(_SHIFTED), dataset.parent.attrs.get(_SHIFTED)]
    for place in {group, _DETECTOR}:
        flag = file.dataset(f"{place}/{_SHIFTED}")
        flags.append(None if flag is None else flag[()])
    if any(flag is not None and bool(np.any(flag)) for flag in flags):
        raise raw.frames.refused(
            f"is said to be shifted ({_SHIFTED})",
            "the zero frequency in the centre, at index N//2",
            "shift the frames (numpy.fft.fftshift), or remove the flag if it is wrong",
        )


def _note_files(raw: RawScan, file: LinkedFiles) -> None:
    """Note the files besides its own that a scan is read from."""
    if file.stamps:
        names = [path.name for path in file.stamps]
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raw.note(f"{len(names)} further files hold a part of {file.path.name}: {shown}")
    raw.files |= file.stamps


def apply_product(raw: RawScan, path: Path, reading: Reading) -> None:
    """Take positions, probe, object and metadata of a scan from a Ptychodus product.

    Raises:
        ScanError: the product cannot be read, or does not belong to the frames.
    """
    with _open_file(path, reading) as file:
        _refuse_near_field(file, path)
        product_object = _require_dataset(file, path, "object", "(L, H, W) complex64")
        raw.pixel_size_m = _product_pixel(product_object, path)
        raw.object = _product_object(raw, product_object, path)
        raw.probe = _product_probe(raw, file, path)
        _place_by_product(raw, file, path, product_object)
        values = {
            name: _attribute(file.root, path, name)
            for name in (
                "photon_energy_eV",
                "probe_energy_eV",
                "detector_object_distance_m",
                "exposure_time_s",
            )
        }
        _note_files(raw, file)
    # The caller's word goes before the product's, and that before the frames' own file's.
    energy_ev = values["photon_energy_eV"] or values["probe_energy_eV"]
    raw.energy_ev = reading.energy_ev or energy_ev or raw.energy_ev
    raw.distance_m = reading.distance_m or values["detector_object_distance_m"] or raw.distance_m
    raw.exposure_s = values["exposure_time_s"] or raw.exposure_s
    if reading.pixel_size_m:
        raw.note(f"pixel_size_m: ignored, the pixel of the product {path.name} is taken")
    raw.note(f"positions, probe and object taken from the product {path.name}")


def _refuse_near_field(file: LinkedFiles, path: Path) -> None:
    if not _attribute(file.root, path, "far_field", missing=1.0):
        raise refused(
            path,
            "far_field",
            "is false",
            "a scan in the far field",
            "reconstruct it with a program that propagates in the near field",
        )


@contextmanager
def _open_file(path: Path, reading: Reading) -> Iterator[LinkedFiles]:
    # Detectors compress with filters that h5py knows only after this import.
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")
    with LinkedFiles(path, reading.follow) as file:
        try:
            yield file
        except DAMAGE as error:
            raise ScanError(
                f"{path}: not a complete HDF5 file: {' '.join(str(error).split())}; it may be "
                "truncated, copy or make it again"
            ) from error


def _find(file: LinkedFiles, path: Path, keys: Sequence[str]) -> Keyed | None:
    for key in keys:
        dataset = file.dataset(key)
        if dataset is not None:
            return Keyed(path, key, _map(dataset))
    return None


def _require_dataset(file: LinkedFiles, path: Path, key: str, expected: str) -> h5py.Dataset:
    dataset = file.dataset(key)
    if dataset is None:
        raise refused(path, key, "is missing or damaged", expected, "add it, or give another file")
    return dataset


def _map(dataset: h5py.Dataset) -> Array:
    """A memory map of a dataset that lies in one piece in its file, else the dataset."""
    path = Path(dataset.file.filename)
    offset = dataset.id.get_offset()  # None where chunked, virtual or in another file
    mappable = (
        offset is not None
        and dataset.dtype.kind in "fiu"
        and not dataset.external
        # Mapped past the end of the file, it would end the process with a bus error.
        and offset + dataset.nbytes <= path.stat().st_size
    )
    array: Array = (
        map_array(path, path, dataset.dtype, offset, dataset.shape) if mappable else dataset
    )
    return array


def _without_frames(file: LinkedFiles, path: Path, *, with_product: bool) -> ScanError:
    if file.dataset("probe_position_x_m") is not None:
        return ScanError(
            f"{path}: a Ptychodus product, which holds no frames; give the frames in source.file "
            "and this file in source.product"
        )
    return refused(
        path,
        _CXI_FRAMES[0],
        f"and {_CXI_FRAMES[1]!r} are missing or damaged",
        "frames (M, N, N)",
        "give Ptychodus' frames, as source.file"
        if with_product
        else "give a CXI file, or set source.product to the product that belongs to the frames",
    )


def _add_cxi_metadata(raw: RawScan, file: LinkedFiles, reading: Reading) -> None:
    energy_j = _number(file, raw, f"{_SOURCE}/energy", _ENERGIES)
    if energy_j > _HIGHEST_ENERGY_J and not reading.energy_ev:
        raise refused(
            raw.path,
            f"{_SOURCE}/energy",
            f"is {energy_j:g}",
            "the photon energy in joules",
            "set energy_ev",
        )
    raw.energy_ev = reading.energy_ev or energy_j / JOULES_PER_EV
    raw.distance_m = reading.distance_m or abs(
        _number(file, raw, f"{_DETECTOR}/distance", _LENGTHS)
    )
    raw.exposure_s = _number(file, raw, _EXPOSURE, {"s": 1.0})
    raw.pixel_size_m = reading.pixel_size_m


def _number(file: LinkedFiles, raw: RawScan, key: str, units: Mapping[str, float]) -> float:
    """A scalar, or the common value of an array, in SI units; zero where there is none."""
    dataset = file.dataset(key)
    if dataset is None:
        return 0.0
    values = np.ravel(dataset[()]) if dataset.dtype.kind in "fiu" else np.empty(0)
    if not len(values) or not np.isfinite(values).all() or np.ptp(values) > 1e-6 * abs(values[0]):
        raise refused(
            raw.path,
            key,
            f"is {dataset.dtype} of shape {dataset.shape}, or varies",
            "one finite number",
            "correct the file",
        )
    return float(values[0]) * _unit(raw, key, dataset, units)


def _unit(raw: RawScan, key: str, dataset: h5py.Dataset, units: Mapping[str, float]) -> float:
    """What the unit that a dataset is in is in SI; one where it does not say."""
    unit = dataset.attrs.get("units", dataset.attrs.get("unit"))
    if isinstance(unit, np.ndarray) and unit.size == 1:
        unit = unit.reshape(-1)[0]
    text = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit
    if text is None or (isinstance(text, str) and not text.strip()):
        return 1.0
    name = text.strip().casefold() if isinstance(text, str) else ""
    name = name if name in units else name.removesuffix("s")
    if name not in units:
        raise refused(
            raw.path,
            key,
            f"has the units {str(text)[:40]!r}",
            f"one of {', '.join(units)}",
            "correct the attribute",
        )
    if units[name] != 1.0:
        raw.note(f"{key}: in {name}, as it says")
    return units[name]


def _attribute(item: h5py.HLObject, path: Path, name: str, missing: float = 0.0) -> float:
    """An attribute that is one number; `missing` where there is none."""
    try:
        values = np.ravel(item.attrs.get(name, missing))
    except (TypeError, ValueError):  # of a type that numpy has no name for
        values = np.empty(0)
    if values.dtype.kind not in "fiub" or len(values) != 1 or not np.isfinite(values[0]):
        raise refused(
            path,
            name,
            f"is an attribute of {item.name} without a usable value",
            "one finite number",
            "write the product again",
        )
    return float(values[0])


def _add_cxi_positions(raw: RawScan, file: LinkedFiles, reading: Reading) -> None:
    translation = _find(file, raw.path, _TRANSLATIONS)
    if translation is None:
        raise refused(
            raw.path,
            _TRANSLATIONS[0],
            f"and {_TRANSLATIONS[1]!r} are missing or damaged",
            "(M, 3) or (M, 2) metres",
            "add them, or give a product",
        )
    x, y = _along_detector(raw, file, *_translation_columns(raw, translation))
    # In either order of the axes, the middle one is a side of the detector.
    size = raw.frames.array.shape[1]
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
    metres = _unit(raw, key, dataset, _LENGTHS) if auto else METRES[reading.units]
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
    keyed = _find(file, raw.path, (_BASIS,))
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
    values = {key: _number(file, raw, key, _LENGTHS) for key in pixels.values()}
    basis = _basis(raw, file)
    for axis, vector in zip("yx", () if basis is None else basis, strict=False):
        values[pixels[axis]] = values[pixels[axis]] or float(np.linalg.norm(vector))
    values[f"{_SOURCE}/energy"] = raw.energy_ev
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


def _add_cxi_probe(raw: RawScan, file: LinkedFiles, reading: Reading) -> None:
    for key in _ILLUMINATIONS:
        dataset = file.dataset(key)
        # A real array is an intensity, from which no probe follows.
        if dataset is not None and dataset.dtype.kind == "c":
            raw.probe = Keyed(raw.path, key, _modes(raw, key, dataset))
            return
    if reading.probe == "estimate":
        return
    raise refused(
        raw.path,
        _ILLUMINATIONS[0],
        "is missing or damaged",
        "a probe, (N, N) or (P, N, N) complex",
        f"add it, give a Ptychodus product with one in source.product, or {WITHOUT_PROBE}",
    )


def _modes(raw: RawScan, key: str, dataset: h5py.Dataset) -> NDArray[Any]:
    """(N, N) or (P, N, N) of a probe that may have an axis of variations before that."""
    array: NDArray[Any] = np.asarray(dataset[()])
    if array.ndim == 4 and len(array):
        if len(array) > 1:
            raw.note(f"{key}: first of {len(array)} probe variations taken")
        array = array[0]
    return array


def _product_pixel(dataset: h5py.Dataset, path: Path) -> tuple[float, float]:
    names = ("pixel_height_m", "pixel_width_m")
    height, width = (_attribute(dataset, path, name) for name in names)
    if height <= 0 or width <= 0:
        raise refused(
            path,
            "object",
            f"has pixels of {width:g} m x {height:g} m",
            "attributes pixel_width_m and pixel_height_m above zero",
            "write the product again",
        )
    return height, width


def _product_object(raw: RawScan, dataset: h5py.Dataset, path: Path) -> Keyed | None:
    if dataset.ndim not in (2, 3) or not dataset.size:
        raise refused(
            path,
            "object",
            f"is {dataset.dtype} of shape {dataset.shape}",
            "(L, H, W) complex64",
            "write the product again",
        )
    if dataset.ndim == 3 and len(dataset) > 1:
        raw.note(f"object: ignored, it has {len(dataset)} layers")
        return None
    return Keyed(path, "object", dataset[0] if dataset.ndim == 3 else dataset[()])


def _product_probe(raw: RawScan, file: LinkedFiles, path: Path) -> Keyed:
    dataset = _require_dataset(file, path, "probe", "(C, P, N, N) complex64")
    return Keyed(path, "probe", _modes(raw, "probe", dataset))


def _place_by_product(
    raw: RawScan, file: LinkedFiles, path: Path, product_object: h5py.Dataset
) -> None:
    index_key = "probe_position_indexes"
    indexes = _require_dataset(file, path, index_key, "(M,) frame numbers")
    numbers = whole_numbers(Keyed(path, index_key, indexes))
    x_m, y_m = (_metres(raw, file, path, f"probe_position_{axis}_m") for axis in "xy")
    if not len(numbers) or not len(numbers) == len(x_m) == len(y_m):
        raise refused(
            path,
            "probe_position_indexes",
            f"has {len(numbers)} entries, x {len(x_m)} and y {len(y_m)}",
            "equal numbers of each",
            "write the product again",
        )
    height, width = raw.pixel_size_m or (1.0, 1.0)
    rows, columns = product_object.shape[-2:]
    x_px = (x_m - _attribute(product_object, path, "center_x_m")) / width + columns / 2
    y_px = (y_m - _attribute(product_object, path, "center_y_m")) / height + rows / 2
    frames, order = _match_frames(raw, path, numbers)
    raw.rows = frames
    raw.x = Keyed(path, "probe_position_x_m", x_px[order])
    raw.y = Keyed(path, "probe_position_y_m", y_px[order])
    raw.positions_are_pixels = True


def _metres(raw: RawScan, file: LinkedFiles, path: Path, key: str) -> NDArray[np.float64]:
    dataset = _require_dataset(file, path, key, "(M,) metres")
    return finite_column(Keyed(path, key, dataset)) * _unit(raw, key, dataset, _LENGTHS)


def _match_frames(
    raw: RawScan, path: Path, numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted places of the numbered frames, and the order that sorts the positions so."""
    places = numbers
    if raw.numbers is not None:
        by_number = {int(number): place for place, number in enumerate(raw.numbers)}
        places = np.array([by_number.get(int(n), -1) for n in numbers], dtype=np.int64)
    order = np.argsort(places, kind="stable")
    places = places[order]
    doubles = np.flatnonzero(np.diff(places) == 0)
    if places[0] < 0 or len(doubles):
        problem = "not among the frames" if places[0] < 0 else "there twice"
        wrong = order[0] if places[0] < 0 else order[doubles[0]]
        raise refused(
            path,
            "probe_position_indexes",
            f"has frame {numbers[wrong]}, which is {problem}",
            "one position a frame",
            "give the frames that the product was made from",
        )
    return places, order
