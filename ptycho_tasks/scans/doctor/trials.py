"""Quick reconstructions of a few frames, by which two takes of a scan are compared.

Axis letters:  M frames,  N detector pixels along one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.backend import Trial
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.physics.deviance import compare_deviances
from ptycho_tasks.physics.metrics import POOR_R_FACTOR, POOR_RATIO, find_beyond, photon_noise
from ptycho_tasks.scans.doctor.case import Case, digest, find_inside
from ptycho_tasks.scans.doctor.spots import DENSE, find_spacing, spot_radius

T = TypeVar("T")

TryScan = Callable[..., Trial]
"""A backend's `try_scan`."""
FRAMES, LEAST_PATCH, LEAST_FRAMES = 100, 36, 16
"""Of a trial where frames are 64 pixels wide or less, and where they are large; a scan of fewer
than the least is not tried."""
SMALL, MOST_LIGHT = 64, 0.9
"""Pixels along a side of frames to which larger ones are cropped, where these hold so much of the
light."""
FITS = 0.92
"""Share of the probe's light in the middle of the field of view from which on that is enough of it:
where light spreads too wide to be cropped, every second pixel of a frame is taken, or every fourth.
"""
CLOSE, DENSER = 0.5, 4
"""Side of the square that a frame of a trial has for itself, in radii of the spot: where frames are
closer, every second to fourth one is taken, and so a larger part of the scan, in which axes that
are turned or stretched are farther off."""
NARROW = 4.0
"""How many times denser yet frames are of which a part is too narrow to tell probe and object
apart."""
STEPS, FEW_STEPS, CONFIRMING_STEPS = 24, 12, 48
FEWER_FRAMES = 25
"""Of a trial in a wide search, where a small patch finds its way from farther off."""
COARSE = 32
"""Pixels along a side of the frames of a search from very far off, where they are not fewer."""
UNLIKELY = 1.5
"""R-factor of a small patch, over that as given, from which on no more of a take is tried where
the scan as given is not poor."""
MOST_ROOM = 16.0
"""Area of the object of a patch, over that of its frames: of more, none is made."""
HELD_BACK = 6
"""To confirm, one frame in so many takes no part."""
CERTAIN, CONFIRMED = 6.0, 3.0
"""Standard errors by which frames must be explained better; and the few that took no part."""


