"""Positions: all at one place, far away, of several scans, in another unit, too far apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.geometry import list_distinct
from ptycho_tasks.scans.doctor.orientation import AS_GIVEN, Orientation
from ptycho_tasks.scans.doctor.spots import DENSE, SPARSE, find_spacing, spot_radius
from ptycho_tasks.scans.doctor.trials import Trials, is_poor, misfit
from ptycho_tasks.scans.raw_scan import METRES, ranges

FEW = 0.05
"""Of all frames: what lies apart and is no more was hardly meant."""
LIKELY = 0.06, 2.2
"""The same of the scales that are tried."""
RATIO = 1.12
"""From one scale that is tried to the next."""
FINALISTS, AROUND = 4, 0.035
"""Takes that are tried again on finer frames; and how far to either side of their scales."""
FOUND = 0.8
"""R-factor with a scale, over the median of those with others, or in other orientations, at
most."""
EDGE = 3
"""Of the scales that are tried, how many of the largest tell nothing alone."""
SMALLEST_PIXEL, LARGEST_PIXEL = 5e-10, 5e-7
"""Metres of an object pixel."""


def check_places(exam: Examination) -> Iterator[Finding]:
    """Find positions of one place only, or a few that are far away."""
    case = exam.case
    places = case.places
    if len(places) < 2:
        return
    if not np.ptp(places, axis=0).any():
        yield Finding(
            "positions",
            f"all {len(places)} frames are at one place, (y, x) = ({places[0, 0]:g}, "
            f"{places[0, 1]:g})",
            advice="there is nothing to solve without positions: put them into the file",
        )
        return
    stray = find_strays(places, case.size)
    if stray.any():
        frames = case.keep[stray]
        wide, narrow = (
            " x ".join(f"{side:.0f}" for side in np.ptp(some, axis=0) + case.size)
            for some in (places, places[~stray])
        )
        yield Finding(
            "stray positions",
            f"frame{'s' if len(frames) > 1 else ''} {ranges(frames)} lie far from all others, and "
            f"make the object {wide} pixels instead of {narrow}",
            settings={"source.stray_frames": "drop"},
            mended=replace(case, keep=case.keep[~stray]),
        )


def find_strays(places: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """(K,) frames of (K, 2) places that are a few, and far from the bulk in the scan's own size."""
    low, high = np.quantile(places, (0.05, 0.95), axis=0)
    margin = np.maximum(high - low, 1e-12) + size
    # In another unit, a frame's size says nothing.
    if (high - low).max() < 1:
        margin = 2 * (high - low).max() + np.zeros(2)
    apart = ((places < low - margin) | (places > high + margin)).any(axis=1)
    return apart if np.count_nonzero(apart) <= max(1.0, FEW * len(places)) else np.zeros_like(apart)


def check_scans(exam: Examination) -> Iterator[Finding]:
    """Find several scans in one."""
    case = exam.case
    if case.scan_index is None:
        return
    values, counts = np.unique(case.scan_index[case.keep], return_counts=True)
    if len(values) < 2 or len(values) == len(case.keep):
        return
    first = values[int(np.argmax(counts))]
    yield Finding(
        "several scans",
        f"scan_index names {len(values)} scans ({ranges(values)}), which would share one object",
        settings={"source.scan_index": int(first)},
        advice="give each scan a line of source.files with its scan_index to have them all",
        mended=replace(case, keep=case.keep[case.scan_index[case.keep] == first]),
    )


def check_units(exam: Examination) -> Iterator[Finding]:
    """Find positions that cannot be in pixels, by the spot and what neighbours share of it."""
    case = exam.case
    places = case.places
    if case.probe is None or case.is_probe_estimated or not case.is_spread:
        return
    radius, spacing = spot_radius(case.probe), find_spacing(places)
    if DENSE <= spacing / radius <= SPARSE:
        return
    told = (
        f"neighbours are {spacing:.3g} pixels apart, and the spot's radius is {radius:.3g} pixels"
    )
    scale = _known_scale(case, spacing / radius)
    if scale is None and exam.trials is not None:
        scale = _search_scale(case, exam.trials, radius / spacing)
        # Frames that share nothing are explained with any positions: what is found must be, too.
        if scale is not None and spacing > radius and not _explains(exam, scale):
            scale = None
    if scale is None and spacing > radius:
        yield Finding("overlap", f"{told}: too little overlap to be solved, or another unit",
                      advice="set source.units and source.pixel_size_m if they are in a unit of "
                      "length; else scan with smaller steps")  # fmt: skip
        return
    advice = "" if scale else "set source.pixel_size_m to the size of an object pixel"
    settings = _settings(case, scale, radius / spacing)
    mended = case.with_positions(case.positions * scale) if scale else None
    yield exam.compare(Finding("units", f"{told}: the positions are in another unit than pixels",
                               settings=settings, advice=advice, mended=mended))  # fmt: skip


