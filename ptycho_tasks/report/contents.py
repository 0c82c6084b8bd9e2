"""What a report holds, as values that JSON can hold: each result with its images and curves.

What cannot be had (a result that is not built, a scan that is gone, a file of an older version) has
a `problem` in its place, one line for people, and costs nothing else.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.builds.identity import CHANGED, are_metrics_whole
from ptycho_tasks.builds.inputs import read_source
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.store import Record
from ptycho_tasks.config.fields import canonical_json
from ptycho_tasks.config.payload import InferencePayload
from ptycho_tasks.errors import PtychoTasksError, one_line
from ptycho_tasks.layout import METRICS
from ptycho_tasks.physics.metrics import (
    HALVES_LEVEL,
    Half,
    Reference,
    correlate_halves,
    describe_poor,
    find_fall,
    ring_curves,
)
from ptycho_tasks.physics.truth import UNJUDGED, describe_guess, is_as_noise, judge_own_object
from ptycho_tasks.report.comparison import (
    COST,
    DEVIANCE,
    MISFIT,
    R_FACTOR,
    Comparison,
    Made,
    Result,
    ResultFiles,
    is_number,
    is_simulated,
)
from ptycho_tasks.report.encoding import (
    choose_precision,
    encode_complex,
    encode_image,
    encode_values,
)
from ptycho_tasks.report.ranking import VALID
from ptycho_tasks.report.wording import TITLES, format_measure, format_setting, shorten_reasons
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.results.result_folder import ResultFolder, read_result_folder
from ptycho_tasks.scan import ScanData, evenly_spaced
from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.units import format_seconds

ROOM = 5_700_000
"""Bytes of all arrays of a page, before they are deflated and take a third more as text."""
_LARGEST_PAGE = 9_300_000
_SHOWN_TEXT, _LISTED_TEXT = 6_000, 2_500
"""Bytes of all but the arrays of a result with images, and of one that is only in the table."""
_OBJECT, _PROBE, _FRAME, _DOTS = 0.62, 0.2, 0.12, 0.06
"""Which share of the room of one result or scan each has."""
_MOST_RESULTS = 400
"""That have images and curves; each further one costs the others theirs."""
_MOST_MODES = 12
_MOST_FRAMES = 256
"""Of which the mean is shown; spread evenly over the scan."""
_MOST_CURVE_SIDE = 2048
"""Pixels of the part of an object whose spectrum is shown."""
_MOST_POINTS = 256
"""Of a curve by frequency."""
FALL_LEVEL = 0.5
"""Under which a correlation with the truth resolves nothing."""
_LOST = (PtychoTasksError, OSError, MemoryError, ValueError, LookupError)
_FRAMES, _MODES = "inference.frames", "training.probe_modes"
SETTINGS = "settings of the project"
_MOST_INPUTS = 12
"""Named of those of a task."""
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
        self.keys: dict[str, str] = {}
        self._last: tuple[str, _Scan] = "", _Scan(None, {})

    def read(self, result: Result, files: ResultFiles) -> tuple[str, ScanData | None]:
        """The scan of a result, and the key of its record."""
        name = files.scan_key
        if name != self._last[0]:
            self._last = name, self._read(files, is_simulated=is_simulated(result.settings))
            self.keys[name] = f"scan {len(self.keys) + 1}"
            self.records[self.keys[name]] = self._last[1].record
        return self.keys[name], self._last[1].data

    def _read(self, files: ResultFiles, *, is_simulated: bool) -> _Scan:
        path = files.row.inputs["scan"]
        maker = next((one.row.name for one in files.made if path in one.row.outputs), None)
        if maker is not None and not Path(path).exists():
            problem = f"the scan cannot be shown: it is not there; run `doit {maker}`"
            return _Scan(None, {"path": path, "problem": problem})
        if not files.is_scan_there:
            problem = "it, or how it is read, has changed since the result was made: not shown"
            return _Scan(None, {"path": path, "problem": problem})
        try:
            payload = files.table.payload(files.row)
            assert isinstance(payload, InferencePayload)
            scan = read_source(payload, payload.scan_file)
            record = self._describe(scan, is_simulated=is_simulated)
            return _Scan(scan, {"path": path, "problem": None, **record})
        except _LOST as error:
            problem = f"the scan cannot be shown: {error}"
            return _Scan(None, {"path": path, "problem": one_line(problem)})

    def _describe(self, scan: ScanData, *, is_simulated: bool) -> Json:
        record: Json = {"frames": scan.frame_count, "size": scan.size, "truth": None}
        record |= {"is_truth": is_simulated, "guess": None}
        record["notes"] = [one_line(note) for note in (*scan.notes, *scan.doubts)]
        record["frame"] = _encode_frame(scan, self.room * _FRAME)
        record["probe"] = _encode_probe(scan.probe, self.room * _PROBE)
        if scan.object is not None:
            seen = np.isfinite(scan.object)
            record["truth"] = encode_complex(scan.object, seen, self.room * _OBJECT)
        if scan.object is not None and not is_simulated:
            ratio = judge_own_object(scan)
            record["is_truth"] = is_as_noise(ratio)
            record["guess"] = None if record["is_truth"] else describe_guess(ratio)
        return record


def collect_contents(comparison: Comparison, folder: Path) -> Json:
    """What the page shows of the results of the project in the current folder.

    Args:
        comparison: all its results.
        folder: where the page will lie, from which it links to files.
    """
    results = comparison.results
    shown = [index for index, result in enumerate(results) if _is_built(result)][:_MOST_RESULTS]
    keys = {files.scan_key for index in shown if (files := results[index].files)}
    text = len(shown) * _SHOWN_TEXT + (len(results) - len(shown)) * _LISTED_TEXT
    whole = max(min(ROOM, (_LARGEST_PAGE - text) * 3 / 4), ROOM / 10)
    room = whole / max(len(shown) + len(keys), 1)
    scans = _Scans(room)
    # Results of one scan one after the other: each scan is read once.
    order = sorted(shown, key=lambda index: _sort_key(results[index]))
    found = {index: _describe_result(results[index], scans, room, folder) for index in order}
    records = [found.get(index) or _leave_out(result) for index, result in enumerate(results)]
    halves = [_describe_halves(results, group, records) for group in group_halves(results)]
    _add_resolutions(records, halves)
    return {
        "version": version("ptycho-tasks"),
        "results": records,
        "scans": scans.records,
        "halves": halves,
        "notes": [*_list_notes(scans.records, records), *comparison.notes],
        "common": _take_common(records),
    }


def _list_notes(scans: Mapping[str, Json], records: Sequence[Json]) -> list[str]:
    """What is to be known of scans, a line each: what cannot be shown, and which are no truth."""
    judged = {
        record["scan_key"]
        for record in records
        if not record["has_truth"] and record["measures"].keys() - {*MISFIT, *COST}
        if "scan_key" in record
    }
    notes = []
    for key, scan in scans.items():
        unjudged = UNJUDGED if key in judged else None
        texts = [scan["problem"], unjudged] if scan["problem"] else [scan["guess"]]
        notes.append((scan["path"], "; ".join(filter(None, texts))))
    return [f"{path}: {text}" for path, text in sorted({*notes}) if text]


def _is_built(result: Result) -> bool:
    return result.files is not None and (result.files.folder / METRICS).exists()


def _sort_key(result: Result) -> str:
    return result.files.scan_key if result.files else ""


def _take_common(records: Sequence[Json]) -> Json:
    """Move what all results say alike out of them: title of a part of the provenance, or
    `SETTINGS`, to its lines."""
    common: Json = {SETTINGS: _take_equal([record["settings"] for record in records])}
    parts = [record["provenance"] for record in records if record["provenance"]]
    for title in dict.fromkeys(title for part in parts for title in part):
        common[title] = _take_equal([part.get(title, {}) for part in parts])
    for part in parts:
        for title in [title for title, lines in part.items() if not lines]:
            del part[title]
    return {title: lines for title, lines in common.items() if lines}


def _take_equal(parts: Sequence[Json]) -> Json:
    """Remove from some mappings, where they are several, what they all hold; returns it."""
    if len(parts) < 2:
        return {}
    first, *others = parts
    equal = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
    for part in parts:
        for key in equal:
            del part[key]
    return equal


def group_halves(results: Sequence[Result]) -> list[dict[str, int]]:
    """Results that were made alike from the `even` and from the `odd` frames of a scan, and from
    `all` of them where that is there too: each with its index.

    Settings of a training may be lost, and equal ones may give another model: what tells models
    apart is the content of their bundles.
    """
    groups: dict[str, dict[str, int]] = {}
    for index, result in enumerate(results):
        bundle = result.files.bundle_sha256 if result.files else None
        if _is_built(result) and bundle is not None:
            settings = {k: v for k, v in result.settings.items() if k != _FRAMES}
            alike = canonical_json([_sort_key(result), result.stage, settings, bundle])
            frames = str(result.settings.get(_FRAMES, "all"))
            groups.setdefault(alike, {}).setdefault(frames, index)
    return [group for group in groups.values() if {"even", "odd"} <= group.keys()]


def _add_resolutions(records: Sequence[Json], halves: Sequence[Json]) -> None:
    """Say of each result where its correlation falls: with the truth, and of its halves."""
    falls = {index: half["fall"] for half in halves for index in half["results"]}
    for index, record in enumerate(records):
        found = {"truth": record.get("curves", {}).get("frc_fall"), "halves": falls.get(index)}
        for source, fall in found.items():
            if fall is not None:
                size = record["pixel_size_m"]
                record["resolutions"][source] = {"fall": fall, "pixel_size_m": size}


def _describe_halves(
    results: Sequence[Result], group: Mapping[str, int], records: Sequence[Json]
) -> Json:
    """How two halves of a scan's frames correlate; `fall` is the fraction of Nyquist where they
    fall under `HALVES_LEVEL`."""
    pair = [group["even"], group["odd"]]
    name = " and ".join(records[index]["name"] for index in pair)
    indices = sorted(group.values())
    record: Json = {"name": name, "results": indices, "frc": None, "fall": None, "problem": None}
    try:
        opened = [read_result_folder(one.files.folder) for i in pair if (one := results[i]).files]
        size = opened[0].probe.shape[-1]
        for half in opened:
            _refuse_unfit(half)
        first, second = map(_cut_half, opened)
        curve = correlate_halves(first, second, size)
    except _LOST as error:
        return record | {"problem": one_line(f"{name}: no correlation of the halves: {error}")}
    if curve is None:
        return record
    curve = _thin(curve)
    return record | {"frc": _list_numbers(curve), "fall": find_fall(curve, HALVES_LEVEL)}


def _cut_half(opened: ResultFolder) -> Half:
    return Half(_fill_unseen(opened), opened.origin, opened.positions)


def _fill_unseen(opened: ResultFolder) -> NDArray[np.complex64]:
    return np.where(_find_whole(opened), opened.object, np.complex64(0))


def _can_be_seen(opened: ResultFolder) -> bool:
    return bool(_find_whole(opened).any())


def _find_whole(opened: ResultFolder) -> NDArray[np.bool_]:
    """(H, W) where there is a value of the object."""
    return opened.seen & np.isfinite(opened.object)


def _leave_out(result: Result) -> Json:
    """What is said of a result that is not shown."""
    is_built = _is_built(result)
    command = f"ptycho-tasks report {name_place(result)} --output FILE"
    note = f"left out, to keep the page small; `{command}` shows it"
    return _begin_record(result) | {
        "problem": None if is_built else "it is not built yet; run `doit infer`",
        "note": note if is_built else None,
    }


def name_place(result: Result) -> str:
    """What `ptycho-tasks report` knows a result by."""
    return f"{result.variant}/{result.scan}" if result.scan else result.variant


def _describe_result(result: Result, scans: _Scans, room: float, folder: Path) -> Json:
    record = _begin_record(result)
    assert result.files is not None
    try:
        return record | _describe_files(result, result.files, scans, room, folder)
    except _LOST as error:
        return record | {"problem": one_line(str(error))}


def _begin_record(result: Result) -> Json:
    return {
        "name": name_result(result),
        "variant": result.variant,
        "scan": result.scan,
        "stage": result.stage,
        "state": result.state,
        "reasons": shorten_reasons(result.files.reasons if result.files else ()),
        "settings": dict(result.settings),
        "measures": dict(result.measures),
        "problem": None,
        "note": None,
        "link": None,
        "model_from": "",
        "object": None,
        "resolutions": {},
        "has_truth": False,
        "doubts": [],
        "can_be_best": False,
        "frame_count": 0,
        "provenance": {},
    }


def _describe_files(
    result: Result, files: ResultFiles, scans: _Scans, room: float, folder: Path
) -> Json:
    opened = read_result_folder(files.folder)
    key, scan = scans.read(result, files)
    has_truth = is_simulated(result.settings) or scans.records[key].get("is_truth", False)
    return {
        "has_truth": has_truth,
        "doubts": _list_doubts(opened, result.settings),
        "can_be_best": result.state in VALID and _can_be_seen(opened),
        "scan_key": key,
        "link": None if files.product is None else make_link(files.product, folder),
        "place": None if files.product is None else files.product.as_posix(),
        "model_from": _describe_model(files),
        "steps": _count_steps(opened) or len(opened.losses),
        "frame_count": len(opened.positions),
        **_describe_images(opened, scan, room),
        "curves": _describe_curves(opened, files, scan, has_truth=has_truth),
        "provenance": _describe_provenance(opened, files),
    }


def name_result(result: Result) -> str:
    """What a result is called on the page."""
    name = name_place(result)
    return f"{name}, refined" if result.stage == "refine" else name


def make_link(path: Path, folder: Path) -> str:
    """The address of a file, from a page in a folder."""
    relative = os.path.relpath(path, folder)
    return "./" + urllib.parse.quote(relative.replace(os.sep, "/").encode("utf-8", "replace"))


def _describe_images(opened: ResultFolder, scan: ScanData | None, room: float) -> Json:
    details = opened.details
    return {
        "object": encode_complex(details.object, details.seen, room * _OBJECT),
        "origin": [*details.origin],
        "pixel_size_m": details.pixel_size_m,
        "probe": _encode_probe(details.probe, room * _PROBE),
        "modes": len(details.probe),
        "frames": _describe_frames(opened, scan, room * _DOTS),
    }


def _list_doubts(opened: ResultFolder, settings: Mapping[str, Any]) -> list[str]:
    """What an image cannot show, a sentence each."""
    return [
        *_doubt_object(opened),
        *_doubt_metrics(opened.metrics),
        *_doubt_misfit(opened.metrics),
        *_doubt_modes(opened, settings),
    ]


def _doubt_object(opened: ResultFolder) -> list[str]:
    rows, columns = opened.object.shape
    seen = int(opened.seen.sum())
    lost = int((opened.seen & ~np.isfinite(opened.object)).sum())
    doubts = []
    if rows * columns == 1:
        doubts.append("the object has 1 x 1 pixels: there is nothing to see")
    if not seen:
        doubts.append("the object was seen nowhere: all of it is hatched")
    elif lost:
        where = "wherever it was seen" if lost == seen else f"at {lost} of {seen} pixels"
        doubts.append(
            f"the object is NaN or infinite {where}, hatched like what was not seen: it has no "
            "resolution, and its scores are those that were measured when it was made"
        )
    return doubts


def _doubt_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Whether a metrics.json, of which the store knows nothing, was changed."""
    return [] if are_metrics_whole(metrics) else [f"{METRICS} {CHANGED}"]


