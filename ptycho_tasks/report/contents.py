"""What a report holds, as values that JSON can hold: each result with its images and curves.

What cannot be had (a result that is not built, a scan that is gone, a file of an older version) has
a `problem` in its place, one line for people, and costs nothing else.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.builds.inputs import read_source
from ptycho_tasks.config.fields import canonical_json
from ptycho_tasks.config.payload import InferencePayload
from ptycho_tasks.errors import PtychoTasksError, one_line
from ptycho_tasks.layout import METRICS, RECONSTRUCTION
from ptycho_tasks.physics.metrics import ring_curves
from ptycho_tasks.report.comparison import Comparison, Result, ResultFiles
from ptycho_tasks.report.encoding import (
    choose_precision,
    encode_complex,
    encode_image,
    encode_values,
)
from ptycho_tasks.report.wording import format_setting
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.results.result_folder import ResultFolder, read_result_folder
from ptycho_tasks.scan import ScanData, evenly_spaced

ROOM = 5_700_000
"""Bytes of all arrays of a page, before they are deflated and take a third more as text."""
_OBJECT, _PROBE, _FRAME, _DOTS = 0.62, 0.2, 0.12, 0.06
"""Which share of the room of one result or scan each has."""
_MOST_MODES = 12
_MOST_FRAMES = 256
"""Of which the mean is shown; spread evenly over the scan."""
_MOST_CURVE_SIDE = 2048
"""Pixels of the part of an object whose spectrum is shown."""
_MOST_POINTS = 256
"""Of a curve by frequency."""
_LOST = (PtychoTasksError, OSError, MemoryError, ValueError, LookupError)
Json = dict[str, Any]


@dataclass(frozen=True)
class _Scan:
    """A scan as it was read, with what the page shows of it."""

    data: ScanData | None
    record: Json


class _Scans:
    """The scans of results, each read once, the last one kept."""

    def __init__(self, room: float) -> None:
        """Of a page on which each result or scan has some bytes."""
        self.room = room
        self.records: dict[str, Json] = {}
        self._last: tuple[str, _Scan] = "", _Scan(None, {})

    def read(self, files: ResultFiles) -> tuple[str, ScanData | None]:
        """The scan of a result, and the key of its record."""
        key = name_scan(files)
        if key != self._last[0]:
            self._last = key, self._read(files)
            self.records[key] = self._last[1].record
        return key, self._last[1].data

    def _read(self, files: ResultFiles) -> _Scan:
        path = files.row.inputs["scan"]
        try:
            payload = files.table.payload(files.row)
            assert isinstance(payload, InferencePayload)
            scan = read_source(payload, payload.scan_file)
            return _Scan(scan, {"path": path, "problem": None, **self._describe(scan)})
        except _LOST as error:
            problem = f"the scan cannot be shown: {error}"
            return _Scan(None, {"path": path, "problem": one_line(problem)})

    def _describe(self, scan: ScanData) -> Json:
        record: Json = {"frames": scan.frame_count, "size": scan.size, "truth": None}
        record["notes"] = [one_line(note) for note in (*scan.notes, *scan.doubts)]
        record["frame"] = _encode_frame(scan, self.room * _FRAME)
        if scan.object is not None:
            seen = np.isfinite(scan.object)
            record["truth"] = encode_complex(scan.object, seen, self.room * _OBJECT)
        return record


def name_scan(files: ResultFiles) -> str:
    """What tells the scan of a result, read as it was, from others."""
    settings = json.loads(files.row.settings)
    reading = {key: value for key, value in settings.items() if key.startswith("source.")}
    return f"{files.row.inputs['scan']} {canonical_json(reading)}"


def collect_contents(comparison: Comparison, folder: Path) -> Json:
    """What the page shows of the results of the project in the current folder.

    Args:
        comparison: all its results.
        folder: where the page will lie, from which it links to files.
    """
    keys = {name_scan(result.files) for result in comparison.results if result.files}
    room = ROOM / max(len(comparison.results) + len(keys), 1)
    scans = _Scans(room)
    # Results of one scan one after the other: each scan is read once.
    order = sorted(
        range(len(comparison.results)),
        key=lambda index: _sort_key(comparison.results[index]),
    )
    records = {i: _describe_result(comparison.results[i], scans, room, folder) for i in order}
    return {
        "version": version("ptycho-tasks"),
        "results": [records[i] for i in range(len(records))],
        "scans": scans.records,
    }


def _sort_key(result: Result) -> str:
    return name_scan(result.files) if result.files else ""


def _describe_result(result: Result, scans: _Scans, room: float, folder: Path) -> Json:
    record: Json = {
        "name": name_result(result),
        "variant": result.variant,
        "scan": result.scan,
        "stage": result.stage,
        "state": result.state,
        "reasons": [*(result.files.reasons if result.files else ())],
        "settings": dict(result.settings),
        "measures": dict(result.measures),
        "problem": None,
        "link": None,
        "object": None,
        "provenance": {},
    }
    files = result.files
    if files is None or not (files.folder / METRICS).exists():
        return record | {"problem": "it is not built yet; run `doit infer`"}
    try:
        return record | _describe_files(files, scans, room, folder)
    except _LOST as error:
        return record | {"problem": one_line(str(error))}


def _describe_files(files: ResultFiles, scans: _Scans, room: float, folder: Path) -> Json:
    opened = read_result_folder(files.folder)
    key, scan = scans.read(files)
    return {
        "scan_key": key,
        "link": _link(files.place, folder),
        "steps": len(opened.losses),
        **_describe_images(opened, scan, room),
        "curves": _describe_curves(opened, files, scan),
        "provenance": _describe_provenance(opened),
    }


def name_result(result: Result) -> str:
    """What a result is called on the page."""
    name = f"{result.variant}/{result.scan}" if result.scan else result.variant
    return f"{name}, refined" if result.stage == "refine" else name


def _link(place: Path, folder: Path) -> str | None:
    """The address of a product, from a page in a folder; None where it is not in its place."""
    path = place / RECONSTRUCTION
    return make_link(path, folder) if path.is_file() else None


def make_link(path: Path, folder: Path) -> str:
    """The address of a file, from a page in a folder."""
    relative = os.path.relpath(path, folder)
    return "./" + urllib.parse.quote(relative.replace(os.sep, "/").encode("utf-8", "replace"))


def _describe_images(opened: ResultFolder, scan: ScanData | None, room: float) -> Json:
    details = opened.details
    share = room * _PROBE / min(len(details.probe), _MOST_MODES)
    everywhere = np.ones(details.probe.shape[1:], dtype=bool)
    return {
        "object": encode_complex(details.object, details.seen, room * _OBJECT),
        "origin": [*details.origin],
        "pixel_size_m": details.pixel_size_m,
        "probe": [encode_complex(mode, everywhere, share) for mode in details.probe[:_MOST_MODES]],
        "modes": len(details.probe),
        "frames": _describe_frames(opened, scan, room * _DOTS),
    }


def _describe_frames(opened: ResultFolder, scan: ScanData | None, most_bytes: float) -> Json:
    """Positions and residual of the frames, and how far each position was moved, in pixels."""
    positions, residual = opened.positions, opened.residual
    count = len(positions)
    taken = evenly_spaced(count, min(count, max(16, int(most_bytes / 6))))
    frames: Json = {"count": count, "shown": len(taken), "shift": None}
    for axis, name in enumerate("yx"):
        frames[name] = encode_values(positions[taken, axis], 16)
    frames["residual"] = encode_image(residual[taken][None], 16, "amplitude")
    if scan is not None and scan.positions.shape == positions.shape:
        shift = np.linalg.norm((positions - scan.positions)[taken], axis=1)
        if np.any(shift > 1e-6):
            frames["shift"] = encode_image(shift[None], 16, "amplitude")
    return frames


def _encode_frame(scan: ScanData, most_bytes: float) -> Json:
    """The mean amplitude of the frames, and where all of them are bad no value."""
    taken = evenly_spaced(scan.frame_count, min(scan.frame_count, _MOST_FRAMES))
    total = np.zeros((scan.size, scan.size), dtype=np.float64)
    count = np.zeros(total.shape, dtype=np.int64)
    for frame in taken:
        values = np.asarray(scan.diffraction[frame])
        is_value = np.isfinite(values)
        total[is_value] += values[is_value]
        count += is_value
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    if scan.bad_pixels is not None:
        mean[scan.bad_pixels] = np.nan
    step, bits = choose_precision(mean.shape, most_bytes)
    mean = mean[step // 2 :: step, step // 2 :: step]
    image = encode_image(mean, bits, "amplitude", step)
    bad = 0 if scan.bad_pixels is None else int(scan.bad_pixels.sum())
    return {"rows": scan.size, "columns": scan.size, "mean": image, "of": len(taken), "bad": bad}


def _describe_curves(opened: ResultFolder, files: ResultFiles, scan: ScanData | None) -> Json:
    parts: dict[str, Callable[[], Json]] = {
        "training": lambda: _read_history(files.training),
        "spectrum": lambda: _describe_rings(opened, scan),
    }
    curves: Json = {"losses": _list_numbers(opened.losses), "training": {}}
    curves |= {"psd": None, "frc": None}
    problems = []
    for name, read in parts.items():
        try:
            curves |= read()
        except _LOST as error:
            problems.append(one_line(f"no {name}: {error}"))
    return curves | {"problem": "; ".join(problems) or None}


def _read_history(training: Path | None) -> Json:
    """Each metric of the training, by epoch."""
    if training is None:
        return {"training": {}}
    history = load_bundle(training).model.history
    names = dict.fromkeys(name for epoch in history for name in epoch)
    return {"training": {name: [epoch.get(name) for epoch in history] for name in names}}


def _describe_rings(opened: ResultFolder, scan: ScanData | None) -> Json:
    if max(opened.object.shape) > _MOST_CURVE_SIDE:
        raise ValueError(f"the object has more than {_MOST_CURVE_SIDE} pixels a side")
    has_scores = bool(opened.metrics.get("scores"))
    truth = scan.object if scan is not None and has_scores else None
    seen = opened.seen & np.isfinite(opened.object)
    image = np.where(seen, opened.object, 0)
    size = opened.probe.shape[-1]
    power, correlation = ring_curves(image, opened.origin, truth, opened.positions, size)
    return {
        "psd": _list_numbers(_thin(power)),
        "frc": None if correlation is None else _list_numbers(_thin(correlation)),
    }


def _thin(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of as many neighbours as leave no more points than a chart shows."""
    step = -(-len(curve) // _MOST_POINTS)
    whole = len(curve) // max(step, 1) * step
    return curve if step < 2 else curve[:whole].reshape(-1, step).mean(axis=1)


def _list_numbers(values: NDArray[Any]) -> list[float | None]:
    """Four digits of each, which is more than a curve shows."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values.tolist()]


_PROVENANCE = {
    "files": "sha256 of its files",
    "inputs": "sha256 of what was read",
    "read": "further files that were read",
    "versions": "versions",
    "settings": "settings",
    "sources": "digests of source code",
}


def _describe_provenance(opened: ResultFolder) -> dict[str, dict[str, str]]:
    """What a result was made from, as it says itself: title of a part, to its lines."""
    made_from = opened.metrics.get("made_from")
    made_from = made_from if isinstance(made_from, dict) else {}
    parts = {title: made_from.get(key) for key, title in _PROVENANCE.items()}
    return {
        title: {str(key): format_setting(value) for key, value in part.items()}
        for title, part in parts.items()
        if isinstance(part, dict) and part
    }
