"""Whether frames hold counts or amplitudes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding

SMALL, DISTINCT = 200.0, 4
"""Steps up to which single precision tells whole numbers from others; and how many different
numbers must be there to tell anything."""
WHOLE, SHARE = 1e-3, 0.999
"""How near to a whole number counts are, relative to it, and what share of them must be."""
MUCH = 0.7
"""R-factor by a wrong power, over that by the right one, at most."""


def check_measurement(exam: Examination) -> Iterator[Finding]:
    """Find frames that hold counts where amplitudes are expected, or the other way round."""
    case = exam.case
    values = case.sample[np.isfinite(case.sample) & (case.sample > 0)]
    fits = {power: is_whole(values**power) for power in (1, 2, 4)}
    if case.power == 1.0 and fits[1]:
        yield from _propose(exam, 0.5, "all values are whole numbers, as counts are")
    elif case.power == 1.0 and not fits[2] and fits[4]:
        yield from _propose(exam, 2.0, "the fourth powers of the amplitudes are whole numbers")
    elif case.power == 0.5 and not fits[1] and fits[2]:
        yield from _propose(exam, 1.0, "the squares of the values are whole numbers")
    elif not fits[1 if case.power == 0.5 else 2]:
        yield from _try(exam)


def _propose(exam: Examination, power: float, evidence: str) -> Iterator[Finding]:
    case = exam.case
    is_counts = power < case.power
    told = "the frames hold counts, not amplitudes" if is_counts else "the frames hold amplitudes"
    name = "counts" if is_counts else "amplitude"
    yield exam.compare(
        Finding(
            "counts or amplitudes",
            f"{told}: {evidence}",
            settings={"source.measurement": name},
            mended=replace(case, power=power),
        )
    )


def _try(exam: Examination) -> Iterator[Finding]:
    """By a trial, where the numbers do not tell."""
    if exam.trials is None or exam.case.probe is None:
        return
    power = 0.5 if exam.case.power == 1.0 else 1.0
    given = exam.trials.run(exam.case).r_factor
    # A root makes everything more alike, and R smaller: only much less tells.
    other = exam.trials.run(replace(exam.case, power=power)).r_factor
    if other < MUCH * given * (power / exam.case.power if power < exam.case.power else 1.0):
        yield from _propose(exam, power, "they explain each other much better so")


def is_whole(values: NDArray[np.float64]) -> bool:
    """Whether positive values are whole multiples of their smallest, or whole numbers."""
    if not values.size:
        return False
    for unit in (float(values.min()), 1.0):
        steps = values / unit
        steps = steps[steps < SMALL]
        whole = np.rint(steps)
        near = (np.abs(steps - whole) <= WHOLE * whole).mean() if steps.size else 0.0
        if near >= SHARE and len(np.unique(whole)) >= DISTINCT:
            return True
    return False