def _doubt_misfit(metrics: Mapping[str, Any]) -> list[str]:
    """Why what a metrics.json says of the misfit is poor, or not a number."""
    lost = [name for name in (R_FACTOR, DEVIANCE) if not is_number(metrics.get(name))]
    if lost:
        listed = ", ".join(f"{name} {json.dumps(metrics.get(name))}" for name in lost)
        return [f"{METRICS} has {listed}: how well the result explains the frames is not known"]
    found, noise = _read_reference(metrics), _read_reference(metrics.get("noise"))
    poor = describe_poor(found, noise) if found and noise else None
    return [poor] if poor else []


def _read_reference(values: Any) -> Reference | None:
    """A misfit as metrics.json holds it; None where it is not there."""
    pair = [values.get(name) for name in Reference._fields] if isinstance(values, dict) else [None]
    return Reference(*pair) if all(map(is_number, pair)) else None


def _doubt_modes(opened: ResultFolder, settings: Mapping[str, Any]) -> list[str]:
    """Whether the probe has fewer modes than were asked for."""
    asked, found = settings.get(_MODES), len(opened.probe)
    if not is_number(asked) or asked <= found:
        return []
    return [f"{_MODES} is {asked}, but the probe has {found}: the setting had no effect"]


def _encode_probe(probe: NDArray[np.complex64], most_bytes: float) -> list[Json]:
    """The first modes of a probe (P, N, N)."""
    shown = probe[:_MOST_MODES]
    everywhere = np.ones(probe.shape[1:], dtype=bool)
    return [encode_complex(mode, everywhere, most_bytes / len(shown)) for mode in shown]


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
            for axis, name in enumerate("yx"):
                frames[f"{name}_before"] = encode_values(scan.positions[taken, axis], 16)
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


