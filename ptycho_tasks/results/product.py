"""A reconstruction as a Ptychodus product: HDF5 that the field's tools open.

Ptychodus has no origin: positions, in metres, and the object's centre, in metres, share one
frame of reference. Here that is the scan's object grid times the pixel size, so that

    index in `object` = (position - centre) / pixel size + length / 2

along each axis, in this project's sense of a position (see `scans.hdf5_scan` for the half pixel
between the two). What Ptychodus has no place for goes in the group `ptycho_tasks`.

Axis letters:  M frames,  N patch side,  P probe modes,  E epochs,  H, W object grid.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import SEEN_LEVEL
from ptycho_tasks.errors import ScanError
from ptycho_tasks.physics.forward import patch_corners
from ptycho_tasks.results.nexus import add_views

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

    from ptycho_tasks.backend import Reconstruction
    from ptycho_tasks.scan import ScanData


GROUP = "ptycho_tasks"
_ATTRIBUTES = {
    "name": "name",
    "comments": "comments",
    "detector_object_distance_m": "detector_object_distance_m",
    "probe_energy_eV": "photon_energy_eV",
    "exposure_time_s": "exposure_time_s",
    "probe_photon_count": "probe_photon_count",
}
"""What the root says, and what Ptychodus' NPZ products call it."""
_DATASETS = (
    "object",
    "object_layer_spacing_m",
    "probe",
    "probe_position_indexes",
    "probe_position_x_m",
    "probe_position_y_m",
    "loss_values",
    "loss_epochs",
)
_PIXEL = ("pixel_height_m", "pixel_width_m")
_GEOMETRY = {"object": ("center_y_m", "center_x_m", *_PIXEL), "probe": _PIXEL}
"""Attributes of datasets."""


def product_bytes(
    reconstruction: Reconstruction,
    scan: ScanData,
    *,
    residual: NDArray[np.float32],
    provenance: Mapping[str, Any],
) -> bytes:
    """A Ptychodus product as bytes; equal content gives equal bytes.

    The group `ptycho_tasks` holds

    - `overlap_count` (H, W) int32: how many frames' spots cover a pixel, see `overlap_count`;
    - `illumination` (H, W) float32: sum of |probe|^2 over all frames, counts;
    - `seen` (H, W) bool: see `Reconstruction.seen`; elsewhere the object is no result;
    - `residual` (M,) float32: how badly each frame is predicted, see `metrics.data_misfit`;
    - `origin` (2,) int64: (row, column) on the scan's object grid of the pixel object[0, 0];
    - `positions` (M, 2) float64: (y, x) on that grid, which metres would round;
    - `flux` (M,) float32, where it is known: light of each frame over the probe's;
    - `background` (N, N) float32, where it is known: counts of every frame that are not the probe's
      light, zero frequency at N//2;
    - `provenance`: JSON text with sorted keys;
    - attribute `pixel_size_known`: false where one pixel is written as one metre;
    - `image`, `probe`, `light`, `misfit`, `losses`: views of all this, see `nexus.add_views`.

    Args:
        reconstruction: what a backend gave.
        scan: what it was made from; gives name, pixel size, energy, distance and exposure, the
            latter three zero where unknown.
        residual: (M,) float32.
        provenance: JSON-able; what decided the result.

    Raises:
        ScanError: a patch reaches outside the object.
        ValueError: `provenance` holds NaN or Inf.
    """
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=("v108", "v108")) as file:
        _write_metadata(file, reconstruction, scan)
        _write_images(file, reconstruction, scan.pixel_size_m or (1.0, 1.0))
        _write_positions(file, reconstruction, scan.pixel_size_m or (1.0, 1.0))
        _write_losses(file, reconstruction)
        group = file.create_group(GROUP)
        group.attrs["pixel_size_known"] = scan.pixel_size_m is not None
        group["overlap_count"] = overlap_count(reconstruction)
        group["illumination"] = np.asarray(reconstruction.illumination, dtype=np.float32)
        group["seen"] = reconstruction.seen
        group["residual"] = np.asarray(residual, dtype=np.float32)
        group["residual"].attrs["meaning"] = (
            "sum |predicted - measured amplitude| of a frame over the mean frame's measured sum: "
            "the mean of all is the R-factor"
        )
        group["origin"] = np.asarray(reconstruction.origin, dtype=np.int64)
        group["positions"] = np.asarray(reconstruction.positions, dtype=np.float64)
        if reconstruction.flux is not None:
            group["flux"] = np.asarray(reconstruction.flux, dtype=np.float32)
        if reconstruction.background is not None:
            group["background"] = np.asarray(reconstruction.background, dtype=np.float32)
        group["provenance"] = json.dumps(provenance, sort_keys=True, allow_nan=False)
        add_views(group, reconstruction, scan.pixel_size_m)
    return stream.getvalue()


