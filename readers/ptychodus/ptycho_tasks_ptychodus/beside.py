"""A probe and a mask in files of their own that Ptychodus reads, and ptycho-tasks does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.reader import Keyed, RawScan, Reading, has_hdf5_signature, list_hdf5_names
from ptycho_tasks.scans.raw_scan import first_variation
from ptycho_tasks_ptychodus.formats import BAD_PIXEL_LIST, MATLAB_PROBES, VALID_PIXELS
from ptycho_tasks_ptychodus.frames import Window
from ptycho_tasks_ptychodus.library import find_plugin
from ptycho_tasks_ptychodus.opening import Opening
from ptycho_tasks_ptychodus.watch import Watch

_VALID = "valid_pixel_mask"


def find_probe(reading: Reading) -> Path | None:
    """The file of the probe, if it is MATLAB's."""
    is_ours = isinstance(reading.probe, Path) and reading.probe.suffix.lower() == ".mat"
    return reading.probe if is_ours and isinstance(reading.probe, Path) else None


def find_mask(reading: Reading) -> Path | None:
    """The file of the mask, if it lists pixels in JSON, or holds valid ones of APS 12-ID-E."""
    path = Path(reading.bad_pixels)
    if path.suffix.lower() == ".json":
        return path
    is_hdf5 = path.suffix.lower() in (".h5", ".hdf5") and path.is_file()
    return path if is_hdf5 and _VALID in (list_hdf5_names(path) or ()) else None


def matlab_reader(path: Path) -> str:
    """Ptychodus' reader of a MATLAB file, by what it is."""
    return MATLAB_PROBES[0 if has_hdf5_signature(path) else 1]


def take_probe(raw: RawScan, reading: Reading, watch: Watch) -> None:
    """The probe of a MATLAB file, if that is where it is.

    Raises:
        ScanError: the file holds none.
    """
    path = find_probe(reading)
    if path is None:
        return
    opening = Opening(path, matlab_reader(path), watch)
    with opening.read():
        probe = find_plugin("probe", opening.reader).strategy.read(path).get_array()
    raw.probe = Keyed(path, "probe", first_variation(raw, "probe", np.asarray(probe)))
    raw.note(f"probe taken from {path.name}")


def read_mask(reading: Reading, window: Window, watch: Watch) -> Keyed | None:
    """The part of a mask that a window of the detector takes, where a file has one for Ptychodus.

    Raises:
        ScanError: the file holds none, or one of another detector.
    """
    path = find_mask(reading)
    if path is None:
        return None
    name = BAD_PIXEL_LIST if path.suffix.lower() == ".json" else VALID_PIXELS
    with Opening(path, name, watch).read():
        mask: NDArray[Any] = np.asarray(find_plugin("bad_pixels", name).strategy.read(path))
    if mask.shape != window.frame:
        raise ScanError(
            f"{path}: a mask of {mask.shape[0]} x {mask.shape[1]} pixels for frames of "
            f"{window.frame[0]} x {window.frame[1]}; give that of this detector in "
            "source.bad_pixels"
        )
    return Keyed(path, reading.bad_pixels, window.cut_mask(mask))
