"""The part of the detector that settings ask for, taken of a raw scan: frames, probe and mask.

Axis letters:  M, m frames,  H, W rows and columns of the detector,  n pixels along a side after
that,  P probe modes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ptycho_tasks.options import OrientationOptions
from ptycho_tasks.scans.frame_stack import are_counts
from ptycho_tasks.scans.illumination import read_complex
from ptycho_tasks.scans.raw_scan import RawScan, Reading
from ptycho_tasks.scans.shaping import ShapedFrames, Window, choose_window, find_centre


def crop_scan(raw: RawScan, axis: int, reading: Reading) -> tuple[Window | None, float]:
    """Take the part of each frame that is asked for, and of the probe what belongs to it.

    Returns:
        The part that was taken, None where that is all; and what positions in pixels are to be
        multiplied by.

    Raises:
        ScanError: the detector has no such part, or the probe cannot be read.
    """
    if reading.orientation != OrientationOptions():
        raw.leave_out_object("orientation moves positions on it")
    if reading.centre is None and reading.crop is None and reading.bin == 1:
        return None, 1.0
    window = _window(raw, axis, reading)
    if window is None:  # `read_size` says what is wrong
        return None, 1.0
    grid = raw.grid or _probe_side(raw, reading) or window.frame[0]
    if grid == window.size:  # as it is to be
        grid = window.side
    scale = window.side / grid
    if window.is_whole:
        return None, scale
    _cut(raw, axis, window, scale, reading)
    return window, scale


def _window(raw: RawScan, axis: int, reading: Reading) -> Window | None:
    """The part of the detector that is asked for; None where it cannot be told.

    Raises:
        ScanError: the detector has no such part.
    """
    shape = raw.frames.array.shape
    frame = (shape[1], shape[2]) if axis == 0 else (shape[0], shape[1])
    if reading.crop is None and (frame[0] != frame[1] or frame[0] % 2):
        return None
    try:
        window = choose_window(frame, _centre(raw, axis, reading), reading.crop, reading.bin)
        return replace(window, from_corner=reading.centre == "corner")
    except ValueError as error:
        raise raw.frames.refused(
            f"has frames of {frame[0]} x {frame[1]} pixels: {error}",
            "an even number of pixels after source.crop and source.bin, within the frames",
            "correct the setting",
        ) from error


def _cut(raw: RawScan, axis: int, window: Window, scale: float, reading: Reading) -> None:
    """Take a part of each frame, and what belongs to it of all else."""
    counts = are_counts(raw, reading.measurement)
    frames = ShapedFrames(raw.frames.array, axis, window, are_counts=counts)
    raw.frames = replace(raw.frames, array=frames)
    _cut_probe(raw, window)
    if scale != 1.0:
        raw.leave_out_object("crop changes its pixels")
        if raw.pixel_size_m is not None:
            height, width = raw.pixel_size_m
            raw.pixel_size_m = height / scale, width / scale
            grid = round(window.side / scale)
            raw.note(
                f"pixel_size_m: {width:.6g} m, of frames of {grid} x {grid} pixels, becomes "
                f"{width / scale:.6g} m"
            )
    y, x = window.corner
    side, (rows, columns) = window.side, window.frame
    binned = f", {window.bin} x {window.bin} pixels as one" if window.bin > 1 else ""
    binned += ", zero frequency moved from the corner to the middle" * window.from_corner
    raw.note(
        f"{raw.frames.key}: {side} x {side} of {rows} x {columns} pixels taken, from ({y}, "
        f"{x}){binned}"
    )


def _centre(raw: RawScan, axis: int, reading: Reading) -> tuple[int, int] | None:
    """The pixel where the zero frequency lies; None is the middle."""
    if reading.centre is None or reading.centre == "corner":
        return None
    if reading.centre == "auto":
        counts = are_counts(raw, reading.measurement)
        y, x = find_centre(raw.frames.array, axis, are_counts=counts)
        raw.note(f"{raw.frames.key}: zero frequency found at pixel ({y}, {x})")
    else:
        y, x = (int(np.rint(value)) for value in reading.centre)
    return y, x


def _probe_side(raw: RawScan, reading: Reading) -> int | None:
    """N of the scan's own probe."""
    if raw.probe is None or reading.probe is not None or not raw.probe.array.shape:
        return None
    return int(raw.probe.array.shape[-1])


def _cut_probe(raw: RawScan, window: Window) -> None:
    """Cut the probe as the frames, where it is not so already."""
    probe = raw.probe
    if probe is None or probe.array.shape[-1] == window.size:
        return
    values = read_complex(raw, probe)
    if values.ndim in (2, 3) and values.shape[-1] == values.shape[-2]:
        cut = window.cut_probe(values.reshape(-1, *values.shape[-2:]))
        raw.probe = replace(probe, array=cut)
