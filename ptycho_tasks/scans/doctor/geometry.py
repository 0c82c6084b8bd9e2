"""Axes of the positions: swapped, mirrored, rotated, scaled; found by trials.

Mirrored along both axes, positions explain the frames as well as the probe's twin does,
conj(P(-r)): where the probe is its own twin, as a flat disc is, the data cannot tell the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import Trial
from ptycho_tasks.physics.metrics import find_beyond
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.drift import find_drift
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.orientation import ORIENTATIONS, TWIN, Orientation
from ptycho_tasks.scans.doctor.trials import Trials, is_better, misfit

BETTER, CONFIRMED = 0.97, 0.98
"""R-factor with another orientation, over that as given, at most; and on another patch."""
OWN_TWIN, BETTER_THAN_TWIN = 0.98, 0.85
"""Overlap of a probe with its twin from which on the two are the same; and where they are not, the
R-factor with both axes mirrored, over that as given, at most."""
OWN_IMAGE = 0.995
"""Overlap of a probe with its mirror image from which on the two are the same."""
BETTER_ORDER = 0.9
"""R-factor with the frames in reverse order, over that with the best orientation, at most."""
SAME = 1.01
"""Misfits of two orientations, over each other, that are the same."""
BETTER_AXES, CONFIRMED_AXES = 0.96, 0.975
"""The same of rotated and scaled axes, of which many are tried."""
BETTER_DRIFT = 0.95
"""Misfit with a drift, over that with other axes, at most."""
BETTER_THAN_PROBE, LIKELY = 0.95, 2.0
"""R-factor beyond noise with other positions, over that with a fitted probe, at most; and standard
errors by which the few frames must be explained better that took no part."""
LEAST_AXES = 36
"""Frames of a scan whose axes are tried: of fewer, too few take no part and confirm."""
LEAST_DEGREES, LEAST_STRETCH = 1.0, 0.02
"""Less rotation and less stretch is not told."""
LEAST_SHIFT = 0.5
"""Pixels by which the frame that moves most must move: an object and steps that are not quite right
explain less."""
DEGREES = tuple(range(-42, 43, 6))
STRETCHES = 0.7, 0.85, 1.18, 1.4
"""Rotations and stretches that are tried on a small patch."""
STEPS = (2.0, 0.04), (1.0, 0.02), (0.5, 0.01), (0.25, 0.005)
"""Degrees and logarithms of the stretch by which a search goes on."""


def check_orientation(exam: Examination) -> Iterator[Finding]:
    """Find swapped and mirrored axes."""
    case, trials = exam.case, exam.trials
    if trials is None or case.is_probe_estimated or not case.is_spread:
        return
    given = Orientation()
    others = {
        one: case.with_positions(one.apply(case.positions))
        for one in list_distinct(case.probe)
        if one != given
    }
    takes = {given: case, **trials.keep_likely(others, case)}
    tried = {one: trials.run(take) for one, take in takes.items()}
    turned = _find_turned_frames(case, trials, min(tried.values(), key=misfit))
    if turned is not None:
        yield exam.compare(turned)
        return
    reversed_order = _find_reversed_order(case, trials, min(tried.values(), key=misfit))
    if reversed_order is not None:
        yield exam.compare(reversed_order)
        return
    ranked = sorted(takes, key=lambda one: misfit(tried[one]))
    same = [one for one in ranked if misfit(tried[one]) <= SAME * misfit(tried[ranked[0]])]
    best = min(same, key=lambda one: one.changes)
    ratio = BETTER_THAN_TWIN if best == TWIN else BETTER
    if best == given or not is_better(tried[given], tried[best], ratio):
        yield from _say_undecided(tried, [one for one in same if one != given])
        return
    if not trials.confirm(case, takes[best], CONFIRMED):
        return
    twin = [one for one in same if one != best]
    advice = f"as well: {', '.join(map(str, twin))}; the data cannot tell" if twin else ""
    if is_own_twin(case.probe):
        advice = f"as well: {best.mirrored}; the data cannot tell"
    if best == TWIN:
        advice = "or the probe is its twin, conj(P(-r)), as one of the other defocus is"
    yield Finding(
        "orientation",
        f"the positions are {best}",
        settings={"source.orientation": dict(best.settings)},
        advice=advice,
        mended=takes[best],
        r_given=tried[given].r_factor,
        r_mended=tried[best].r_factor,
    )


def _find_turned_frames(case: Case, trials: Trials, best: Trial) -> Finding | None:
    """Frames whose own axes are swapped or mirrored.

    They suit swapped or mirrored positions too, but for a probe whose axes are as well: with a
    probe that is its own image, frames and positions that are turned are the same.
    """
    ways = [one for one in ORIENTATIONS if one.changes == 1 and not is_own_image(case.probe, one)]
    takes = trials.keep_likely({one: replace(case, frame_axes=one) for one in ways}, case)
    if not takes:
        return None
    way = min(takes, key=lambda one: misfit(trials.run(takes[one])))
    if not is_better(best, trials.run(takes[way]), BETTER):
        return None
    if not trials.confirm(case, takes[way], CONFIRMED):
        return None
    mend = "swapaxes(frames, 1, 2)" if way.swap else f"flip(frames, {2 if way.flip_x else 1})"
    then = "" if way.swap else ", then numpy.roll by 1"
    return Finding(
        "orientation",
        f"the axes of the frames are {way}",
        advice=f"no setting mends it: numpy.{mend}{then}, in the file",
        mended=takes[way],
    )


def _find_reversed_order(case: Case, trials: Trials, best: Trial) -> Finding | None:
    """Frames in reverse order; on a regular raster as well positions with both axes mirrored."""
    mended = case.with_positions(case.positions[::-1])
    if not trials.keep_likely({"reversed": mended}, case):
        return None
    if not is_better(best, trials.run(mended), BETTER_ORDER):
        return None
    if not trials.confirm(case, mended, CONFIRMED):
        return None
    return Finding(
        "order",
        "the frames are in the reverse order of the positions",
        advice="reverse either (numpy.flip(positions, 0)), in the file, or in a CSV file with "
        "columns frame, x and y that source.positions names",
        mended=mended,
    )


def is_own_twin(probe: NDArray[np.complex64] | None) -> bool:
    """Whether the first of (P, N, N) modes is conj(P(-r)), but for a phase and a shift."""
    if probe is None:
        return False
    far = np.fft.fft2(probe[0])
    # The twin of P has the far field conj(F): their product is that of the overlaps of all shifts.
    overlaps = np.abs(np.fft.ifft2(far * far))
    return bool(overlaps.max() >= OWN_TWIN * np.square(np.abs(probe[0])).sum())


def is_own_image(probe: NDArray[np.complex64] | None, way: Orientation) -> bool:
    """Whether the first of (P, N, N) modes is itself turned, but for a phase and a shift."""
    if probe is None:
        return False
    turned = way.apply_to_frames(probe[0].astype(np.complex128))
    overlaps = np.abs(np.fft.ifft2(np.fft.fft2(probe[0]) * np.fft.fft2(turned).conj()))
    return bool(overlaps.max() >= OWN_IMAGE * np.square(np.abs(probe[0])).sum())


def list_distinct(probe: NDArray[np.complex64] | None) -> list[Orientation]:
    """The orientations that data tell apart, the given one first."""
    hidden = is_own_twin(probe)  # the same as another one, with x mirrored or not
    return [one for one in ORIENTATIONS if not (hidden and one.flip_y)]


def _say_undecided(
    tried: Mapping[Orientation, Trial], same: list[Orientation]
) -> Iterator[Finding]:
    """Say which orientations explain the frames as well as the given one."""
    if not same:
        return
    names = "; ".join(map(str, same))
    found = max(tried[one].r_factor for one in same)
    yield Finding(
        "orientation",
        f"R {tried[Orientation()].r_factor:.3f} as given, and {found:.3f} where the positions are "
        f"{names}: the data do not tell them apart",
        is_wrong=False,
    )


@dataclass(frozen=True)
class Axes:
    """Axes to which positions are turned and stretched."""

    degrees: float = 0.0
    """Rotation from x to y: x' = x cos - y sin, y' = x sin + y cos."""
    log_y: float = 0.0
    log_x: float = 0.0
    """Logarithms of what y and x are then multiplied by."""

    def apply(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M, 2) other positions (y, x), about the same middle."""
        middle = positions.mean(axis=0)
        angle = math.radians(self.degrees)
        y, x = (positions - middle).T
        turned = np.stack(
            [x * math.sin(angle) + y * math.cos(angle), x * math.cos(angle) - y * math.sin(angle)],
            axis=1,
        )
        stretched: NDArray[np.float64] = turned * np.exp([self.log_y, self.log_x]) + middle
        return stretched

    def step(self, degrees: float, stretch: float) -> list[Axes]:
        """Those a step beside."""
        return [
            replace(self, **{name: getattr(self, name) + sign * size})
            for name, size in (("degrees", degrees), ("log_y", stretch), ("log_x", stretch))
            for sign in (-1, 1)
        ]


