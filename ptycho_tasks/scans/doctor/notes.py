"""What is worth to know of a scan: flux, overlap, resolution, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ptycho_tasks.physics.displacement import MISPLACED
from ptycho_tasks.physics.forward import count_all_light
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.spots import SPARSE, find_spacing, spot_radius
from ptycho_tasks.scans.doctor.trials import is_poor
from ptycho_tasks.system.memory import format_gb

FLUX = 4.0
"""Factor between the flux of probe and frames from which on the probe is scaled."""
MODES, PAYS = 5, 0.9
"""Incoherent modes that are tried, and R-factor with them, over that without, at most."""
WRONG = 3.0
"""R-factor with the scan's own probe, over that with a fitted one, from which on it is wrong."""
WRONG_PLACES = 0.3
"""Pixels from which on positions are wrong."""
LEAST_SHARE = 0.02
"""Of the light, of a mode that is worth its time: a quick fit gives weaker ones to noise."""
SEEN = 1.0
"""Counts of a pixel in all frames that show the same place: the light tells something there."""


def check_probe(exam: Examination) -> Iterator[Finding]:
    """Say where a probe is missing, or of another flux."""
    case = exam.case
    if case.probe is None:
        yield Finding(
            "probe",
            "there is none, or an estimate only, so that centre, units and scale are not tried; "
            "the backend `unrolled` estimates and fits one",
            is_wrong=False,
            settings={"source.probe": "estimate"},
        )
        return
    flux = float(np.square(np.abs(case.probe), dtype=np.float64).sum())
    counts = float((case.mean * case.measured).sum())
    counts = count_all_light(counts, case.probe, case.measured)
    if counts > 0 and not 1 / FLUX < flux / counts < FLUX:
        yield Finding(
            "flux",
            f"the probe's is {flux:.3g}, a frame holds {counts:.3g} counts; the probe is scaled to "
            "the frames",
            is_wrong=False,
        )


def check_coherence(exam: Examination) -> Iterator[Finding]:
    """Say where a fitted probe, or more incoherent modes of one, explain the frames better."""
    case, trials = exam.case, exam.trials
    if trials is None or trials.is_large or case.probe is None or case.is_probe_estimated:
        return
    given, own = trials.run_modes(case, 0).r_factor, len(case.probe)
    if PAYS * given < trials.noise(case):
        return  # no probe explains frames that it has not seen better than photon noise lets it
    many = trials.run_modes(case, max(MODES, own))
    best = many.r_factor
    if given > WRONG * best:  # steps with its own may not have led far enough
        given = min(given, trials.run_long(case).r_factor)
    if best > PAYS * given:
        return
    fitted = trials.run_modes(case, own).r_factor
    told, setting = "a fitted probe pays", ""
    if best <= PAYS * fitted:
        modes = max(own + 1, sum(share >= LEAST_SHARE for share in many.shares))
        told, setting = f"{modes} incoherent modes pay", f" and training.probe_modes to {modes}"
    elif fitted <= PAYS * given:
        best = fitted
    else:
        return
    yield Finding(
        "probe",
        f"{told}: R {given:.3f} with the scan's own probe, {best:.3f} with that",
        is_wrong=given > WRONG * best and not trials.is_narrow,
        advice=f"set training.probe to refined{setting}",
    )


def check_displacement(exam: Examination) -> Iterator[Finding]:
    """Say where frames would fit the object better elsewhere: it gives way to positions that are
    off, and explains the frames about as well."""
    case, trials = exam.case, exam.trials
    if trials is None or case.probe is None or case.is_probe_estimated or case.is_hidden:
        return
    kinds = {finding.kind for finding in exam.findings}
    if kinds & {"positions", "drift"}:
        return
    found = trials.run_long(case)  # after fewer steps an object may give way still
    pixels = found.displacement
    if "probe" in kinds:  # what a fitted one leaves is not the probe's
        pixels = min(pixels, trials.run_modes(case, max(MODES, len(case.probe))).displacement)
    if MISPLACED < pixels < math.inf and found.r_factor < 1:
        yield Finding(
            "positions",
            f"frames fit the object better {pixels:.2g} pixels from them (root mean square): they "
            "are not quite right, or the probe is not",
            is_wrong=pixels > WRONG_PLACES,
            advice="set training.probe, training.positions or both to refined (backend unrolled)",
        )