def _explains(exam: Examination, scale: float) -> bool:
    """Whether frames are explained with positions of another scale, in one orientation and not in
    the others: where all do so alike, frames that lie upon each other are explained anyhow."""
    trials, case = exam.trials, exam.case
    assert trials is not None
    takes = (_scale(case, way, scale) for way in list_distinct(case.probe))
    best, *others = sorted((trials.run(take) for take in takes), key=lambda one: one.r_factor)
    is_told = best.r_factor < FOUND * np.median([one.r_factor for one in others])
    return is_told and not is_poor(best, trials.noise(case))


def _known_scale(case: Case, given: float) -> float | None:
    """Pixels a unit, where the size of a pixel is known and a unit makes the overlap likely."""
    if case.pixel_size_m is None:
        return None
    scales = [metres / float(np.mean(case.pixel_size_m)) for metres in METRES.values()]
    likely = [scale for scale in scales if DENSE <= given * scale <= SPARSE]
    return likely[0] if likely else None


def _search_scale(case: Case, trials: Trials, radii: float) -> float | None:
    """Pixels a unit by trial; None where none stands out."""
    least, most = LIKELY
    count = int(np.ceil(np.log(most / least) / np.log(RATIO))) + 1
    scales = radii * np.geomspace(least, most, count)
    tried = _try_scales(case, trials, [AS_GIVEN], scales)
    # A scale shows with the right orientation only; otherwise the largest ones, with which frames
    # hardly overlap, explain most, in all orientations alike.
    is_inside = int(np.argmin(tried)) < count - EDGE
    ways, ratios = [AS_GIVEN], tried / np.median(tried)
    if not (is_inside and ratios.min() < FOUND):
        ways = list_distinct(case.probe)
        tried = _try_scales(case, trials, ways, scales)
        ratios = tried / np.median(tried, axis=0)
    if not ratios.min() < FOUND:
        return None
    best = np.argsort(ratios, axis=None)[:FINALISTS]
    takes = [
        (ways[int(row)], float(scales[column]) * part)
        for row, column in zip(*np.unravel_index(best, ratios.shape), strict=True)
        for part in (1 - AROUND, 1.0, 1 + AROUND)
    ]
    way, scale = min(takes, key=lambda take: misfit(trials.run_small(_scale(case, *take))))
    for step in (0.03, 0.015, 0.008):
        around = [scale * (1 + part * step) for part in (-1, 0, 1)]
        scale = min(around, key=lambda one: misfit(trials.run(_scale(case, way, one))))
    return scale


def _try_scales(
    case: Case, trials: Trials, ways: list[Orientation], scales: NDArray[np.float64]
) -> NDArray[np.float64]:
    """R-factors with each of the scales, a row for each orientation."""
    found = [
        [trials.run_coarse(_scale(case, way, scale)).r_factor for scale in scales] for way in ways
    ]
    return np.nan_to_num(np.array(found, dtype=np.float64), nan=np.inf)


def _scale(case: Case, way: Orientation, scale: float) -> Case:
    return case.with_positions(way.apply(case.positions) * scale)


def _settings(case: Case, scale: float | None, radii: float) -> dict[str, object]:
    """Unit and size of a pixel that make so many pixels of a unit."""
    if case.pixel_size_m is not None and scale is not None:
        pixel = float(np.mean(case.pixel_size_m))
        for name, metres in METRES.items():
            if np.isclose(metres / pixel, scale, rtol=1e-6):
                return {"source.units": name}
        if case.has_metres:
            return {"source.pixel_size_m": _rounded(pixel / scale)}
    likely = scale or 0.4 * radii
    for name, metres in METRES.items():
        if SMALLEST_PIXEL <= metres / likely <= LARGEST_PIXEL:
            settings: dict[str, object] = {"source.units": name}
            if scale is not None:
                settings["source.pixel_size_m"] = _rounded(metres / scale)
            return settings
    return {}


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")