def check_axes(exam: Examination) -> Iterator[Finding]:
    """Find positions that are rotated, stretched along an axis, or drift from frame to frame."""
    case, trials = exam.case, exam.trials
    if trials is None or case.is_probe_estimated or (np.ptp(case.places, axis=0) <= 0).any():
        return
    if len(case.keep) < LEAST_AXES:
        return
    found = _choose(_find_axes(case, trials), find_drift(case, trials), trials)
    if found is not None:
        yield _doubt_probe(case, found, trials)


def _find_axes(case: Case, trials: Trials) -> Finding | None:
    def take(axes: Axes) -> Case:
        return case.with_positions(axes.apply(case.positions))

    best = _search_axes(take, trials)
    is_turned = abs(best.degrees) >= LEAST_DEGREES
    is_stretched = max(abs(best.log_y), abs(best.log_x)) >= LEAST_STRETCH
    mended = take(best)
    shifts = np.hypot(*(mended.places - case.places).T)
    if not (is_turned or is_stretched) or shifts.max() < LEAST_SHIFT:
        return None
    given, tried = trials.run(case), trials.run(mended)
    if not is_better(given, tried, BETTER_AXES):
        return None
    if not trials.confirm(case, mended, CONFIRMED_AXES):
        return None
    return Finding(
        "axes",
        _describe(best, is_turned=is_turned, is_stretched=is_stretched),
        settings=_axes_settings(case, best, is_stretched=is_stretched),
        mended=mended,
        r_given=given.r_factor,
        r_mended=tried.r_factor,
    )


