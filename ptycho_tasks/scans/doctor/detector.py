"""Pixels that do not measure: marked, dead, hot, saturated; and values below zero.

Axis letters:  M frames,  N detector pixels along one side,  k frames of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.physics.forward import far_light
from ptycho_tasks.scans.bad_pixels import (
    FEW_FRAMES,
    WARM,
    brightest_around,
    find_dead,
    find_hit,
    middle_of,
)
from ptycho_tasks.scans.bad_pixels import HOT as HIT_TIMES
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.census import Census
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding

HOT = 8.0
"""Times its brightest neighbours is a hot pixel in the middle, where the direct beam falls;
elsewhere `WARM`."""
LEAST_HOT, LEAST_NEAR = 3.0, 3
"""Counts a frame of a hot pixel; and how many of its neighbours are measured."""
DARKEST = 0.02
"""Share of the pixels that are the darkest."""
FLOOR, OWN_FLOOR = 0.15, 0.05
"""Light that all pixels have in common, over all light: of a background; and of the probe alone,
up to which it has none. Right scans of many kinds have 0.1 at most, and hardly any as a rule."""
LEAST_FRAMES = 3
"""To see anything of pixels."""
SHOWN = 4
"""Pixels of single frames that are named."""
FULL, LEAST_FULL = 30.0, 8
"""Counts of a saturated pixel, and how many there are in a sample, at least."""


def check_pixels(exam: Examination) -> Iterator[Finding]:
    """Find pixels that are bad in every frame."""
    case, census = exam.case, exam.census
    read = [note for note in case.notes if "bad pixels" in note or "at zero" in note]
    for doubt in case.doubts:
        if "source.mask_marks" in doubt:
            marks = "bad" if "mask_marks to bad" in doubt else "good"
            yield Finding("bad pixels", doubt, settings={"source.mask_marks": marks})
    guessed = [doubt for doubt in case.doubts if "far brighter" in doubt]
    if guessed:
        told = "; ".join([*read, *guessed])
        yield Finding("bad pixels", told, settings={"source.bad_pixels": "auto"})
    elif read:
        yield Finding("bad pixels", f"left out on reading: {'; '.join(read)}", is_wrong=False)
    if len(case.frames) < LEAST_FRAMES:
        return
    marked = (census.measured <= 0.5 * census.measured.max()) | _always_negative(census)
    marked &= not read
    dead = find_dead(census.total, census.measured, census.quantum) & ~marked
    hot = find_hot(census, case.power) & ~marked
    hot &= census.measured > 0.5 * len(case.frames)
    bad = (marked | dead | hot) & ~case.bad
    if not bad.any():
        return
    if bad.all():
        yield Finding("bad pixels", "all pixels are marked as bad, in all frames")
        return
    kinds = {"marked as bad": marked & bad, "dead": dead & bad, "hot": hot & bad}
    told = "; ".join(f"{describe_pixels(one)} {name}" for name, one in kinds.items() if one.any())
    yield Finding(
        "bad pixels",
        told,
        settings={"source.bad_pixels": "auto"},
        mended=replace(case, bad=case.bad | bad),
    )


def _always_negative(census: Census) -> NDArray[np.bool_]:
    """Pixels that hold a negative number in all frames; none where others do so in some."""
    always, ever = census.highest < 0, census.lowest < 0
    return np.asarray(always & (always == ever).all())


def find_hot(census: Census, power: float) -> NDArray[np.bool_]:
    """(N, N) pixels that never change although they hold counts, or that are brighter than
    their neighbours can be."""
    from scipy.ndimage import convolve

    lowest, highest = (np.maximum(one, 0) ** (2 * power) for one in (census.lowest, census.highest))
    # Without the brightest frame, which a ray may have hit.
    rest = np.maximum(census.total - np.where(census.measured > 0, highest, 0), 0)
    mean = rest / np.maximum(census.measured - 1, 1) / census.quantum
    # Of a few frames, what is brighter in each than its neighbours in any.
    is_few = len(census.light) < FEW_FRAMES
    level, other = (lowest / census.quantum, highest / census.quantum) if is_few else (mean, mean)
    stuck = (census.lowest == census.highest) & (census.measured > 0)
    at_top = census.highest == census.highest.max()
    if np.count_nonzero(at_top) >= LEAST_FULL:
        stuck &= ~at_top  # saturated
    stuck &= (lowest >= LEAST_HOT * census.quantum) & (not is_few)
    around = brightest_around(np.where(stuck, 0, other))
    # What lies alone among pixels that were not measured has nothing to be compared with.
    near = convolve((census.measured > 0).astype(int), np.ones((3, 3), int), mode="constant")
    times = np.full(mean.shape, WARM)
    times[middle_of(mean)] = HOT
    is_hot = (level > times * around) & (level > LEAST_HOT) & (near > LEAST_NEAR)
    return np.asarray(stuck | is_hot)


def check_hits(exam: Examination) -> Iterator[Finding]:
    """Find pixels that hold far more in single frames than they can."""
    case, census = exam.case, exam.census
    highest = np.maximum(census.highest, 0) ** (2 * case.power)
    dead = find_dead(census.total, census.measured, census.quantum)
    unknown = (census.measured == 0) | dead | case.bad
    limits = find_hit(
        np.where(unknown, np.nan, highest), census.total, census.measured, census.quantum
    )
    pixels = np.argwhere(np.isfinite(limits))
    if not len(pixels):
        return
    largest = limits ** (0.5 / case.power)
    values = case.values_of(pixels)
    found = np.argwhere(values > largest[tuple(pixels.T)])
    told = [
        f"({pixels[k, 0]}, {pixels[k, 1]}) of frame {frame} holds "
        f"{values[frame, k] ** (2 * case.power):.4g} counts"
        for frame, k in found[:SHOWN]
    ]
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    yield Finding(
        "hit pixels",
        f"pixel {', '.join(told)}{more}: more than {HIT_TIMES:g} times what its neighbours, and "
        "itself in other frames, ever do; a ray hit it, or it was read wrongly",
        settings={"source.bad_pixels": "auto"},
        mended=replace(case, limits=largest),
    )


def check_shape(exam: Examination) -> Iterator[Finding]:
    """Find frames that are no squares of an even size."""
    shape, N = exam.case.cropped_from, exam.case.size
    if shape is not None:
        yield Finding(
            "frames",
            f"they have {shape[0]} x {shape[1]} pixels, and must be squares of an even size",
            settings={"source.crop": N},
        )


def check_saturation(exam: Examination) -> Iterator[Finding]:
    """Find frames whose brightest pixels are cut off at one value."""
    case = exam.case
    values = case.sample[np.isfinite(case.sample)]
    top = float(values.max(initial=0))
    count = int(np.count_nonzero(values == top))
    if top ** (2 * case.power) < FULL or count < LEAST_FULL:
        return
    near = np.count_nonzero((values > 0.8 * top) & (values < top))
    # A smooth histogram of whole numbers has as many at the top as at each value below it.
    if count <= 5 * near / max(0.2 * top, 1) + LEAST_FULL:
        return
    counts = round(top ** (2 * case.power))
    share = count / len(case.sample)
    yield Finding(
        "saturated",
        f"{share:.3g} pixels a frame are at {counts} counts, and none above",
        settings={"source.saturated": counts},
        mended=replace(case, saturated=top),
    )


def check_negative(exam: Examination) -> Iterator[Finding]:
    """Find counts below zero."""
    values = exam.case.sample
    below = np.isfinite(values) & (values < 0)
    if below.any():
        share = 100 * below.mean()
        yield Finding(
            "negative values",
            f"{share:.2g} % of the pixels are below zero, {np.nanmin(values):.3g} at least: a "
            "background was taken off, and they count as zero",
            settings={"source.negative_counts": "clip"},
        )


def check_background(exam: Examination) -> Iterator[Finding]:
    """Find light that is the same in all pixels, where the probe's own far field has none."""
    case = exam.case
    if case.probe is None or case.is_probe_estimated or case.is_hidden:
        return
    good = case.measured > 0
    if find_floor(far_light(case.probe), good) > OWN_FLOOR:
        return
    share = find_floor(case.mean, good)
    if share > FLOOR:
        # An object as fine as a pixel scatters as evenly, but other speckles in each frame.
        share *= _find_steady(case, good & (case.mean <= np.quantile(case.mean[good], DARKEST)))
    if share > FLOOR:
        yield Finding(
            "background",
            f"{100 * share:.0f} % of the light is the same in all pixels, about "
            f"{share * case.mean[good].mean():.3g} counts in each of a frame",
            advice="take a dark image off the counts in the file, and set source.negative_counts "
            "to clip; the backend unrolled heeds what is left",
        )