def _describe_curves(
    opened: ResultFolder, files: ResultFiles, scan: ScanData | None, *, has_truth: bool
) -> Json:
    parts: dict[str, Callable[[], Json]] = {
        "training": lambda: _read_history(files.training),
        "spectrum": lambda: _describe_rings(opened, scan, has_truth=has_truth),
    }
    curves: Json = {"losses": _list_numbers(opened.losses), "training": {}}
    # Of what says how many steps there were, the first loss is that of the start.
    curves["first_loss"] = 1 if _count_steps(opened) is None else 0
    curves |= dict.fromkeys(("psd", "frc", "frc_guess", "frc_fall"))
    problems = []
    for name, read in parts.items():
        try:
            curves |= read()
        except _LOST as error:
            problems.append(one_line(f"no {name}: {error}"))
    return curves | {"problem": "; ".join(problems) or None}


def _count_steps(opened: ResultFolder) -> int | None:
    """See `Reconstruction.steps`."""
    steps = opened.metrics.get("steps")
    return steps if isinstance(steps, int) else None


@cached
def _read_history(training: Path | None) -> Json:
    """Each metric of the training, by epoch."""
    if training is None:
        return {"training": {}}
    history = load_bundle(training).model.history
    names = dict.fromkeys(name for epoch in history for name in epoch)
    return {"training": {name: [epoch.get(name) for epoch in history] for name in names}}


