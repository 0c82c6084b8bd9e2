"""A reconstruction in the formats of other programs: CXI and NPZ as Ptychodus has them, and TIFF.

Axis letters:  M frames,  N patch side,  P probe modes,  H, W object grid.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.layout import RECONSTRUCTION
from ptycho_tasks.results.pictures import SOFTWARE, centred_phase
from ptycho_tasks.results.product import ProductArrays, read_product_arrays
from ptycho_tasks.scans.hdf5_values import JOULES_PER_EV
from ptycho_tasks.scans.npz import write_npz
from ptycho_tasks.system.files import find_file_problem, write_atomic

_CXI_VERSION = 160
_INSTRUMENT = "entry_1/instrument_1"
_TRANSLATION = "entry_1/sample_1/geometry_1/translation"
_EXTRAS = "entry_1/ptychodus"
"""Where Ptychodus keeps what CXI has no place for, under the names of its NPZ products."""
_TEXTS = {
    "entry_1/title": "name",
    "entry_1/sample_1/name": "name",
    "entry_1/experiment_description": "comments",
}
_IMAGES = {"image_1": ("probe", "coherent:incoherent:y:x"), "image_2": ("object", "layer:y:x")}
_EXTRA_NAMES = (
    "probe_position_indexes",
    "probe_pixel_width_m",
    "probe_pixel_height_m",
    "object_pixel_width_m",
    "object_pixel_height_m",
    "object_center_x_m",
    "object_center_y_m",
    "probe_photon_count",
    "exposure_time_s",
    "loss_epochs",
    "loss_values",
)


def export_product(path: Path, output: Path) -> None:
    """Write a reconstruction in the format that the suffix of `output` names.

    Args:
        path: `reconstruction.h5`, or the folder that holds it.
        output: .cxi or .npz, a product as Ptychodus writes them; .tif or .tiff, amplitude and
            phase as `tiff_bytes` has them. Equal content gives equal bytes.

    Raises:
        ConfigError: the suffix is none of these.
        ScanError: `path` is no reconstruction of ours.
        FileWriteError: `output` cannot be written; what was there is unchanged.
    """
    encode = find_format(output)
    write_atomic(output, encode(read_product_arrays(find_reconstruction(path))))


def find_reconstruction(path: Path) -> Path:
    """The file of a reconstruction, of which the folder may be given.

    Raises:
        ScanError: it is not there, or no file.
    """
    file = path / RECONSTRUCTION if path.is_dir() else path
    problem = find_file_problem(file)
    if problem or not file.exists():
        below = sorted(str(one.parent) for one in path.glob(f"*/{RECONSTRUCTION}"))
        advice = f"give one of {', '.join(below)}" if below else "give what `doit infer` made"
        raise ScanError(f"{file}: {problem or 'no such file'}; {advice}")
    return file


def find_format(output: Path) -> Callable[[ProductArrays], bytes]:
    """What makes the bytes of a file from a product.

    Raises:
        ConfigError: the suffix names no format.
    """
    encode = FORMATS.get(output.suffix.lower())
    if encode is None:
        raise ConfigError(f"{output}: unknown format; end it in one of {', '.join(FORMATS)}")
    return encode


def npz_bytes(product: ProductArrays) -> bytes:
    """Ptychodus' NPZ product."""
    stream = io.BytesIO()
    write_npz(stream, product.arrays)
    return stream.getvalue()


def cxi_bytes(product: ProductArrays) -> bytes:
    """A CXI file without frames: probe in `image_1`, object in `image_2`, positions in metres.

    What CXI has no place for stands where Ptychodus writes it.
    """
    import h5py

    arrays = product.arrays
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=("v108", "v108")) as file:
        file["cxi_version"] = _CXI_VERSION
        for key, name in _TEXTS.items():
            _put(file, key, str(arrays[name]))
        _put(file, f"{_INSTRUMENT}/source_1/energy", arrays["photon_energy_eV"] * JOULES_PER_EV)
        _put(file, f"{_INSTRUMENT}/detector_1/distance", arrays["detector_object_distance_m"])
        x, y = arrays["probe_position_x_m"], arrays["probe_position_y_m"]
        _put(file, _TRANSLATION, np.stack([x, y, np.zeros_like(x)], axis=1))
        _put(file, "entry_1/data_1/translation", h5py.SoftLink(f"/{_TRANSLATION}"))
        for image, (name, axes) in _IMAGES.items():
            _add_image(file.create_group(f"entry_1/{image}"), name, axes, arrays)
        _put(file, f"{_INSTRUMENT}/source_1/illumination", h5py.SoftLink("/entry_1/image_1/data"))
        _put(file, "entry_1/process_1/program", SOFTWARE)
        for name in _EXTRA_NAMES:
            _put(file, f"{_EXTRAS}/{name}", arrays[name])
    return stream.getvalue()


def _put(file: Any, path: str, value: Any) -> None:
    # Groups that HDF5 makes on the way to a dataset hold the time of their making, unlike these.
    folder, _, name = path.rpartition("/")
    file.require_group(folder)[name] = value


def _add_image(group: Any, name: str, axes: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    image = arrays[name]
    group["data"] = image
    group["data"].attrs["axes"] = axes
    group["data_type"] = "amplitude"
    group["data_space"] = "real"
    height, width = (arrays[f"{name}_pixel_{side}_m"] for side in ("height", "width"))
    group["image_size"] = np.array([width * image.shape[-1], height * image.shape[-2], 0.0])


def tiff_bytes(product: ProductArrays) -> bytes:
    """Amplitude and phase as two pages (H, W) of float32 that ImageJ opens as a stack.

    The phase, in rad, is that of `pictures.centred_phase`. Where nothing was seen both are NaN.
    Pixels of known size have it as ImageJ does, in micrometres.
    """
    from tifffile import imwrite

    arrays, seen = product.arrays, product.seen
    image = arrays["object"][0]
    pages = np.stack([np.abs(image), centred_phase(image, seen)]).astype(np.float32)
    pages[:, ~seen] = np.nan
    metadata: dict[str, Any] = {"axes": "ZYX", "Labels": ["amplitude", "phase (rad)"]}
    resolution = None
    if product.is_pixel_size_known:
        width, height = (float(arrays[f"object_pixel_{side}_m"]) for side in ("width", "height"))
        resolution = 1e-6 / width, 1e-6 / height
        metadata["unit"] = "um"
    stream = io.BytesIO()
    imwrite(stream, pages, imagej=True, resolution=resolution, metadata=metadata, software=SOFTWARE)
    return stream.getvalue()


FORMATS = {".cxi": cxi_bytes, ".npz": npz_bytes, ".tif": tiff_bytes, ".tiff": tiff_bytes}
"""Suffixes, and what makes the bytes of such a file."""
