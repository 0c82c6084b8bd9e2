"""Scans in NPZ, after the raw-scan contract of docs/scans.md, and under older keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ptycho_tasks.scans.npz import ESTIMATED_PROBE, NpzFile
from ptycho_tasks.scans.raw_scan import (
    WITHOUT_PROBE,
    FrameAxis,
    Keyed,
    RawScan,
    Reading,
    frame_numbers,
    refused,
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
def open_npz_scan(path: Path, reading: Reading, *, with_product: bool) -> Iterator[RawScan]:
    """The arrays of an NPZ file, or only its frames where a product gives the rest.

    Raises:
        ScanError: the file cannot be read, or lacks what a scan needs.
    """
    with NpzFile(path) as npz:
        yield _read(npz, reading, with_product=with_product)


def _read(npz: NpzFile, reading: Reading, *, with_product: bool) -> RawScan:
    frame_keys = [key for key in _FRAMES if key in npz]
    columns = {} if with_product else {f: key for f, key in _COLUMNS.items() if key in npz}
    _check_keys(npz, frame_keys, {} if with_product else _NEEDED, reading)
    frames = frame_keys[0]
    raw = RawScan(
        npz.path,
        Keyed(npz.path, frames, npz[frames]),
        holds_counts=True if frames == "patterns" else None,
        frame_axis=_frame_axis(npz),
        pixel_size_m=reading.pixel_size_m or _metadata(npz, "pixel_size_m"),
        energy_ev=reading.energy_ev or _number(npz, "energy_ev"),
        distance_m=reading.distance_m or _number(npz, "distance_m"),
        exposure_s=_number(npz, "exposure_s"),
    )
    for name, key in columns.items():
        setattr(raw, name, Keyed(npz.path, key, npz[key]))
    if with_product and _FRAME_NUMBERS in npz:
        raw.numbers = frame_numbers(Keyed(npz.path, _FRAME_NUMBERS, npz[_FRAME_NUMBERS]))
    mask = reading.bad_pixels if reading.bad_pixels in npz else _BAD_PIXELS
    if mask in npz:
        raw.bad_pixels = Keyed(npz.path, mask, npz[mask])
    if ESTIMATED_PROBE in npz and not with_product:
        raw.is_probe_estimated = bool(np.any(npz[ESTIMATED_PROBE]))
    _note_keys(raw, npz, frame_keys, {*columns.values(), *_METADATA, mask})
    return raw


def _check_keys(
    npz: NpzFile, frame_keys: list[str], needed: Mapping[str, str], reading: Reading
) -> None:
    present = {*npz, "diff3d"} if frame_keys else {*npz}
    if reading.probe == "estimate":
        present.add("probeGuess")
    for key in ("diff3d", *needed):
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


def _metadata(npz: NpzFile, key: str) -> tuple[float, float] | None:
    """One or two positive numbers, as a pair; None where the key is missing."""
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


def _number(npz: NpzFile, key: str) -> float:
    pair = _metadata(npz, key)
    return 0.0 if pair is None else pair[0]


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