def _describe_rings(opened: ResultFolder, scan: ScanData | None, *, has_truth: bool) -> Json:
    """The power spectrum, and the correlation with the truth or a guess, of which `frc_fall` is
    the fraction of Nyquist where it falls under 0.5."""
    _refuse_unfit(opened)
    has_scores = bool(opened.metrics.get("scores"))
    wanted = scan.object if scan is not None and has_scores else None
    image, size = _fill_unseen(opened), opened.probe.shape[-1]
    power, correlation = ring_curves(image, opened.origin, wanted, opened.positions, size)
    rings: Json = {"psd": _list_numbers(_thin(power)) if power.any() else None}
    if correlation is None:
        return rings
    curve = _thin(correlation)
    if not has_truth:
        return rings | {"frc_guess": _list_numbers(curve)}
    return rings | {"frc": _list_numbers(curve), "frc_fall": find_fall(curve, FALL_LEVEL)}


def _refuse_unfit(opened: ResultFolder) -> None:
    """Refuse an object whose spectrum takes long, or is not known.

    Raises:
        ValueError: it is too large, was seen nowhere, or is not finite where it was seen.
    """
    if max(opened.object.shape) > _MOST_CURVE_SIDE:
        raise ValueError(f"the object has more than {_MOST_CURVE_SIDE} pixels a side")
    if not opened.seen.any():
        raise ValueError("the object was seen nowhere")
    if not np.isfinite(opened.object[opened.seen]).all():
        raise ValueError("the object is NaN or infinite where it was seen")


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


