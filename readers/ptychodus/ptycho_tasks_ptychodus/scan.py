"""A facility's scan as Ptychodus' readers give it.

Axis letters:  M frames,  K frames with a position,  N side of the window,  P probe modes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ptycho_tasks.errors import ScanError
from ptycho_tasks.reader import Keyed, RawScan, Reading
from ptycho_tasks.scans.raw_scan import METRE_EV, WITHOUT_PROBE, first_variation
from ptycho_tasks_ptychodus.beside import (
    find_mask,
    find_probe,
    matlab_reader,
    read_mask,
    take_probe,
)
from ptycho_tasks_ptychodus.formats import ANY_POSITIONS, Format
from ptycho_tasks_ptychodus.frames import Stack, find_window
from ptycho_tasks_ptychodus.library import find_plugin, has_plugin, list_suffixes
from ptycho_tasks_ptychodus.opening import Opening
from ptycho_tasks_ptychodus.positions import Places, match_positions
from ptycho_tasks_ptychodus.watch import Watch


def read_facility_scan(
    form: Format, path: Path, positions: Path | None, reading: Reading
) -> RawScan:
    """Frames, and unless a product gives them positions and a probe.

    Args:
        form: of the files.
        path: the file of frames, or one of a series.
        positions: the file of positions; None where they stand in that of the frames.
        reading: what the caller says.

    Raises:
        ScanError: a file cannot be read, or something is missing in it.
        ReaderError: Ptychodus, or what it needs, is not installed.
    """
    beside = (positions, find_probe(reading), find_mask(reading))
    watch = Watch([path, *(file for file in beside if file)], reading.follow)
    opening = Opening(path, form.diffraction, watch)
    raw = _read_frames(form, opening, reading)
    if not reading.has_product and (positions is not None or reading.needs_positions):
        name = _positions_reader(form, path, positions)
        of_positions = Opening(positions or path, name, watch)
        _place(raw, form, of_positions)
        if reading.needs_probe:
            _take_probe(raw, of_positions)
        raw.doubts += of_positions.warnings
    take_probe(raw, reading, watch)
    raw.doubts += opening.warnings
    return raw


def _read_frames(form: Format, opening: Opening, reading: Reading) -> RawScan:
    """Frames, their numbers, and what their file says of detector and beam."""
    plugin = find_plugin("diffraction", opening.reader)
    with opening.read():
        dataset = plugin.strategy.read(opening.path)
        metadata = dataset.get_metadata()
        window = find_window(metadata, reading)
        bad = np.asarray(dataset.get_bad_pixels())
    stack = Stack(opening, dataset, window)
    frames = Keyed(opening.path, opening.reader, stack)
    raw = RawScan(opening.path, frames, holds_counts=form.holds_counts, frame_axis="first")
    raw.files = opening.watch.stamps
    raw.numbers = stack.list_numbers()
    raw.bad_pixels = read_mask(reading, window, opening.watch)
    if raw.bad_pixels is None and bad.any():
        raw.bad_pixels = Keyed(opening.path, "bad pixels", window.cut_mask(bad))
    if not window.is_whole:
        raw.note(f"{raw.frames.key}: {window.describe()}")
    _describe_beam(raw, metadata, reading)
    raw.grid = window.height
    raw.pixel_size_m = reading.pixel_size_m or _pixel(metadata, raw)
    return raw


def _describe_beam(raw: RawScan, metadata: Any, reading: Reading) -> None:
    raw.energy_ev = reading.energy_ev or float(metadata.photon_energy_eV or 0.0)
    raw.distance_m = reading.distance_m or abs(float(metadata.detector_distance_m or 0.0))
    raw.exposure_s = float(metadata.exposure_time_s or 0.0)


def _pixel(metadata: Any, raw: RawScan) -> tuple[float, float] | None:
    """(height, width) in metres of an object pixel: wavelength times distance over the width of
    the grid; None where something is not known."""
    pixel = metadata.detector_pixel_geometry
    if pixel is None or not raw.energy_ev or not raw.distance_m:
        return None
    assert raw.grid is not None
    scale = METRE_EV / raw.energy_ev * raw.distance_m / raw.grid
    return scale / float(pixel.height_m), scale / float(pixel.width_m)


def _positions_reader(form: Format, path: Path, positions: Path | None) -> str:
    """Ptychodus' reader of positions that goes with the ending of the file."""
    own = [name for name in form.positions if has_plugin("probe_position", name)]
    names: list[str] = [*own, *(ANY_POSITIONS if positions else ())]
    file = positions or path
    if file.suffix.lower() == ".mat" and positions and file.is_file():
        return matlab_reader(file)
    for name in names:
        if file.suffix.lower() in list_suffixes(find_plugin("probe_position", name)):
            return name
    endings = [end for name in own for end in list_suffixes(find_plugin("probe_position", name))]
    if positions is None:
        raise ScanError(
            f"{path}: frames of {form.name} without positions; name their file "
            f"({', '.join(dict.fromkeys(endings))}) with source.positions, or set source.product"
        )
    raise ScanError(
        f"{positions}: no reader of positions is for this ending; expected one of "
        f"{', '.join(dict.fromkeys(endings))}, .csv, .txt, .mda, .mat or a product"
    )


