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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.files import not_a_file
from ptycho_tasks.raw_scan import (
    Array,
    Given,
    Keyed,
    RawScan,
    check_stack,
    finite_column,
    refused,
)

JOULES_PER_EV = 1.602176634e-19
METRE_EV = 1.2398419843320026e-06
"""Wavelength in metres times photon energy in eV: Planck's constant times speed of light."""

_SOURCE = "entry_1/instrument_1/source_1"
_DETECTOR = "entry_1/instrument_1/detector_1"
_CXI_FRAMES = ("entry_1/data_1/data", f"{_DETECTOR}/data")
_OTHER_FRAMES = ("entry/data/data", "exchange/data", "patterns")
"""Where Ptychodus' readers find frames in files that hold nothing else of use."""
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
_DAMAGE = (OSError, RuntimeError)
"""How h5py reports bytes that make no sense to HDF5."""
_HIGHEST_ENERGY_J = 1e-11
"""Some 60 MeV. A larger number was not written in joules."""


def is_hdf5(path: Path) -> bool:
    """Whether a file starts like HDF5."""
    return bool(h5py.is_hdf5(path))


@contextmanager
def open_hdf5_scan(path: Path, given: Given, *, with_product: bool) -> Iterator[RawScan]:
    """The arrays of a CXI file, or only its frames where a product gives the rest.

    Raises:
        ScanError: the file cannot be read, or lacks what a scan needs.
    """
    with _opened(path) as file:
        frames = _find(file, path, _CXI_FRAMES + (_OTHER_FRAMES if with_product else ()))
        if frames is None:
            raise _without_frames(file, path)
        check_stack(frames)
        raw = RawScan(path, frames, holds_counts=True)
        _add_cxi_metadata(raw, file, given)
        if not with_product:
            _add_cxi_positions(raw, file)
            _add_cxi_probe(raw, file)
        if _dataset(file, _MASK) is not None:
            raw.note(f"{_MASK}: ignored; masked pixels count as measured")
        yield raw