def _describe_provenance(opened: ResultFolder, files: ResultFiles) -> dict[str, dict[str, str]]:
    """What a result was made from, as it says itself: title of a part, to its lines."""
    made_from = opened.metrics.get("made_from")
    made_from = made_from if isinstance(made_from, dict) else {}
    parts = {title: made_from.get(key) for key, title in _PROVENANCE.items()}
    described = {
        title: {str(key): format_setting(part[key]) for key in sorted(part)}
        for title, part in parts.items()
        if isinstance(part, dict) and part
    }
    trainings = {
        f"settings of {one.row.name}": _list_settings(one.record)
        for one in files.made
        if one.row.stage == "train" and one.record is not None
    }
    made = dict(map(_describe_made, files.made))
    misfit = _describe_misfit(opened.metrics)
    return {"how it was made": made, "how good it is": misfit, **described, **trainings}


def _describe_misfit(metrics: Mapping[str, Any]) -> dict[str, str]:
    """R-factor and deviance, each with what it is to be compared with."""
    parts = {
        "the result": metrics,
        "photon noise alone": metrics.get("noise"),
        "a flat object": metrics.get("flat"),
    }
    read = {name: _read_reference(values) for name, values in parts.items()}
    return {
        TITLES[measure]: ", ".join(
            f"{name} {format_measure(measure, getattr(found, measure), None)}"
            for name, found in read.items()
            if found is not None
        )
        for measure in Reference._fields
    }