def read_product(path: Path) -> Reconstruction:
    """The reconstruction in a product that `product_bytes` made.

    Raises:
        ScanError: the file is missing, damaged, or of another program.
    """
    from ptycho_tasks.backend import Reconstruction

    with _open_product(path) as file:
        row, column = (int(side) for side in _plain(file, f"{GROUP}/origin"))
        return Reconstruction(
            object=_plain(file, "object")[0],
            origin=(row, column),
            probe=_plain(file, "probe")[0],
            positions=_plain(file, f"{GROUP}/positions"),
            losses=_plain(file, "loss_values").tolist(),
            flux=_plain(file, f"{GROUP}/flux") if f"{GROUP}/flux" in file else None,
            background=_plain(file, place) if (place := f"{GROUP}/background") in file else None,
        )


@dataclass(frozen=True)
class ProductDetails:
    """What a product holds, for whoever looks at it; see `product_bytes` for each array."""

    object: NDArray[np.complex64]
    """(H, W)."""
    seen: NDArray[np.bool_]
    """(H, W)."""
    probe: NDArray[np.complex64]
    """(P, N, N)."""
    positions: NDArray[np.float64]
    """(M, 2)."""
    origin: tuple[int, int]
    residual: NDArray[np.float32]
    """(M,)."""
    losses: NDArray[np.float64]
    """(E,)."""
    pixel_size_m: tuple[float, float] | None


def read_product_details(path: Path) -> ProductDetails:
    """All that is worth a look in a product that `product_bytes` made.

    Raises:
        ScanError: the file is missing, damaged, of an older version or of another program.
    """
    with _open_product(path) as file:
        row, column = (int(side) for side in _plain(file, f"{GROUP}/origin"))
        is_known = bool(_attribute(file, GROUP, "pixel_size_known"))
        height, width = (float(_attribute(file, "object", name)) for name in _PIXEL)
        details = ProductDetails(
            object=_plain(file, "object")[0],
            seen=_plain(file, f"{GROUP}/seen").astype(bool),
            probe=_plain(file, "probe")[0],
            positions=_plain(file, f"{GROUP}/positions"),
            origin=(row, column),
            residual=_plain(file, f"{GROUP}/residual"),
            losses=_plain(file, "loss_values"),
            pixel_size_m=(height, width) if is_known else None,
        )
        _check_shapes(details)
        return details


def _check_shapes(details: ProductDetails) -> None:
    """Refuse arrays that do not belong together.

    Raises:
        ValueError: names them.
    """
    frames = len(details.positions)
    if details.object.ndim != 2 or details.seen.shape != details.object.shape:
        raise ValueError("object and ptycho_tasks/seen differ in shape")
    if details.probe.ndim != 3 or details.probe.shape[1] != details.probe.shape[2]:
        raise ValueError("probe is no stack of square modes")
    if 0 in (*details.object.shape, *details.probe.shape, frames):
        raise ValueError("object, probe or ptycho_tasks/positions is empty")
    if not all(0 < side < math.inf for side in details.pixel_size_m or ()):
        raise ValueError("the size of a pixel is no length")
    if details.positions.shape != (frames, 2) or details.residual.shape != (frames,):
        raise ValueError("ptycho_tasks/positions and ptycho_tasks/residual differ in length")


@dataclass(frozen=True)
class ProductArrays:
    """What a product holds, without its place in the file."""

    arrays: Mapping[str, NDArray[Any]]
    """All that Ptychodus reads of it, under the names of its NPZ products: `object_center_x_m`,
    say; numbers and texts are arrays without axes."""
    seen: NDArray[np.bool_]
    """(H, W), see `Reconstruction.seen`."""
    is_pixel_size_known: bool
    """Whether lengths are metres; else they are pixels."""


def read_product_arrays(path: Path) -> ProductArrays:
    """All that other formats can hold of a product that `product_bytes` made.

    Raises:
        ScanError: the file is missing, damaged, or of another program.
    """
    with _open_product(path) as file:
        arrays = {new: np.array(_attribute(file, "/", name)) for name, new in _ATTRIBUTES.items()}
        arrays |= {name: _plain(file, name) for name in _DATASETS}
        for name, attributes in _GEOMETRY.items():
            values = {key: np.array(_attribute(file, name, key)) for key in attributes}
            arrays |= {f"{name}_{key}": value for key, value in values.items()}
        known = bool(_attribute(file, GROUP, "pixel_size_known"))
        return ProductArrays(arrays, _plain(file, f"{GROUP}/seen"), known)


@contextmanager
def _open_product(path: Path) -> Iterator[h5py.File]:
    """The open file of a product, in a block that explains what is wrong with it."""
    import h5py

    try:
        with h5py.File(path) as file:
            if GROUP not in file:
                raise LookupError(f"it lacks the group {GROUP}")
            yield file
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise ScanError(
            f"{path}: is no reconstruction of ptycho-tasks ({_find_reason(error)}); make it again"
        ) from error


