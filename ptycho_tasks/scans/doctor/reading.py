"""Read a scan for the doctor: as it would be read, and where that is refused, what can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.masking import BRIGHT
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading
from ptycho_tasks.scans.readers import open_scan, read_scan
from ptycho_tasks.scans.recognition import ReaderStoppedError
from ptycho_tasks.scans.shaping import choose_window
from ptycho_tasks.system.memory import has_memory_for


def read_case(
    path: Path, settings: Mapping[str, Any], product: Path | None = None
) -> tuple[Case | None, str | None]:
    """The arrays of a scan, as far as they can be read, and why the scan is refused.

    Args:
        path: of the scan.
        settings: of `source:`, for `read_scan`.
        product: see `read_scan`.
    """
    try:
        return _take(path, read_scan(path, product=product, **settings)), None
    except ReaderStoppedError as error:
        return None, str(error)  # it would hang again
    except ScanError as error:
        # As text: the error would keep open what it was raised in, and HDF5 may crash at the end
        # of the program over a virtual dataset that is.
        refusal = str(error)
    return (None if product else _read_leniently(path, settings)), refusal


def _take(path: Path, scan: ScanData) -> Case:
    return Case(
        path,
        scan.diffraction,
        scan.positions,
        None if scan.is_probe_estimated else scan.probe,
        np.arange(scan.frame_count),
        np.zeros((scan.size, scan.size), bool) if scan.bad_pixels is None else scan.bad_pixels,
        power=1.0,
        scan_index=scan.scan_index,
        pixel_size_m=scan.pixel_size_m,
        has_metres=any("converted to pixels" in note for note in scan.notes),
        notes=scan.notes,
        doubts=tuple(scan.doubts),
    )


def _read_leniently(path: Path, settings: Mapping[str, Any]) -> Case | None:
    """What can be read of a scan that is refused; None where that is too little."""
    given = {key: value for key, value in settings.items() if key != "root"}
    # A probe that is missing must not hide the rest.
    for probe in (given.get("probe"), "estimate"):
        try:
            reading = Reading(**given | {"probe": probe})
            with open_scan(path, reading, settings.get("root")) as raw:
                case = _convert(path, raw, settings.get("measurement", "auto"))
                return case and _mask(case, raw, reading.mask_marks)
        except (ScanError, OSError, ValueError, TypeError, KeyError, RuntimeError):
            continue
    return None


def _convert(path: Path, raw: RawScan, measurement: str) -> Case | None:
    positions = _positions(raw)
    shape = raw.frames.array.shape
    if len(shape) != 3 or positions is None or not np.isfinite(positions).all():
        return None
    M = len(positions)
    if M not in (shape[0], shape[-1]) or not has_memory_for(8.0 * np.prod(shape)):
        return None
    frames = np.asarray(raw.frames.array[:])
    if frames.dtype.kind not in "fiu":
        return None
    if shape[0] != M:
        frames = np.moveaxis(frames, -1, 0)
    counts = raw.holds_counts or frames.dtype.kind in "iu" or measurement == "counts"
    height, width = frames.shape[1:]
    frames, probe, factor = _crop(frames, _probe(raw))
    size = frames.shape[-1]
    index = raw.scan_index
    is_whole = index is not None and tuple(index.array.shape) == (M,)
    return Case(
        path,
        frames,
        positions * factor,
        probe,
        np.arange(M),
        np.zeros((size, size), bool),
        power=0.5 if counts and measurement != "amplitude" else 1.0,
        scan_index=np.asarray(index.array[:]) if index is not None and is_whole else None,
        pixel_size_m=raw.pixel_size_m,
        cropped_from=None if frames.shape[1:] == (height, width) else (height, width),
    )


def _mask(case: Case, raw: RawScan, marks: Literal["bad", "good"] | None) -> Case:
    """The case with the mask of its file, taken so that most light falls on good pixels."""
    keyed = raw.bad_pixels
    if keyed is None or keyed.array.dtype.kind not in "biuf":
        return case
    if tuple(keyed.array.shape) == case.frames.shape:
        frames = case.values(slice(None))
        frames[(np.asarray(keyed.array[:]) == 0) == (marks == "good")] = np.nan
        return replace(case, frames=frames)
    if tuple(keyed.array.shape) != case.bad.shape:
        return case
    is_set = np.asarray(keyed.array[:]) != 0
    if is_set.all() or not is_set.any():
        return replace(case, mask_marks="good" if is_set.all() and marks != "good" else None)
    light = np.minimum(case.mean, np.quantile(case.mean, BRIGHT) or np.inf)
    is_for_good = bool(light[is_set].sum() > light[~is_set].sum())
    bad = ~is_set if is_for_good else is_set
    return replace(case, bad=bad, mask_marks="good" if is_for_good else "bad")


def _positions(raw: RawScan) -> NDArray[np.float64] | None:
    if raw.x is None or raw.y is None:
        return None
    y, x = (np.asarray(keyed.array[:], dtype=np.float64) for keyed in (raw.y, raw.x))
    return np.stack([y, x], axis=1) if y.shape == x.shape and y.ndim == 1 else None


def _probe(raw: RawScan) -> NDArray[np.complex64] | None:
    keyed: Keyed | None = raw.probe
    if keyed is None or keyed.array.dtype.kind not in "cf" or len(keyed.array.shape) not in (2, 3):
        return None
    probe = np.asarray(keyed.array[:], dtype=np.complex64)
    is_usable = np.isfinite(probe).all() and probe.any() and probe.shape[-1] == probe.shape[-2]
    return probe.reshape(-1, *probe.shape[-2:]) if is_usable else None


def _crop(
    frames: NDArray[Any], probe: NDArray[np.complex64] | None
) -> tuple[NDArray[Any], NDArray[np.complex64] | None, float]:
    """Square frames of an even size, the probe on their pixels, and the factor of positions.

    A detector that is cropped makes the pixels of the object larger.
    """
    size = min(frames.shape[1:]) // 2 * 2
    window = choose_window((frames.shape[1], frames.shape[2]), None, size, 1)
    frames = frames if window.is_whole else window.cut(frames)
    if probe is None or probe.shape[-1] == size:
        return frames, probe, 1.0
    N = probe.shape[-1]
    if size > N:
        return frames, None, 1.0
    return frames, window.cut_probe(probe), size / N
