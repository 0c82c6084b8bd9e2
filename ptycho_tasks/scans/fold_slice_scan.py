"""Frames `*_dp.hdf5` with parameters `*_para.hdf5`, of fold_slice, PtychoViT and PtychoFM.

`dp` (M, N, N) holds counts with the zero frequency in the centre. The parameters are either those
of a Ptychodus product, which may lack frame numbers, or fold_slice's: `ppX` and `ppY` (M,) metres,
taken as x to the right and y down as Ptychodus takes them, the wavelength `lambda` and the object
pixel `dx` in metres, and no probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.hdf5_values import (
    LENGTHS,
    find_array,
    map_frames,
    open_linked,
    read_number,
)
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.scans.product_scan import apply_product
from ptycho_tasks.scans.raw_scan import METRE_EV, WITHOUT_PROBE, Keyed, RawScan, Reading, refused

_FRAMES = "dp"


def find_parameters(path: Path) -> Path:
    """Where the parameters of `*_dp.hdf5` lie."""
    stem = path.stem.removesuffix(_FRAMES) + "para" if path.stem.endswith(_FRAMES) else "para"
    return path.with_name(f"{stem}{path.suffix}")


@contextmanager
def open_fold_slice_scan(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The frames of a file, with what the parameters beside it give.

    Raises:
        ScanError: a file cannot be read, or lacks what a scan needs.
    """
    with open_linked(path, reading) as file:
        found = map_frames(file, path, _FRAMES)
        if found is None:
            raise refused(path, _FRAMES, "is missing", "frames (M, N, N)", "give another file")
        raw = RawScan(path, found.frames, holds_counts=True, unwritten=found.unwritten)
        raw.note_files(path, file.stamps)
        if reading.needs_positions or reading.needs_probe:
            _add_parameters(raw, find_parameters(path), reading)
        yield raw


def _add_parameters(raw: RawScan, path: Path, reading: Reading) -> None:
    with open_linked(path, reading) as file:
        is_product = file.dataset("object") is not None
        if not is_product:
            _add_metadata(raw, file, reading)
            if reading.needs_positions:
                _add_positions(raw, file)
            if reading.needs_probe:
                raise ScanError(
                    f"{raw.path}: no probe in {path.name}, as fold_slice has it in another file; "
                    f"set source.probe to a file that holds one, or {WITHOUT_PROBE}"
                )
    if is_product:
        apply_product(raw, path, reading)


def _add_metadata(raw: RawScan, file: LinkedFiles, reading: Reading) -> None:
    wavelength = read_number(file, raw, "lambda", LENGTHS)
    raw.energy_ev = reading.energy_ev or (METRE_EV / wavelength if wavelength > 0 else 0.0)
    pixel = read_number(file, raw, "dx", LENGTHS)
    raw.distance_m = reading.distance_m
    raw.pixel_size_m = reading.pixel_size_m or ((pixel, pixel) if pixel > 0 else None)


def _add_positions(raw: RawScan, file: LinkedFiles) -> None:
    columns = [find_array(file, file.path, (key,)) for key in ("ppX", "ppY")]
    if any(one is None for one in columns):
        raise ScanError(
            f"{raw.path}: {file.path.name} holds neither ppX and ppY nor the object of a product; "
            "give the parameters that belong to the frames"
        )
    x, y = (Keyed(file.path, one.key, np.ravel(one.array[:])) for one in columns if one is not None)
    raw.x, raw.y, raw.unit_m = x, y, 1.0
    raw.note("ppX, ppY: taken as x (right) and y (down), in metres")
