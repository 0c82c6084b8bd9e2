"""Frames without light, frames that stand twice, and light that changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.physics.forward import share_of_light
from ptycho_tasks.physics.metrics import photon_noise
from ptycho_tasks.scan import evenly_spaced
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.plausibility import describe_hidden, is_by_saturation
from ptycho_tasks.scans.raw_scan import ranges

DARK, LEAST = 0.01, 10.0
"""Light of a dark frame, over what others hold on its good pixels; and photons that these hold
there, at least."""
APART = 0.5
"""Pixels from which on two places are different ones."""
ALIKE, NOISES = 0.7, 3.0
"""Difference of frames at one place, over that of frames at any, and over that of photon noise,
from which on they are not of one place."""
LEAST_SHARED, LEAST_PLACES, SAMPLED = 3, 8, 64
"""Frames of one place, of which fewer may be where positions are rounded; places, to tell what
frames of any differ by; and frames that are looked at for it."""
FAINT = 0.5
"""R-factor of photon noise from which on frames tell too little of each other."""
STEADY = 1.5
"""Factor between the light at the start and at the end from which on it is told."""
NEIGHBOURS, MANY = 6, 16
"""Frames nearest to a frame with which its light is compared, of a scan of so many at least."""
BRIGHTER, OTHERS, DIMMER = 2.0, 1.5, 4.0
"""Times the light of its neighbours but two, which may be as bright, and of four in five frames,
from which on a frame had more light than others: no sample gives any. And times that of a frame
that the dimmest neighbour must hold: a sample may well take light away."""


def check_dark(exam: Examination) -> Iterator[Finding]:
    """Find frames without light."""
    case, census = exam.case, exam.census
    light, expected = census.light, census.expected
    share = light / np.maximum(expected, 1e-12)
    least = DARK * np.median(share[light > 0]) if (light > 0).any() else 0.0
    # What is hidden shows too few photons to tell.
    dark = (light <= 0) | ((share <= least) & (expected > LEAST * census.quantum))
    if not dark.any():
        return
    if dark.all():
        yield Finding("dark frames", "no frame holds light")
        return
    yield Finding(
        "dark frames",
        f"{np.count_nonzero(dark)} of {len(light)} frames hold no light ({ranges_of(dark)})",
        settings={"source.dark_frames": "drop"},
        mended=replace(case, keep=case.keep[~dark[case.keep]]),
    )


def check_hidden(exam: Examination) -> Iterator[Finding]:
    """Find bad pixels that hide nearly all light: of all frames, or of some."""
    case, hidden = exam.case, exam.census.hidden
    if case.is_hidden and case.probe is not None:
        share = share_of_light(case.probe, case.measured)
        is_saturated = is_by_saturation(case.notes)
        told = describe_hidden(share, is_saturated=is_saturated)
        yield Finding("bad pixels", told, is_wrong=not is_saturated)
    if hidden.any() and (exam.census.light > 0).any():
        yield Finding(
            "bad pixels",
            f"they hide nearly all light of {np.count_nonzero(hidden)} of {len(hidden)} frames "
            f"({ranges_of(hidden)})",
            is_wrong=False,
        )


def ranges_of(flags: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str:
    """The numbers of the true ones, in a few words."""
    return ranges(np.flatnonzero(flags))


def check_repeats(exam: Examination) -> Iterator[Finding]:
    """Find frames that stand twice, at different places."""
    case, census = exam.case, exam.census
    same: dict[bytes, list[int]] = defaultdict(list)
    for frame in case.keep.tolist():
        if census.light[frame] > 0 and not census.hidden[frame]:
            same[census.digests[frame]].append(frame)
    repeated = np.zeros(len(case.frames), bool)
    bursts = 0
    for group in same.values():
        if len(group) < 2:
            continue
        apart = np.abs(case.positions[group] - case.positions[group[0]]).max(axis=1) > APART
        repeated[np.array(group)[apart]] = True
        bursts += int(np.count_nonzero(~apart)) - 1
    if repeated.any():
        yield Finding(
            "repeated frames",
            f"{np.count_nonzero(repeated)} frames are copies of others, at other places "
            f"({ranges_of(repeated)})",
            advice="the detector stood still: take them out of the file, with their positions",
            mended=replace(case, keep=case.keep[~repeated[case.keep]]),
        )
    if bursts:
        yield Finding(
            "repeated frames",
            f"{bursts} frames are copies of others at the same place",
            is_wrong=False,
        )


def check_shared_places(exam: Examination) -> Iterator[Finding]:
    """Find frames that are said to be at one place, and differ as frames of any places do."""
    case, census = exam.case, exam.census
    kept = case.keep[~census.hidden[case.keep] & (census.light[case.keep] > 0)]
    scan = np.zeros(len(case.frames)) if case.scan_index is None else case.scan_index
    places = np.column_stack([case.positions, scan])[kept]
    _, group, sizes = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(sizes >= LEAST_SHARED)
    if not len(shared) or len(sizes) < LEAST_PLACES:
        return
    some = kept[evenly_spaced(len(kept), min(SAMPLED, len(kept)))]
    usual = float(np.median(_differ(case.amplitudes(some))))
    apart = np.zeros(len(case.frames), bool)
    for number in shared:
        frames = kept[group.reshape(-1) == number]
        amplitudes = case.amplitudes(frames[:SAMPLED])
        noise = [photon_noise(one / np.sqrt(census.quantum)).r_factor for one in amplitudes]
        least = np.maximum(ALIKE * usual, NOISES * np.array(noise))
        differs = (_differ(amplitudes) > least) & (np.array(noise) < FAINT)
        # One alone may have moved, or be damaged.
        apart[frames] = np.count_nonzero(differs) >= LEAST_SHARED
    if apart.any():
        yield Finding(
            "positions",
            f"{np.count_nonzero(apart)} frames ({ranges_of(apart)}) share places, and "
            "differ as frames of other places do",
            advice="correct these positions in the file, or take the frames out of it",
            mended=replace(case, keep=case.keep[~apart[case.keep]]),
        )


def _differ(amplitudes: NDArray[np.float32]) -> NDArray[np.float64]:
    """(k,) R-factors of (k, N, N) frames to their mean, whatever light each has."""
    known = np.isfinite(amplitudes).all(axis=0)
    shown = amplitudes[:, known].astype(np.float64)
    shown /= np.maximum(shown.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(np.abs(shown - shown.mean(axis=0)).sum(axis=1))


def check_flashes(exam: Examination) -> Iterator[Finding]:
    """Say which frames hold far more or less light than those around them."""
    from scipy.spatial import cKDTree

    case, census = exam.case, exam.census
    frames = case.keep[~census.hidden[case.keep] & (census.light[case.keep] > 0)]
    if len(frames) < MANY:
        return
    light = census.light[frames] / census.expected[frames]
    _, near = cKDTree(case.positions[frames]).query(case.positions[frames], NEIGHBOURS + 1)
    around = np.sort(light[near[:, 1:]], axis=1)
    dimmest, usual, bright = around[:, 0], np.median(around, axis=1), around[:, -3]
    differs = (light > BRIGHTER * bright) & (light > OTHERS * np.quantile(light, 0.8))
    differs |= light * DIMMER < dimmest
    differs &= dimmest * census.expected[frames] > LEAST * DIMMER * census.quantum
    if not differs.any():
        return
    times = light / usual
    worst = int(np.abs(np.log(np.where(differs, times, 1))).argmax())
    which = np.zeros(len(case.frames), bool)
    which[frames[differs]] = True
    yield Finding(
        "light",
        f"{np.count_nonzero(which)} of {len(case.keep)} frames ({ranges_of(which)}) hold far more "
        f"or less light than those around them, frame {frames[worst]} {times[worst]:.3g} times as "
        "much: a shutter or the beam; the backend `unrolled` heeds it",
        is_wrong=False,
    )


def check_light(exam: Examination) -> Iterator[Finding]:
    """Say where the light changes during the scan."""
    light = exam.census.light[exam.case.keep]
    part = len(light) // 5
    if part < 10:
        return
    first, last = (float(np.median(some)) for some in (light[:part], light[-part:]))
    if max(first, last) > STEADY * min(first, last):
        yield Finding(
            "light",
            f"the last fifth of the frames holds {last / first:.2f} times the light of the first: "
            "the beam drifts, or the sample is thicker there",
            is_wrong=False,
        )
