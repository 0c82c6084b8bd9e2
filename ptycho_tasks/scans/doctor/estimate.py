"""Orientation of a scan without a probe, by an estimate of one.

The mean frame gives the modulus of the probe's far field; of its phase the defocus is searched,
together with the orientation. Mirrored along both axes, with the other defocus, positions explain
the frames as well: those are not told apart. What is off centre is a tilt of the probe, and what is
stretched nearly one of another defocus: neither is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.orientation import ORIENTATIONS, Orientation
from ptycho_tasks.scans.doctor.spots import spot_radius
from ptycho_tasks.scans.doctor.trials import LEAST_FRAMES, Trials, is_better, misfit
from ptycho_tasks.scans.illumination import estimate_probe

BETTER, CONFIRMED = 0.9, 0.93
"""R-factor with another orientation, over that as given, at most; and on another patch."""
LARGEST, RATIO = 0.22, 1.15
"""Root mean square radius of the largest spot that is tried, over N; and one over the next."""
FINE = 0.95, 1.0, 1.05
"""Of the best radius, that are tried on a whole patch."""


def check_estimate(exam: Examination) -> Iterator[Finding]:
    """Estimate a probe where there is none, and find swapped and mirrored axes by it."""
    case = exam.case
    is_enough = len(case.keep) >= LEAST_FRAMES and (np.ptp(case.places, axis=0) > 0).all()
    if exam.try_scan is None or case.probe is not None or not is_enough or not case.mean.any():
        return
    trials = Trials.plan(exam.try_scan, case, exam.census.quantum)
    takes = {
        one: _focus(case.with_positions(one.apply(case.positions)), trials)
        for one in ORIENTATIONS
        if not one.flip_y  # the same as another one, with x mirrored or not
    }
    given = takes[Orientation()]
    best = min(takes, key=lambda one: misfit(trials.run(takes[one])))
    before, after = trials.run(given), trials.run(takes[best])
    is_wrong = is_better(before, after, BETTER) and trials.confirm(given, takes[best], CONFIRMED)
    if not is_wrong:
        yield Finding(
            "probe",
            f"with an estimate of it, R is {before.r_factor:.3f}; no orientation is better",
            is_wrong=False,
            mended=given,
        )
        return
    yield Finding(
        "orientation",
        f"the positions are {best}, by an estimate of the probe",
        settings={"source.orientation": dict(best.settings)},
        advice=f"as well: {best.mirrored}; the data cannot tell",
        mended=takes[best],
        r_given=before.r_factor,
        r_mended=after.r_factor,
    )


def _focus(case: Case, trials: Trials) -> Case:
    """The case with the estimate whose defocus explains a patch best."""
    bad = np.roll(case.bad, case.roll, (0, 1))
    amplitudes = np.where(bad, np.nan, np.sqrt(case.mean)).astype(np.float32)
    focus = estimate_probe(amplitudes[None])
    least = spot_radius(focus)
    most = max(LARGEST * case.size, least * RATIO)
    radii = np.geomspace(least, most, int(np.log(most / least) / np.log(RATIO)) + 2)

    def take(radius: float) -> Case:
        probe = defocus(focus, radius)
        return replace(case, probe=probe, is_probe_estimated=True)

    signed = [*(-radii[:0:-1]), *radii]
    best = min(signed, key=lambda radius: misfit(trials.run_small(take(radius))))
    return min((take(best * part) for part in FINE), key=lambda one: misfit(trials.run(one)))


def defocus(probe: NDArray[np.complex64], radius: float) -> NDArray[np.complex64]:
    """A (P, N, N) probe in focus, moved out of it until its spot has a root mean square radius.

    Args:
        probe: in focus.
        radius: pixels; of the other sign, the probe is moved to the other side of the focus.
    """
    N = probe.shape[-1]
    far = np.fft.fft2(np.fft.ifftshift(probe, axes=(1, 2)))
    square = np.fft.fftfreq(N)[:, None] ** 2 + np.fft.fftfreq(N) ** 2
    light = np.square(np.abs(far), dtype=np.float64).sum(axis=0)
    spread = np.sqrt((light * square).sum() / light.sum())
    # A phase c q^2 moves the light at q by c q / pi.
    grown = np.sqrt(max(radius**2 - spot_radius(probe) ** 2, 0.0))
    phase = np.sign(radius) * np.pi * grown / spread * square
    near = np.fft.ifft2(far * np.exp(1j * phase))
    return np.fft.fftshift(near, axes=(1, 2)).astype(np.complex64)