def _find_steady(case: Case, pixels: NDArray[np.bool_]) -> float:
    """Which share of the light on some (N, N) pixels is the same in all frames: what varies of it
    beyond the noise of counts is not, as the standard deviation of speckles is their mean."""
    counts = case.turn(np.maximum(case.sample, 0) ** (2 * case.power))[:, pixels]
    if len(counts) < LEAST_FRAMES:
        return 1.0
    mean = np.nanmean(counts, axis=0)
    varies = np.nanvar(counts, axis=0, ddof=1) - mean
    return 1 - math.sqrt(min(max(float(varies.mean() / np.square(mean).mean()), 0.0), 1.0))


def find_floor(light: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """Which share of the (N, N) light on good pixels all of them have in common."""
    total = float(light[good].mean()) if good.any() else 0.0
    return float(np.quantile(light[good], DARKEST)) / total if total > 0 else 0.0


def describe_pixels(pixels: NDArray[np.bool_]) -> str:
    """Which pixels of an (N, N) bool these are, in a few words."""
    count, N = int(pixels.sum()), len(pixels)
    for axis, name in ((0, "columns"), (1, "rows")):
        lines = np.flatnonzero(pixels.all(axis=axis))
        if len(lines) and count == N * len(lines):
            return f"{count} pixels ({name} {_ranges(lines)})"
    y, x = np.nonzero(pixels)
    if count <= 4:
        return "pixel " + ", ".join(f"({i}, {j})" for i, j in zip(y, x, strict=True))
    return f"{count} pixels (rows {y.min()}-{y.max()}, columns {x.min()}-{x.max()})"


def _ranges(numbers: NDArray[np.int64]) -> str:
    from ptycho_tasks.scans.raw_scan import ranges

    return ranges(numbers)