def check_other_light(exam: Examination) -> Iterator[Finding]:
    """Say how much of the light is not the probe's, where that was found beside the object."""
    case, trials = exam.case, exam.trials
    if trials is None or case.probe is None or case.is_probe_estimated or case.is_hidden:
        return
    share = trials.run_long(case).background
    if share > 0 and all(finding.kind != "background" for finding in exam.findings):
        yield Finding(
            "background",
            f"about {100 * share:.2g} % of the light is in all frames alike and not the probe's; "
            "the backend unrolled heeds it; for others, take a dark image off the counts",
            is_wrong=False,
        )


def check_rest(exam: Examination) -> Iterator[Finding]:
    """Say where R stays far above that of photon noise, and nothing that was found says why."""
    case, trials = exam.case, exam.trials
    if trials is None or case.probe is None or case.is_probe_estimated or case.is_hidden:
        return
    if any(finding.is_wrong and finding.mended is None for finding in exam.findings):
        return  # what is left of it says nothing more
    noise = trials.noise(case)
    modes = max(MODES, len(case.probe))
    found = trials.run(case)
    if not is_poor(found, noise) or not is_poor(trials.run_long(case), noise):
        return
    if not is_poor(trials.run_modes(case, modes), noise):
        return
    yield Finding(
        "unexplained",
        f"R is {found.r_factor:.3f}, where photon noise alone gives about {noise:.2g}, and neither "
        "other positions nor a fitted probe explains it",
        advice="look at the order and the steps of the positions, a background, a beam that moves",
    )


def check_overlap(exam: Examination) -> Iterator[Finding]:
    """Say how much neighbours share of the spot."""
    case = exam.case
    if case.probe is None or not case.is_spread:
        return
    ratio = find_spacing(case.places) / spot_radius(case.probe)
    if ratio <= SPARSE:
        # Of two discs with this root mean square radius.
        share = max(0.0, 1 - ratio / (2 * np.sqrt(2)))
        yield Finding(
            "overlap",
            f"neighbours share {100 * share:.0f} % of the spot's width",
            is_wrong=False,
        )


def check_resolution(exam: Examination) -> Iterator[Finding]:
    """Estimate how fine the result can be, by how far out there is light."""
    case, N = exam.case, exam.case.size
    if case.probe is None or not case.is_spread:
        return
    spacing, radius = find_spacing(case.places), spot_radius(case.probe)
    looks = max(1.0, 2 * np.pi * radius**2 / max(spacing, 1e-12) ** 2)
    y, x = np.indices((N, N)) - N // 2
    ring = np.rint(np.hypot(y, x)).astype(int).ravel()
    profile = np.bincount(ring, case.mean.ravel()) / np.maximum(np.bincount(ring), 1)
    lit = np.flatnonzero(profile[1 : N // 2] * looks >= SEEN)
    if not len(lit):
        return
    pixels = N / (2 * (lit[-1] + 1))
    size = case.pixel_size_m
    metres = f" ({pixels * float(np.mean(size)) * 1e9:.3g} nm)" if size else ""
    yield Finding(
        "resolution",
        f"light tells of half periods down to about {pixels:.2g} pixels{metres}",
        is_wrong=False,
    )


def check_memory(exam: Examination) -> Iterator[Finding]:
    """Say what a reconstruction takes."""
    case = exam.case
    rows, columns = np.ptp(case.places, axis=0) + case.size
    frames = 4.0 * len(case.keep) * case.size**2
    yield Finding(
        "memory",
        f"frames take {format_gb(frames)}, an object of {rows:.0f} x {columns:.0f} pixels "
        f"{format_gb(8.0 * rows * columns)}",
        is_wrong=False,
    )