def _list_settings(record: Record) -> dict[str, str]:
    settings = json.loads(record.identity.settings)
    return {key: format_setting(settings[key]) for key in sorted(settings)}


def _describe_made(made: Made) -> tuple[str, str]:
    """A task: what it read, when and where it ran, and on which commit."""
    row, record = made
    read = _list_inputs(row, _MOST_INPUTS, {} if record is None else record.identity.inputs)
    facts = [f"from {read}"] if read else []
    if record is None:
        return row.name, "; ".join([*facts, "how is not in the store"])
    if record.seconds or record.commit is not None:
        facts.append(f"{record.made} on {record.machine} in {format_seconds(record.seconds)}")
    else:
        facts.append(f"found {record.made} on {record.machine}, and not seen made")
    libraries = [f"{name} {version}" for name, version in sorted(record.libraries.items())]
    facts += [_describe_commit(record), ", ".join([f"ptycho-tasks {record.version}", *libraries])]
    return row.name, "; ".join(filter(None, facts))


def _describe_model(files: ResultFiles) -> str:
    """What the model of a result was made from."""
    trainings = [made.row for made in files.made if made.row.stage == "train"]
    return "; ".join(_list_inputs(row, 3) for row in trainings)


def _list_inputs(row: Row, most: int, digests: Mapping[str, str | None] = {}) -> str:
    read = [
        f"{path} ({role}{f', sha256 {digest}' if (digest := digests.get(role)) else ''})"
        for role, path in row.inputs.items()
    ]
    return ", ".join(read[:most]) + (f" and {len(read) - most} more" if len(read) > most else "")


def _describe_commit(record: Record) -> str:
    if record.commit is None:
        return "git commit not known"
    if not record.commit:
        return "outside of git"
    changes = "with uncommitted changes" if record.is_dirty else "without changes"
    return f"git commit {record.commit} {changes}"