@dataclass(frozen=True)
class Trials:
    """Trials on patches of neighbouring frames."""

    try_scan: TryScan
    order: NDArray[np.int64]
    """(M,) frames from the middle of the scan outwards."""
    other: NDArray[np.int64]
    """(M,) the same from another middle, to confirm what was found."""
    frames: int
    """Of a patch."""
    size: int
    """Pixels along a side of the frames that are tried, around the zero frequency."""
    every: int = 1
    """Of these pixels one in so many is taken, along each axis."""
    photon: float = 1.0
    """Counts that one photon stands for."""
    is_narrow: bool = False
    """Whether frames are so close that those of a patch hardly move: then a part of the object may
    belong to the probe as well."""
    known: dict[object, Trial] = field(default_factory=dict)
    """All trials by what goes into them: searches come back to the same takes."""
    _last: dict[object, NDArray[np.float32]] = field(default_factory=dict)
    """The amplitudes of the last trial; most others differ in their positions alone."""

    @classmethod
    def plan(cls, try_scan: TryScan, case: Case, photon: float = 1.0) -> Trials:
        """Choose the patches of a scan, by its positions as they are given.

        Args:
            try_scan: of a backend.
            case: the scan.
            photon: counts that one photon stands for.
        """
        positions = case.positions[case.keep]
        spread = positions.std(axis=0)
        places = (case.positions - np.median(positions, axis=0)) / np.where(spread > 0, spread, 1)
        corner = np.quantile(places[case.keep], 0.2, axis=0)
        stride, is_narrow = _choose_stride(case)
        orders = [
            np.argsort(np.abs(places - middle).max(axis=1), kind="stable")[::stride]
            for middle in (np.zeros(2), corner)
        ]
        size = _choose_size(case)
        every = _choose_every(case, size)
        frames = int(np.clip(FRAMES * SMALL * every / size, LEAST_PATCH, FRAMES))
        return cls(try_scan, orders[0], orders[1], frames, size, every, photon, is_narrow)

    def run(self, case: Case) -> Trial:
        """Try a scan on a patch of it."""
        return self._run(case, self.order, self.frames, STEPS)

    def noise(self, case: Case) -> float:
        """R-factor of the frames of `run` where photon noise alone is left."""
        frames = self.list_frames(case, self.order)
        return photon_noise(case.amplitudes(frames) / math.sqrt(self.photon)).r_factor

    def list_frames(self, case: Case, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """(k,) frames of a patch, sorted."""
        return np.sort(self._keep(case, order)[: self.frames])

    def run_moved(self, case: Case, order: NDArray[np.int64]) -> Trial:
        """Try a scan with positions that are fitted, frame by frame, on a patch."""
        return self._run(case, order, self.frames, STEPS, moves=True)

    def confirm(self, before: Case, after: Case, ratio: float) -> bool:
        """Whether another patch tells the same, by frames that took no part.

        Whoever has many takes to choose from finds one that explains the frames better by chance,
        or that has more unknowns to do it with, as positions that lie farther apart have. Neither
        explains frames that it has not seen.
        """
        given, mended = (
            self._run(case, self.other, self.frames, CONFIRMING_STEPS, held_back=HELD_BACK)
            for case in (before, after)
        )
        return is_better(given, mended, ratio, CONFIRMED)

    @property
    def is_large(self) -> bool:
        """Whether frames are so large that a wide search takes too long."""
        return self.frames == LEAST_PATCH

    def run_modes(self, case: Case, modes: int, *, is_whole: bool = False) -> Trial:
        """Try a scan with a probe of so many modes that is fitted first, or its own where it is 0,
        on frames that took no part: of half a patch or of a whole one."""
        half = max(self.frames // 2, min(LEAST_PATCH, self.frames))
        frames = self.frames if is_whole else half
        return self._run(case, self.order, frames, STEPS, modes, held_back=HELD_BACK)

    def run_long(self, case: Case) -> Trial:
        """Try a scan to the end on the patch of `run`."""
        return self._run(case, self.order, self.frames, CONFIRMING_STEPS)

    def run_small(self, case: Case) -> Trial:
        """Try a scan on a small patch."""
        return self._run(case, self.order, FEWER_FRAMES, FEW_STEPS)

    def keep_likely(self, takes: Mapping[T, Case], given: Case) -> dict[T, Case]:
        """The takes that may explain the frames better: where the scan as given explains a small
        patch of them well, those that do not explain it much worse."""
        trial = self.run_small(given)
        if is_poor(trial, self.noise(given)):
            return {**takes}
        most = UNLIKELY * trial.r_factor
        return {one: take for one, take in takes.items() if self.run_small(take).r_factor <= most}

    def run_coarse(self, case: Case) -> Trial:
        """Try a scan on a small patch of coarse frames, which finds its way from farther off."""
        size, every = self.size, self.every
        if size // every > COARSE and size % (4 * every) == 0:
            size //= 2
        return replace(self, size=size, every=every).run_small(case)

    def run_frames(self, case: Case, frames: NDArray[np.int64]) -> Trial:
        """Try a scan on some frames of it."""
        return self._run(case, frames, len(frames), FEW_STEPS)

    def _run(
        self,
        case: Case,
        order: NDArray[np.int64],
        count: int,
        steps: int,
        modes: int = 0,
        held_back: int = 0,
        *,
        moves: bool = False,
    ) -> Trial:
        frames = np.sort(self._keep(case, order)[:count])
        look = (*case.look, digest(frames), self.size, self.every)
        how = (steps, modes, held_back)
        more = {"moves": True} if moves else {}
        key = (look, digest(case.positions[frames]), digest(case.probe), how, moves)
        if key not in self.known:
            self.known[key] = self._try(case, frames, look, how, more)
        return self.known[key]

    def _try(
        self,
        case: Case,
        frames: NDArray[np.int64],
        look: object,
        how: tuple[int, int, int],
        more: Mapping[str, bool],
    ) -> Trial:
        nowhere = Trial(math.inf, np.full(len(frames), np.inf))
        spans = np.ptp(case.positions[frames], axis=0) + case.size
        if spans.prod() > MOST_ROOM * len(frames) * case.size**2:
            return nowhere  # frames share nothing
        if look not in self._last:
            self._last.clear()
            self._last[look] = case.cut_amplitudes(frames, self.size, self.every)
        try:
            scan = case.place(frames, self._last[look], self.size, self.every)
            return self.try_scan(scan, *how, **more)
        except PtychoTasksError:  # all dark, for one
            return nowhere

    @staticmethod
    def _keep(case: Case, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the frames in order that the case takes."""
        is_kept = np.zeros(len(case.frames), bool)
        is_kept[case.keep] = True
        return order[is_kept[order]]


def _choose_size(case: Case) -> int:
    """Pixels along a side that hold nearly all light of the mean frame, wherever its centre is."""
    if case.size <= SMALL:
        return case.size
    sums = np.pad(case.mean, ((0, SMALL), (0, SMALL)), "wrap").cumsum(axis=0).cumsum(axis=1)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    inside = sums[SMALL:, SMALL:] - sums[:-SMALL, SMALL:]
    inside += sums[:-SMALL, :-SMALL] - sums[SMALL:, :-SMALL]
    return SMALL if inside.max() >= MOST_LIGHT * case.mean.sum() else case.size


def _choose_every(case: Case, size: int) -> int:
    """One in how many pixels along a side is taken, by how large the spot is."""
    if case.probe is None:
        return 1
    light = np.square(np.abs(case.probe), dtype=np.float64).sum(axis=0)
    every = 1
    while size // every > SMALL and size % (4 * every) == 0:
        inside = find_inside(size, 2 * every)
        if light[inside, inside].sum() < FITS * light.sum():
            break
        every *= 2
    return every


def _choose_stride(case: Case) -> tuple[int, bool]:
    """How many frames stand for one, by how close they lie and how large the spot is; and whether
    as many are too few."""
    if case.probe is None or not case.is_spread:
        return 1, False
    spacing = find_spacing(case.places) / spot_radius(case.probe)
    if not DENSE <= spacing <= CLOSE:
        return 1, False
    most, wanted = len(case.keep) // FRAMES, (CLOSE / spacing) ** 2
    return int(np.clip(wanted, 1, max(1, min(DENSER, most)))), wanted > NARROW * DENSER


def is_better(before: Trial, after: Trial, ratio: float, certain: float = CERTAIN) -> bool:
    """Whether the same frames are explained better, by `certain` standard errors, and R falls to
    at most `ratio` of what it was."""
    if not math.isfinite(after.r_factor):
        return False
    if not math.isfinite(before.r_factor):
        return True
    # Of logarithms: a few frames may be explained very badly.
    gain = np.log(before.residuals) - np.log(after.residuals)
    error = float(gain.std()) / math.sqrt(len(gain))
    return after.r_factor <= ratio * before.r_factor and bool(gain.mean() > certain * error)


def is_poor(trial: Trial, noise: float) -> bool:
    """Whether a quick reconstruction leaves what `infer` warns of, see `Misfit.is_poor`: a deviance
    goes with the square of the R-factor."""
    ratio = compare_deviances(trial.r_factor**2, noise**2)
    return ratio > POOR_RATIO and find_beyond(trial.r_factor, noise) > POOR_R_FACTOR


def misfit(trial: Trial) -> float:
    """Of all frames; Inf where a trial led nowhere."""
    return float(trial.residuals.sum()) if math.isfinite(trial.r_factor) else math.inf
