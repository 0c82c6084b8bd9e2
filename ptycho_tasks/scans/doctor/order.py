"""Frames that belong to the positions of others: shifted by a few, from a lost one on, or in lines
that run the other way.

Frame i is tried at the positions i-3 to i+3, at the start, in the middle and at the end of a scan.
Each shift is tried where it puts frames on the same part of the object. That part lies at the end
of a line, where there is one: inside of a regular raster a shift moves all frames alike.

Axis letters:  M frames of a scan,  K those that are kept,  W of a part of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import Trial
from ptycho_tasks.physics.metrics import find_beyond
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.trials import LEAST_PATCH, Trials, is_better, misfit

SHIFTS, FEW_SHIFTS = (0, 1, -1, 2, -2, 3, -3), 3
"""That are tried; and how many of them where frames are large."""
LONG = 0.9
"""Of the longest step: a step that ends a line."""
FAR = 3.0
"""Of the usual step along a line, the one back to where the next begins."""
LEAST_LINES = 4
"""Lines of a raster, and frames of one."""
NEARER = 16, 8, 4, 2, 1
"""Frames by which a search for a lost one goes on."""
PARTS = 4
"""One in so many frames is in the part at the start, in the middle, at the end."""
BETTER, CERTAIN = 0.9, 4.0
"""R-factor with a shift, over that as given, at most; and standard errors by which the frames are
explained better."""
MUCH_BETTER = 0.7
"""What a shift of all frames leaves beyond noise, as a share of that as given, at most."""
MEND = (
    "put the positions in the order of the frames, in the file or in a CSV file with columns "
    "frame, x and y that source.positions names"
)


@dataclass(frozen=True)
class Order:
    """Trials of shifts on parts of a scan."""

    case: Case
    trials: Trials

    def find_shift(self, middle: int) -> int:
        """Which shift explains the frames around one of the kept ones best; 0 unless another one is
        clearly better."""
        shifts = SHIFTS[:FEW_SHIFTS] if self.trials.is_large else SHIFTS
        tried = {shift: self.try_shifts(middle, np.full(self._count, shift)) for shift in shifts}
        best = min(shifts, key=lambda shift: misfit(tried[shift]) / len(tried[shift].residuals))
        return best if is_clearly_better(tried[0], tried[best]) else 0

    def try_shifts(self, middle: int, shifts: NDArray[np.int64]) -> Trial:
        """Try the frames around one of the kept ones, each of the scan with a shift of its own."""
        part = self._part(middle)
        place = self._choose_place(part)
        take = shift_positions(self.case, shifts)
        frames = part[np.isin(part, take.keep)]
        away = np.hypot(*(take.positions[frames] - place).T)
        return self.trials.run_frames(take, frames[np.argsort(away, kind="stable")][:LEAST_PATCH])

    def find_break(self, before: int, after: int) -> int | None:
        """From which of the kept frames on shifts are other ones; None if that explains the frames
        around it no better."""
        first, last = 0, len(self.case.keep) - 1
        while last - first > 1:
            middle = (first + last) // 2
            one, other = self._try_both(middle, before, after)
            first, last = (middle, last) if misfit(one) < misfit(other) else (first, middle)
        best, tried = last, {last: self._break_at(last, last, before, after)}
        for step in NEARER:
            for place in (best - step, best + step):
                if 0 < place < len(self.case.keep):
                    tried[place] = self._break_at(place, last, before, after)
            best = min(tried, key=lambda place: misfit(tried[place]))
        plain = self._try_both(last, before, after)
        return best if all(is_clearly_better(one, tried[best]) for one in plain) else None

    def _try_both(self, middle: int, before: int, after: int) -> tuple[Trial, Trial]:
        one, other = (self.try_shifts(middle, np.full(self._count, k)) for k in (before, after))
        return one, other

    def _break_at(self, place: int, middle: int, before: int, after: int) -> Trial:
        shifts = np.where(np.arange(self._count) < self.case.keep[place], before, after)
        return self.try_shifts(middle, shifts)

    @property
    def _count(self) -> int:
        return len(self.case.positions)

    def _part(self, middle: int) -> NDArray[np.int64]:
        """(W,) frames around one of the kept ones."""
        kept = self.case.keep
        count = min(len(kept), max(LEAST_PATCH, len(kept) // PARTS))
        first = min(max(middle - count // 2, 0), len(kept) - count)
        return kept[first : first + count]

    def _choose_place(self, part: NDArray[np.int64]) -> NDArray[np.float64]:
        """(2,) where the longest step ends that is near the middle of a part."""
        places = self.case.positions[part]
        steps = np.hypot(*np.diff(places, axis=0).T)
        away = np.abs(np.arange(len(steps)) - len(steps) / 2)
        long = np.flatnonzero(steps >= LONG * steps.max())
        return np.asarray(places[long[np.argmin(away[long])]])


def shift_positions(case: Case, shifts: NDArray[np.int64]) -> Case:
    """Frame i of (M,) at position i + shifts[i]; those for which there is none are left out."""
    M = len(case.positions)
    source = np.arange(M) + shifts
    keep = case.keep[((source >= 0) & (source < M))[case.keep]]
    return replace(case, positions=case.positions[source.clip(0, M - 1)], keep=keep)


def is_clearly_better(before: Trial, after: Trial) -> bool:
    """Whether frames of the same place, though not the very same, are explained better."""
    if not math.isfinite(after.r_factor) or not math.isfinite(before.r_factor):
        return False
    one, other = np.log(before.residuals), np.log(after.residuals)
    error = math.hypot(*(float(some.std()) / math.sqrt(len(some)) for some in (one, other)))
    gain = float(one.mean() - other.mean())
    return after.r_factor <= BETTER * before.r_factor and gain > CERTAIN * error


def check_order(exam: Examination) -> Iterator[Finding]:
    """Find frames that belong to the positions of others."""
    case, trials = exam.case, exam.trials
    if trials is None or case.is_probe_estimated or not case.is_spread:
        return
    if len(case.keep) < LEAST_PATCH:
        return
    turned = _find_turned_lines(case, trials)
    if turned is not None:
        yield exam.compare(turned)
        return
    shifted = _find_shifted(case, trials)
    if shifted is None:
        return
    finding = exam.compare(shifted)
    # Parts were compared; of a scan that a shift mends, all is explained better.
    if finding.r_mended is not None and finding.r_mended < trials.run(case).r_factor:
        yield finding


def _find_shifted(case: Case, trials: Trials) -> Finding | None:
    """Frames at the positions of others, all of them or from a lost one on."""
    order, last = Order(case, trials), len(case.keep) - 1
    before, after = order.find_shift(0), order.find_shift(last)
    if before != after:
        found = order.find_break(before, after)
        if found is not None:
            return _describe_break(case, int(case.keep[found]), before, after)
    shift = before if before == after else order.find_shift(last // 2)
    if not shift or shift not in (before, after):
        return None
    mended = shift_positions(case, np.full(len(case.positions), shift))
    # Where frames lie so near to each other that a shift hardly matters, chance decides which is
    # best.
    noise = trials.noise(case)
    given, left = (find_beyond(trials.run(one).r_factor, noise) for one in (case, mended))
    if not left < MUCH_BETTER * given:
        return None
    told = f"{_name(shift)} in all of the scan: they are shifted against each other"
    return Finding("order", told, advice=MEND, mended=mended)


def _find_turned_lines(case: Case, trials: Trials) -> Finding | None:
    """Frames of every second line in reverse: either frames or positions run forth and back."""
    lines = _split_lines(case.positions)
    if len(lines) < LEAST_LINES or np.median([len(line) for line in lines]) < LEAST_LINES:
        return None
    takes = {}
    for first in (0, 1):
        order = [line[::-1] if i % 2 == first else line for i, line in enumerate(lines)]
        takes[first] = case.with_positions(case.positions[np.concatenate(order)])
    takes = trials.keep_likely(takes, case)
    if not takes:
        return None
    mended = min(takes.values(), key=lambda one: misfit(trials.run(one)))
    if not is_better(trials.run(case), trials.run(mended), BETTER):
        return None
    if not trials.confirm(case, mended, BETTER):
        return None
    return Finding(
        "order",
        "every second line of the frames runs the other way than its positions: one of both goes "
        "forth and back",
        advice=MEND,
        mended=mended,
    )


def _split_lines(positions: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """The frames of each line of a raster of (M, 2) positions, whether it runs all one way or forth
    and back."""
    fast = int(np.argmax(np.abs(np.diff(positions, axis=0)).sum(axis=0)))
    along, across = positions[:, fast], positions[:, 1 - fast]
    steps, aside = np.abs(np.diff(along)), np.abs(np.diff(across))
    ends = np.flatnonzero(steps > FAR * np.median(steps))
    if not len(ends):
        ways = np.sign(along[2:] - along[:-2])
        turns = np.flatnonzero(ways[1:] != ways[:-1])
        ends = np.unique([turn + int(np.argmax(aside[turn : turn + 3])) for turn in turns])
    starts = ends.astype(np.int64) + 1
    # Where lines turn, it is not quite clear which frame is the last.
    even = np.rint(np.linspace(0, len(positions), len(starts) + 2)[1:-1]).astype(np.int64)
    is_even = len(positions) % (len(starts) + 1) == 0 and (np.abs(starts - even) <= 1).all()
    return np.split(np.arange(len(positions)), even if is_even else starts)


def _describe_break(case: Case, frame: int, before: int, after: int) -> Finding:
    mended = shift_positions(case, np.where(np.arange(len(case.positions)) < frame, before, after))
    lacks = "frame" if after > before else "position"
    told = f"from about frame {frame} on, {_name(after)}, and {_name(before)} before it"
    return Finding("order", f"{told}: a {lacks} is missing there", advice=MEND, mended=mended)


def _name(shift: int) -> str:
    return f"frame i belongs to position i{f'{shift:+d}' if shift else ''}"