def _place(raw: RawScan, form: Format, opening: Opening) -> None:
    """Match positions to frames by number, in pixels of the object."""
    found = _match(raw, form, opening)
    if raw.pixel_size_m is None:
        raise ScanError(
            f"{raw.path}: positions are in metres, and nothing gives the size of an object pixel; "
            "set source.energy_ev and source.distance_m where the file lacks them, or "
            "source.pixel_size_m"
        )
    raw.rows = found.rows
    (height, width), half = raw.pixel_size_m, raw.frames.array.shape[1] // 2
    # The smallest position puts its patch into the corner of the object grid.
    raw.x = Keyed(opening.path, "x", (found.x_m - found.x_m.min()) / width + half)
    raw.y = Keyed(opening.path, "y", (found.y_m - found.y_m.min()) / height + half)
    raw.positions_are_pixels = True


def _match(raw: RawScan, form: Format, opening: Opening) -> Places:
    plugin = find_plugin("probe_position", opening.reader)
    with opening.read():
        positions = plugin.strategy.read(opening.path)
        numbers = np.asarray(positions.get_indexes(), np.int64)
        x_m = np.asarray(positions.get_coordinates_x_m(), np.float64)
        y_m = np.asarray(positions.get_coordinates_y_m(), np.float64)
    if not len(numbers):
        why = f" ({opening.warnings[-1]})" if opening.warnings else ""
        raise ScanError(
            f"{opening.path}: Ptychodus' reader `{opening.reader}` finds no positions{why}; give "
            "the file that holds them"
        )
    if form.counts_rows:
        numbers = np.unique(numbers, return_inverse=True)[1]
    frames = raw.numbers
    assert frames is not None
    found = match_positions(frames, numbers, x_m, y_m)
    lacking = len(frames) - len(found.rows)
    if not found.is_plausible(len(frames)):
        raise ScanError(
            f"{opening.path}: {lacking} of {len(frames)} frames have no position and "
            f"{found.spare} positions no frame: frames are numbered {frames.min()} to "
            f"{frames.max()}, positions {numbers.min()} to {numbers.max()}; give those of this scan"
        )
    return found


def _take_probe(raw: RawScan, opening: Opening) -> None:
    """The probe of the file of positions, where the format has one."""
    if not has_plugin("probe", opening.reader):
        raise ScanError(
            f"{raw.path}: Ptychodus' `{opening.reader}` gives no probe; {WITHOUT_PROBE}"
        )
    with opening.read():
        probe = find_plugin("probe", opening.reader).strategy.read(opening.path).get_array()
    raw.probe = Keyed(opening.path, "probe", first_variation(raw, "probe", np.asarray(probe)))
