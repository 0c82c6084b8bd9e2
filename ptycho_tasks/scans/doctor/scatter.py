"""Positions that are off from frame to frame, as those of a stage that does not hold still.

Each frame's own position is fitted. Two numbers for a frame of thousands of pixels explain
next to nothing by chance.

Axis letters:  k frames of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import Trial
from ptycho_tasks.physics.metrics import find_beyond
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.trials import LEAST_PATCH, Trials, is_better, is_poor

LEAST, BETTER = 0.02, 0.6
"""R-factor beyond noise from which on positions are fitted; and with fitted ones, over that as
given, at most."""
LEAST_PIXELS = 0.5
"""Root mean square of what positions are off by, at least."""


def check_scatter(exam: Examination) -> Iterator[Finding]:
    """Find positions that are off, each by something else."""
    case, trials = exam.case, exam.trials
    if trials is None or case.is_probe_estimated or case.is_hidden or not case.is_spread:
        return
    given, noise = trials.run(case), trials.noise(case)
    if len(case.keep) < LEAST_PATCH or find_beyond(given.r_factor, noise) < LEAST:
        return
    fitted = trials.run_moved(case, trials.order)
    pixels = _measure(case, trials, trials.order)
    if not _explains(given, fitted, noise) or pixels < LEAST_PIXELS:
        return
    if _measure(case, trials, trials.other) < LEAST_PIXELS:
        return
    yield Finding(
        "positions",
        f"they are off by about {pixels:.1f} pixels (root mean square), each by something else; "
        f"R {given.r_factor:.3f} as given, {fitted.r_factor:.3f} with each fitted to its frame",
        advice="set training.positions to refined (backend unrolled), or measure them",
    )


def _explains(given: Trial, fitted: Trial, noise: float) -> bool:
    before, after = (find_beyond(one.r_factor, noise) for one in (given, fitted))
    return after < BETTER * before and is_better(given, fitted, 1.0) and not is_poor(fitted, noise)


def _measure(case: Case, trials: Trials, order: NDArray[np.int64]) -> float:
    """Root mean square pixels by which the positions of a patch were moved, but for axes and a
    drift."""
    frames, moved = trials.list_frames(case, order), trials.run_moved(case, order).moved
    if moved is None:
        return 0.0
    known = np.column_stack([np.ones(len(frames)), case.positions[frames], frames])
    known -= np.append(0.0, known[:, 1:].mean(axis=0))
    rest = moved - known @ np.linalg.lstsq(known, moved, rcond=None)[0]
    return float(np.sqrt(np.square(rest).sum(axis=1).mean()))
