"""Positions that drift: all that follows the number of a frame, not its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import Trial
from ptycho_tasks.physics.metrics import find_beyond
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.trials import Trials, is_better, misfit

STEPS = 4.0, 2.0, 1.0, 0.5
"""Pixels over the whole scan by which a search goes on."""
MOST_TRIALS = 20
"""Of a search."""
PAYS = 0.97
"""Misfit of the first step of a search, over that as given, at most."""
BETTER, CONFIRMED = 0.96, 0.975
"""R-factor with a drift, over that as given, at most; and on another patch."""
LEAST = 1.0
"""Pixels over the whole scan."""
GAIN = 0.02
"""R-factor that a drift takes off, at least: a quick reconstruction leaves that much of sharp
edges, and a pixel more or less makes a difference."""
ONE_WAY = 0.95
"""Share of the spread of frame numbers that follows from the places, from which on a drift moves
frames as slanted axes do: in a raster without turns, the slow axis is the time."""
MEND = (
    "no setting names a drift: set training.positions to refined (backend unrolled), or take it "
    "off the positions in the file"
)


@dataclass(frozen=True)
class Drift:
    """Pixels by which positions move from the first frame to the last."""

    y: float = 0.0
    x: float = 0.0

    def apply(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M, 2) other positions (y, x), about the same middle."""
        time = np.linspace(-0.5, 0.5, len(positions))
        return np.asarray(positions + time[:, None] * np.array([self.y, self.x]))

    def step(self, size: float) -> list[Drift]:
        """Those a step beside."""
        sides = ((size, 0.0), (-size, 0.0), (0.0, size), (0.0, -size))
        return [Drift(self.y + y, self.x + x) for y, x in sides]

    def __str__(self) -> str:
        """In words, of positions that this mends."""
        sizes = ((self.x, "x"), (self.y, "y"))
        told = " and ".join(f"{-size:.1f} pixels along {axis}" for size, axis in sizes if size)
        return f"the positions drift by about {told} from the first frame to the last"


def find_drift(case: Case, trials: Trials) -> Finding | None:
    """A drift that explains the frames much better than the positions as given."""
    drift = _search(case, trials)
    if max(abs(drift.y), abs(drift.x)) < LEAST:
        return None
    mended = case.with_positions(drift.apply(case.positions))
    given, tried = trials.run(case), trials.run(mended)
    if find_beyond(given.r_factor, tried.r_factor) < GAIN or not is_better(given, tried, BETTER):
        return None
    if not trials.confirm(case, mended, CONFIRMED):
        return None
    slanted = "or the axes are not perpendicular, which this raster does not tell from a drift; "
    return Finding(
        "drift",
        str(drift),
        advice=f"{slanted if is_one_way(case) else ''}{MEND}",
        mended=mended,
        r_given=given.r_factor,
        r_mended=tried.r_factor,
    )


def _search(case: Case, trials: Trials) -> Drift:
    """The drift with the least misfit, step by step; none where the first steps lead nowhere."""
    known: dict[Drift, Trial] = {}

    def measure(drift: Drift) -> float:
        if drift not in known:
            take = case.with_positions(drift.apply(case.positions)) if drift != Drift() else case
            known[drift] = trials.run(take)
        return misfit(known[drift])

    best = Drift()
    for size in STEPS:
        if best == Drift() and size < LEAST:
            break
        while len(known) < MOST_TRIALS:
            found = min(best.step(size), key=measure)
            if measure(found) >= (PAYS if best == Drift() else 1.0) * measure(best):
                break
            best = found
    return best


def is_one_way(case: Case) -> bool:
    """Whether the number of a frame follows from its place, but for a little."""
    places = np.column_stack([case.places, np.ones(len(case.keep))])
    numbers = case.keep - case.keep.mean()
    fit = places @ np.linalg.lstsq(places, numbers, rcond=None)[0]
    return bool(np.square(numbers - fit).sum() <= (1 - ONE_WAY) * np.square(numbers).sum())