def apply_product(raw: RawScan, path: Path, given: Given) -> None:
    """Take positions, probe, object and metadata of a scan from a Ptychodus product.

    Raises:
        ScanError: the product cannot be read, or does not belong to the frames.
    """
    with _opened(path) as file:
        product_object = _needed(file, path, "object", "(L, H, W) complex64")
        raw.pixel_size_m = _product_pixel(product_object, path)
        raw.object = _product_object(raw, product_object, path)
        raw.probe = _product_probe(raw, file, path)
        _place_by_product(raw, file, path, product_object)
        found = {
            name: _attribute(file, path, name)
            for name in (
                "photon_energy_eV",
                "probe_energy_eV",
                "detector_object_distance_m",
                "exposure_time_s",
            )
        }
    # The caller's word goes before the product's, and that before the frames' own file's.
    energy_ev = found["photon_energy_eV"] or found["probe_energy_eV"]
    raw.energy_ev = given.energy_ev or energy_ev or raw.energy_ev
    raw.distance_m = given.distance_m or found["detector_object_distance_m"] or raw.distance_m
    raw.exposure_s = found["exposure_time_s"] or raw.exposure_s
    if given.pixel_size_m:
        raw.note(f"pixel_size_m: ignored, the pixel of the product {path.name} is taken")
    raw.note(f"positions, probe and object taken from the product {path.name}")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    # Detectors compress with filters that h5py knows only after this import.
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")
    problem = not_a_file(path)
    if problem:
        raise ScanError(f"{path}: {problem}; give the HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise ScanError(f"{path}: no such file; check the path") from None
    except _DAMAGE as error:
        raise ScanError(
            f"{path}: not a complete HDF5 file: {' '.join(str(error).split())}; it may be "
            "truncated, copy or make it again"
        ) from error


def _dataset(file: h5py.File, key: str) -> h5py.Dataset | None:
    """A dataset; None where there is none, a link to nowhere, or a type unknown to numpy."""
    try:
        item = file.get(key)
        readable = isinstance(item, h5py.Dataset) and item.dtype is not None
    except (KeyError, ValueError, *_DAMAGE):
        return None
    return item if readable else None


def _find(file: h5py.File, path: Path, keys: Sequence[str]) -> Keyed | None:
    for key in keys:
        dataset = _dataset(file, key)
        if dataset is not None:
            return Keyed(path, key, _mapped(dataset))
    return None


def _needed(file: h5py.File, path: Path, key: str, expected: str) -> h5py.Dataset:
    dataset = _dataset(file, key)
    if dataset is None:
        raise refused(path, key, "is missing or damaged", expected, "add it, or give another file")
    return dataset


def _mapped(dataset: h5py.Dataset) -> Array:
    """A memory map of a dataset that lies in one piece in its file, else the dataset."""
    path = dataset.file.filename
    offset = dataset.id.get_offset()  # None where chunked, virtual or in another file
    mappable = (
        offset is not None
        and dataset.dtype.kind in "fiu"
        # Mapped past the end of the file, it would end the process with a bus error.
        and offset + dataset.nbytes <= Path(path).stat().st_size
    )
    array: Array = (
        np.memmap(path, dataset.dtype, "r", offset, dataset.shape) if mappable else dataset
    )
    return array


def _without_frames(file: h5py.File, path: Path) -> ScanError:
    if _dataset(file, "probe_position_x_m") is not None:
        return ScanError(
            f"{path}: a Ptychodus product, which holds no frames; give the frames in source.file "
            "and this file in source.product"
        )
    return refused(
        path,
        _CXI_FRAMES[0],
        f"and {_CXI_FRAMES[1]!r} are missing or damaged",
        "frames (M, N, N)",
        "give a CXI file, or the product that belongs to the frames",
    )


def _add_cxi_metadata(raw: RawScan, file: h5py.File, given: Given) -> None:
    energy_j = _number(file, raw.path, f"{_SOURCE}/energy")
    if energy_j > _HIGHEST_ENERGY_J and not given.energy_ev:
        raise refused(
            raw.path,
            f"{_SOURCE}/energy",
            f"is {energy_j:g}",
            "the photon energy in joules",
            "set energy_ev",
        )
    raw.energy_ev = given.energy_ev or energy_j / JOULES_PER_EV
    raw.distance_m = given.distance_m or abs(_number(file, raw.path, f"{_DETECTOR}/distance"))
    raw.exposure_s = _number(file, raw.path, _EXPOSURE)
    raw.pixel_size_m = given.pixel_size_m


def _number(file: h5py.File, path: Path, key: str) -> float:
    """A scalar, or the common value of an array; zero where there is none."""
    dataset = _dataset(file, key)
    if dataset is None:
        return 0.0
    values = np.ravel(dataset[()]) if dataset.dtype.kind in "fiu" else np.empty(0)
    if not len(values) or not np.isfinite(values).all() or np.ptp(values) > 1e-6 * abs(values[0]):
        raise refused(
            path,
            key,
            f"is {dataset.dtype} of shape {dataset.shape}, or varies",
            "one finite number",
            "correct the file",
        )
    return float(values[0])


def _attribute(item: h5py.HLObject, path: Path, name: str) -> float:
    """An attribute that is one number; zero where there is none."""
    try:
        values = np.ravel(item.attrs.get(name, 0.0))
    except ValueError:  # of a type that numpy has no name for
        values = np.empty(0)
    if values.dtype.kind not in "fiu" or len(values) != 1 or not np.isfinite(values[0]):
        raise refused(
            path,
            name,
            f"is an attribute of {item.name} without a usable value",
            "one finite number",
            "write the product again",
        )
    return float(values[0])


def _add_cxi_positions(raw: RawScan, file: h5py.File) -> None:
    translation = _find(file, raw.path, _TRANSLATIONS)
    if translation is None:
        raise refused(
            raw.path,
            _TRANSLATIONS[0],
            f"and {_TRANSLATIONS[1]!r} are missing or damaged",
            "(M, 3) or (M, 2) metres",
            "add them, or give a product",
        )
    x_m, y_m = _translation_columns(raw, translation)
    # In either order of the axes, the middle one is a side of the detector.
    size = raw.frames.array.shape[1]
    raw.pixel_size_m = raw.pixel_size_m or _far_field_pixel(raw, file, size)
    height, width = raw.pixel_size_m
    # The smallest position puts its patch into the corner of the object grid.
    x_px = (x_m - x_m.min(initial=np.inf)) / width + size // 2
    y_px = (y_m - y_m.min(initial=np.inf)) / height + size // 2
    raw.x = Keyed(raw.path, translation.key, x_px)
    raw.y = Keyed(raw.path, translation.key, y_px)
    raw.note(
        f"{translation.key}: metres taken as x (right) and y (down) of the beam on the object, "
        f"in pixels of {width:.6g} m x {height:.6g} m"
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


def _far_field_pixel(raw: RawScan, file: h5py.File, size: int) -> tuple[float, float]:
    """(height, width) of the object pixel: wavelength times distance over detector width."""
    pixels = {axis: f"{_DETECTOR}/{axis}_pixel_size" for axis in "yx"}
    found = {key: _number(file, raw.path, key) for key in pixels.values()}
    found[f"{_SOURCE}/energy"] = raw.energy_ev
    found[f"{_DETECTOR}/distance"] = raw.distance_m
    for key, value in found.items():
        if value <= 0:
            raise refused(
                raw.path,
                key,
                "is missing or not positive",
                "energy (J), distance (m) and pixel size (m), from which the object pixel follows",
                "add it, or set energy_ev, distance_m or pixel_size_m",
            )
    scale = METRE_EV / raw.energy_ev * raw.distance_m / size
    return scale / found[pixels["y"]], scale / found[pixels["x"]]


def _add_cxi_probe(raw: RawScan, file: h5py.File) -> None:
    for key in _ILLUMINATIONS:
        dataset = _dataset(file, key)
        # A real array is an intensity, from which no probe follows.
        if dataset is not None and dataset.dtype.kind == "c":
            raw.probe = Keyed(raw.path, key, _modes(raw, key, dataset))
            return
    raise refused(
        raw.path,
        _ILLUMINATIONS[0],
        "is missing or damaged",
        "a probe, (N, N) or (P, N, N) complex",
        "add it, or give a Ptychodus product with one in source.product",
    )


def _modes(raw: RawScan, key: str, dataset: h5py.Dataset) -> NDArray[Any]:
    """(N, N) or (P, N, N) of a probe that may have an axis of variations before that."""
    array: NDArray[Any] = dataset[()]
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


def _product_probe(raw: RawScan, file: h5py.File, path: Path) -> Keyed:
    dataset = _needed(file, path, "probe", "(C, P, N, N) complex64")
    return Keyed(path, "probe", _modes(raw, "probe", dataset))


def _place_by_product(
    raw: RawScan, file: h5py.File, path: Path, product_object: h5py.Dataset
) -> None:
    numbers, x_m, y_m = (
        finite_column(Keyed(path, key, _needed(file, path, key, expected)))
        for key, expected in (
            ("probe_position_indexes", "(M,) frame numbers"),
            ("probe_position_x_m", "(M,) metres"),
            ("probe_position_y_m", "(M,) metres"),
        )
    )
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
    frames, order = _frames_of(raw, path, numbers.astype(np.int64))
    raw.rows = frames
    raw.x = Keyed(path, "probe_position_x_m", x_px[order])
    raw.y = Keyed(path, "probe_position_y_m", y_px[order])


def _frames_of(
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