def _choose(axes: Finding | None, drift: Finding | None, trials: Trials) -> Finding | None:
    """What explains the frames better; of two that do so alike, the one with a setting."""
    if axes is None or drift is None or axes.mended is None or drift.mended is None:
        return axes or drift
    one, other = (trials.run(case) for case in (axes.mended, drift.mended))
    if misfit(other) < BETTER_DRIFT * misfit(one):
        return drift
    is_same = misfit(other) <= SAME * misfit(one)
    return replace(axes, advice=f"or {drift.text}, which explains as much") if is_same else axes


def _doubt_probe(case: Case, found: Finding, trials: Trials) -> Finding:
    """The finding; or a note, where a probe that is not the scan's explains the frames as well."""
    if case.probe is None or found.mended is None:
        return found
    fitted = trials.run_modes(case, len(case.probe), is_whole=True)
    moved = trials.run_modes(found.mended, 0, is_whole=True)
    noise = trials.noise(case)
    least, most = (find_beyond(one.r_factor, noise) for one in (moved, fitted))
    if least < BETTER_THAN_PROBE * most and is_better(fitted, moved, 1.0, LIKELY):
        return found
    return Finding(
        found.kind,
        f"either {found.text}, or the probe is not the scan's: of frames that took no part R is "
        f"{moved.r_factor:.3f} with other positions, {fitted.r_factor:.3f} with a fitted probe",
        is_wrong=False,
        advice="correct the probe (turn it as the frames are turned) or set training.probe to "
        "refined, then check again",
    )


MOST_TRIALS = 36
"""Of a search, on the whole patch."""
PAYS = 0.97
"""Misfit of the first step of a search, over that as given, at most."""


def _search_axes(take: Callable[[Axes], Case], trials: Trials) -> Axes:
    """The axes with the least misfit: far ones on a small patch, then step by step."""
    far = [Axes(float(degrees)) for degrees in DEGREES]
    for stretch in map(math.log, STRETCHES):
        far += [Axes(0.0, stretch, stretch), Axes(0.0, stretch), Axes(0.0, 0.0, stretch)]
    if trials.is_large:
        far = []
    start = min([Axes(), *far], key=lambda axes: misfit(trials.run_small(take(axes))))
    known: dict[Axes, float] = {}

    def measure(axes: Axes) -> float:
        if axes not in known:
            known[axes] = misfit(trials.run(take(axes)))
        return known[axes]

    best = min((Axes(), start), key=measure)
    # Axes that are right are left with the first step that leads nowhere.
    for degrees, stretch in STEPS[1:] if best == Axes() else STEPS:
        while len(known) < MOST_TRIALS:
            found = min(best.step(degrees, stretch), key=measure)
            if measure(found) >= (PAYS if best == Axes() else 1.0) * measure(best):
                break
            best = found
        if best == Axes():
            break
    return best


def _describe(axes: Axes, *, is_turned: bool, is_stretched: bool) -> str:
    parts = [f"rotated by about {-axes.degrees:.1f} degrees"] if is_turned else []
    if is_stretched:
        y, x = (math.exp(-part) for part in (axes.log_y, axes.log_x))
        parts.append(f"stretched by about {x:.3f} along x and {y:.3f} along y")
    return f"the positions are {' and '.join(parts)}"


def _is_even(axes: Axes) -> bool:
    return abs(axes.log_y - axes.log_x) < LEAST_STRETCH


def _axes_settings(case: Case, axes: Axes, *, is_stretched: bool) -> dict[str, Any]:
    parts = {"rotate_deg": round(axes.degrees, 2)} if abs(axes.degrees) >= LEAST_DEGREES else {}
    even = (axes.log_y + axes.log_x) / 2
    if is_stretched and _is_even(axes) and case.has_metres and case.pixel_size_m is not None:
        pixel = float(np.mean(case.pixel_size_m)) / math.exp(even)
        size = {"source.pixel_size_m": float(f"{pixel:.4g}")}
        return size | ({"source.orientation": parts} if parts else {})
    if is_stretched:
        scales = (axes.log_y, axes.log_x) if not _is_even(axes) else (even, even)
        parts |= {
            f"scale_{name}": round(math.exp(log), 3) for name, log in zip("yx", scales, strict=True)
        }
    return {"source.orientation": parts}
