"""Turn a scan as a file holds it into a `ScanData`.

Axis letters:  K frames taken,  N detector pixels along one side.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.amplitudes import check_brightness, leave_out_dark, read_amplitudes
from ptycho_tasks.scans.cropping import crop_scan
from ptycho_tasks.scans.frame_stack import FrameStack, are_counts, choose_axis, read_size
from ptycho_tasks.scans.illumination import estimate_probe, read_object, read_probe
from ptycho_tasks.scans.masking import leave_out_unlikely, settle_bad_pixels
from ptycho_tasks.scans.raw_positions import (
    check_places,
    choose_frames,
    leave_out_strays,
    pixels_a_unit,
    read_positions,
    read_scan_index,
    read_start_positions,
)
from ptycho_tasks.scans.raw_scan import RawScan, Reading
from ptycho_tasks.scans.shaping import orient


def convert_scan(raw: RawScan, reading: Reading) -> ScanData:
    """Check everything, cheap checks first, and convert to canonical order and dtypes.

    Raises:
        ScanError: anything breaks the raw-scan contract.
    """
    positions = read_positions(raw)
    axis = choose_axis(raw, reading.frame_axis, len(positions))
    window, scale = crop_scan(raw, axis, reading)
    size = read_size(raw, axis)
    factor = pixels_a_unit(raw, reading, scale)
    positions = positions * factor
    start = read_start_positions(raw, len(positions))
    start = None if start is None else orient(start * factor, reading.orientation, positions)
    positions = orient(positions, reading.orientation, positions)
    index = read_scan_index(raw, len(positions))
    keep = choose_frames(raw, index, reading.scan_index, len(positions))
    keep = leave_out_strays(raw, positions, keep, size, reading.stray_frames)
    check_places(raw, positions, keep, size, reading.units)
    stack, counts = FrameStack(raw.frames, axis, raw.rows), are_counts(raw, reading.measurement)
    masking = settle_bad_pixels(raw, stack, window, reading, are_counts=counts)
    estimates = reading.probe == "estimate"
    probe = np.zeros((1, size, size), np.complex64) if estimates else read_probe(raw, size)
    image = read_object(raw)
    clips = reading.negative_counts == "clip"
    diffraction, light = read_amplitudes(raw, stack, masking, are_counts=counts, clips=clips)
    diffraction = leave_out_unlikely(raw, diffraction, masking.found, reading.bad_pixels)
    keep = leave_out_dark(raw, stack, light, keep, reading.dark_frames)
    check_brightness(raw, light)
    scan = ScanData(
        positions=positions,
        probe=probe,
        is_probe_estimated=estimates or raw.is_probe_estimated,
        object=image,
        scan_index=index,
        start_positions=start,
        diffraction=diffraction,
        bad_pixels=masking.found.everywhere,
        pixel_size_m=raw.pixel_size_m,
        energy_ev=raw.energy_ev,
        distance_m=raw.distance_m,
        exposure_s=raw.exposure_s,
        name=raw.path.stem,
    )
    if len(keep) < scan.frame_count:
        scan = take_frames(scan, keep)
    if estimates:
        scan = replace(scan, probe=estimate_probe(scan.diffraction))
        raw.note("probe: estimated from the mean frame: in focus, centred")
    for line in masking.found.describe():
        raw.note(f"{raw.frames.key}: {line}")
    return replace(scan, notes=tuple(raw.notes), files=raw.files, doubts=tuple(raw.doubts))