def _find_reason(error: Exception) -> str:
    """What is wrong with a file, where HDF5 speaks of its own calls in other words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "it must not be read"
    if isinstance(error, OSError):
        return "it is damaged, or is no HDF5 file"
    return " ".join(str(error).split())


def _attribute(file: h5py.File, owner: str, name: str) -> Any:
    """An attribute of the file (`/`), of a group or of a dataset.

    Raises:
        LookupError: it is not there.
    """
    if owner != "/" and owner not in file:
        raise LookupError(f"{owner} is missing")
    if name not in file[owner].attrs:
        raise LookupError(f"the attribute {name} of {owner} is missing")
    return file[owner].attrs[name]


def _plain(file: h5py.File, name: str) -> NDArray[Any]:
    """A dataset of numbers as `product_bytes` writes it: in the file itself, and whole.

    Raises:
        ValueError: it is anything else; another file would be read, or memory would end.
        LookupError: it is not there.
    """
    import h5py

    parent, _, last = name.rpartition("/")
    group = file[parent] if parent else file
    for owner, key in ((file, parent or last), (group, last)):
        if key not in owner:
            raise LookupError(f"{name} is missing")
        if not isinstance(owner.get(key, getlink=True), h5py.HardLink):
            raise ValueError(f"{name}: is a link")
    dataset = group[last]
    plain = (
        isinstance(dataset, h5py.Dataset)
        and dataset.shape is not None
        and dataset.dtype.kind in "biufc"
        and not (dataset.external or dataset.is_virtual or dataset.chunks)
        and dataset.nbytes <= dataset.id.get_storage_size()
    )
    if not plain:
        raise ValueError(f"{name}: is not an array of numbers that the file holds")
    return np.asarray(dataset[()])


def overlap_count(reconstruction: Reconstruction) -> NDArray[np.int32]:
    """How many frames truly light a pixel: |probe|^2 is at least 1 % of its maximum there.

    A measured probe is zero nowhere, and what its faint tails alone touched is noise.

    Returns:
        (H, W) int32, like the object; sub-pixel shifts of the probe are neglected.

    Raises:
        ScanError: a patch reaches outside the object.
    """
    power = np.sum(np.abs(reconstruction.probe) ** 2, axis=0)
    spot = ((power > 0) & (power >= SEEN_LEVEL * power.max())).astype(np.int32)
    size, shape = spot.shape[-1], reconstruction.object.shape
    corners, _ = patch_corners(reconstruction.positions, size, reconstruction.origin, shape)
    count = np.zeros(shape, dtype=np.int32)
    for row, column in corners:
        count[row : row + size, column : column + size] += spot
    return count


def _write_metadata(file: h5py.File, reconstruction: Reconstruction, scan: ScanData) -> None:
    comments = "Made by ptycho-tasks."
    if scan.pixel_size_m is None:
        comments += " Pixel size unknown: lengths are in object pixels, 1 pixel written as 1 m."
    flux = np.sum(np.abs(reconstruction.probe) ** 2, dtype=np.float64)
    file.attrs["name"] = scan.name
    file.attrs["comments"] = comments
    file.attrs["detector_object_distance_m"] = np.float64(scan.distance_m)
    file.attrs["probe_energy_eV"] = np.float64(scan.energy_ev)
    file.attrs["exposure_time_s"] = np.float64(scan.exposure_s)
    file.attrs["probe_photon_count"] = flux


def _write_images(
    file: h5py.File, reconstruction: Reconstruction, pixel_m: tuple[float, float]
) -> None:
    # One object layer; one probe variation of P incoherent modes.
    image = file.create_dataset("object", data=reconstruction.object[None].astype(np.complex64))
    probe = file.create_dataset("probe", data=reconstruction.probe[None].astype(np.complex64))
    for dataset in (image, probe):
        dataset.attrs["pixel_height_m"], dataset.attrs["pixel_width_m"] = map(np.float64, pixel_m)
    centre_px = np.asarray(reconstruction.origin) + np.asarray(reconstruction.object.shape) / 2
    image.attrs["center_y_m"], image.attrs["center_x_m"] = centre_px * pixel_m
    # Between layers, of which there is one.
    file["object_layer_spacing_m"] = np.empty(0, dtype=np.float64)


def _write_positions(
    file: h5py.File, reconstruction: Reconstruction, pixel_m: tuple[float, float]
) -> None:
    positions_m = np.asarray(reconstruction.positions, dtype=np.float64) * pixel_m
    file["probe_position_indexes"] = np.arange(len(positions_m), dtype=np.int64)
    file["probe_position_y_m"], file["probe_position_x_m"] = positions_m.T


def _write_losses(file: h5py.File, reconstruction: Reconstruction) -> None:
    losses = np.asarray(reconstruction.losses, dtype=np.float64)
    file["loss_values"] = losses
    file["loss_epochs"] = np.arange(len(losses), dtype=np.int64)
