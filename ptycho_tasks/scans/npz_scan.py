"""Scans in NPZ, after the raw-scan contract of docs/scans.md, and under older keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.npz import ESTIMATED_PROBE, NpzFile
from ptycho_tasks.scans.raw_scan import (
    WITHOUT_PROBE,
    FrameAxis,
    Keyed,
    RawScan,
    Reading,
    frame_numbers,
    refused,
    take_common,
)

_FRAMES = ("diff3d", "diffraction", "patterns")
"""The contract's key, PtychoPINN's older name for it, and Ptychodus' key, which holds counts."""
_FRAME_NUMBERS = "indexes"
_BAD_PIXELS = "bad_pixels"
_COLUMNS = {
    "x": "xcoords",
    "y": "ycoords",
    "probe": "probeGuess",
    "object": "objectGuess",
    "scan_index": "scan_index",
    "start_x": "xcoords_start",
    "start_y": "ycoords_start",
}
"""Fields of a `RawScan` and their keys."""
_NEEDED = {
    "diff3d": "(M, N, N) float32 amplitude",
    "xcoords": "(M,) float64 pixels",
    "ycoords": "(M,) float64 pixels",
    "probeGuess": "(N, N) or (P, N, N) complex64",
}
_METADATA = (ESTIMATED_PROBE, "frame_axis", "pixel_size_m", "energy_ev", "distance_m", "exposure_s")


@contextmanager
def open_npz_scan(path: Path, reading: Reading) -> Iterator[RawScan]:
    """The arrays of an NPZ file, but for those that come from elsewhere.

    Raises:
        ScanError: the file cannot be read, or lacks what a scan needs.
    """
    with NpzFile(path) as npz:
        yield _read(npz, reading)


def _read(npz: NpzFile, reading: Reading) -> RawScan:
    frame_keys = [key for key in _FRAMES if key in npz]
    columns = {field: key for field, key in _COLUMNS.items() if key in npz}
    if reading.has_product:
        columns = {}
    _check_keys(npz, frame_keys, reading)
    frames = frame_keys[0]
    raw = RawScan(
        npz.path,
        Keyed(npz.path, frames, _without_channel(npz[frames])),
        holds_counts=True if frames == "patterns" else None,
        frame_axis=_frame_axis(npz),
        pixel_size_m=reading.pixel_size_m or _pixel_size(npz),
    )
    raw.energy_ev = reading.energy_ev or _number(raw, npz, "energy_ev")
    raw.distance_m = reading.distance_m or _number(raw, npz, "distance_m")
    raw.exposure_s = _number(raw, npz, "exposure_s")
    for name, key in columns.items():
        setattr(raw, name, Keyed(npz.path, key, npz[key]))
    if reading.has_product and _FRAME_NUMBERS in npz:
        raw.numbers = frame_numbers(Keyed(npz.path, _FRAME_NUMBERS, npz[_FRAME_NUMBERS]))
    mask = reading.bad_pixels if reading.bad_pixels in npz else _BAD_PIXELS
    if mask in npz:
        raw.bad_pixels = Keyed(npz.path, mask, npz[mask])
    if ESTIMATED_PROBE in npz and not reading.has_product:
        raw.is_probe_estimated = bool(np.any(npz[ESTIMATED_PROBE]))
    _note_keys(raw, npz, frame_keys, {*columns.values(), *_METADATA, mask})
    return raw


def _without_channel(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames as images; networks' files may have one channel behind these axes."""
    return frames[..., 0] if frames.ndim == 4 and frames.shape[-1] == 1 else frames


def _check_keys(npz: NpzFile, frame_keys: list[str], reading: Reading) -> None:
    present = {*npz, "diff3d"} if frame_keys else {*npz}
    present |= set() if reading.needs_positions else {"xcoords", "ycoords"}
    present |= set() if reading.needs_probe else {"probeGuess"}
    for key in _NEEDED:
        if key not in present:
            raise refused(
                npz.path,
                key,
                f"is missing (found: {', '.join(npz) or 'nothing'})",
                _NEEDED[key],
                "add it, or " + (WITHOUT_PROBE if key == "probeGuess" else "give another file"),
            )
    for key in npz:
        npz.check_plain(key)  # an ignored key too


def _pixel_size(npz: NpzFile) -> tuple[float, float] | None:
    """One or two positive numbers, as a pair; None where the file does not say."""
    key = "pixel_size_m"
    if key not in npz:
        return None
    array = npz[key]
    values = array.ravel()
    if (
        array.dtype.kind not in "fiu"
        or values.size not in (1, 2)
        or not ((values > 0) & np.isfinite(values)).all()
    ):
        raise refused(
            npz.path,
            key,
            f"is {array.dtype} of shape {array.shape}, or not positive and finite",
            "a positive number",
            "correct or remove it",
        )
    return float(values[0]), float(values[-1])


def _frame_axis(npz: NpzFile) -> FrameAxis:
    """What a file of ours says about its axes, which are always in canonical order."""
    says_first = "frame_axis" in npz and npz["frame_axis"].tolist() == 0
    return "first" if says_first else "auto"


def _number(raw: RawScan, npz: NpzFile, key: str) -> float:
    """A positive number, or zero where the file does not say."""
    if key not in npz:
        return 0.0
    value = take_common(raw, key, npz[key])
    if value <= 0:
        raise refused(npz.path, key, f"is {value:g}", "a positive number", "correct or remove it")
    return value


def _note_keys(raw: RawScan, npz: NpzFile, frame_keys: list[str], used: set[str]) -> None:
    taken, *aliases = frame_keys
    if taken != "diff3d":
        raw.note(f"{taken}: read as diff3d")
    for alias in aliases:
        raw.note(f"{alias}: ignored, {taken} is taken")
    known = {*frame_keys, *used, _BAD_PIXELS}
    known |= {_FRAME_NUMBERS} if raw.numbers is not None else set()
    extra = [key for key in npz if key not in known] + list(npz.others)
    if extra:
        raw.note(f"keys ignored: {', '.join(extra)}")
