"""The frames of a scan: which of them steps take, which judge the object, how much light each has
had, and what light came besides.

A few frames, evenly spread, are held back from the steps, to say how good the object is. Beams
tremble and shutters stick, so that frames may have had more or less light than others: an object
tells how much. Few frames whose light differs much have spoiled the object that tells of it: they
are left out until it is found without them. Air scatters, and detectors have dark counts: an object
without fine structure, as after a few steps, tells how much of a frame is no light of the probe's.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ptycho_tasks_torch.physics.exposure import Exposure, morton_order
from ptycho_tasks_torch.physics.scale import show_number

SHARE, LEAST_HELD_BACK, MOST_HELD_BACK = 24, 3, 64
"""One in so many frames is held back, and bounds of their number."""
LEAST_FRAMES = 12
"""A scan of fewer frames can spare none."""
SURE, SLIGHT = 5.0, 0.005
"""Standard deviations of photon noise from which on a frame's light differs from the others'; and
the difference that one must reach, for what is left of a wrong object looks like smaller ones."""
SHOWN = 5e-4
"""Difference in light of half of the frames from which on it is told."""
SPOILS, FEW = math.log(2), 0.1
"""Change of the logarithm of a frame's light from one look to the next, from which on the object
may be spoiled by it; and share of all frames that can be left out for that."""
FAINT = 1e-3
"""Light, over the median, that dark frames are said to have had."""


class Frames:
    """Those of an exposure of one canvas."""

    exposure: Exposure
    """All of them, with the light that is heeded."""
    held_back: Exposure | None
    """Those that are no part of the steps but the last; None where there are too few to spare."""
    rest: Exposure
    """Those that steps take."""
    judges: Exposure
    """Those whose misfit says how good an object is."""

    def __init__(self, exposure: Exposure, flux: Tensor | None = None) -> None:
        """Hold frames back, where there are enough.

        Args:
            exposure: of one canvas.
            flux: (F,) light of each, where it is known to differ.
        """
        self._given, self._chosen = exposure, {*choose_held_back(exposure)}
        self.flux = flux
        """(F,) light of each, where it is heeded that they differ."""
        self._use(set())

    def _use(self, left_out: set[int]) -> None:
        exposure = self._given if self.flux is None else self._given.brighten(self.flux)
        self.exposure, self._left_out = exposure, left_out
        if not self._chosen:
            self.held_back, self.rest, self.judges = None, exposure, exposure
            return
        judges = self._chosen - left_out or self._chosen
        rest = {*range(len(exposure.places))} - self._chosen - left_out
        self.judges = self.held_back = exposure.take(sorted(judges))
        self.rest = exposure.take(sorted(rest))

    def judge_by_all(self) -> None:
        """Have all frames judge from now on: those held back lie inside, and may be explained where
        others are not."""
        self.judges = self.exposure

    def find_flux(self, canvas: Tensor) -> tuple[Tensor, bool]:
        """(F,) light of each frame, as a (1, S, T) complex64 object tells it, over the median; and
        whether one differs from the others for sure."""
        light, variance = self._given.measure_flux(canvas)
        excess = light / light.median() - 1
        is_sure = bool((excess.square() > (SURE**2 * variance).clamp(min=SLIGHT**2)).any())
        # What of it is not noise, frame by frame (W. James and C. Stein, Proc. Fourth Berkeley
        # Symp. Math. Statist. Probab. 1, 361, 1961).
        excess *= (1 - variance / excess.square().clamp(min=1e-12)).clamp(min=0)
        return 1 + excess, is_sure

    def count_light(self) -> Tensor:
        """(F,) photons of each frame, over the median: about its light, where all frames show as
        much of the object."""
        photons = self._given.count_photons()
        return (photons / photons.median()).clamp(min=FAINT)

    def brighten(self, flux: Tensor) -> None:
        """Use the light of each frame, (F,)."""
        self.flux = flux
        self._use(set())

    @property
    def background(self) -> Tensor | None:
        """(N, N) light of every frame that is not the probe's; see `Exposure`."""
        return self._given.background

    def find_background(self, canvas: Tensor) -> Tensor:
        """(N, N) background beside what a (1, S, T) complex64 object predicts of all frames."""
        return self.exposure.measure_background(canvas)[0]

    def cover(self, background: Tensor | None) -> None:
        """Use an (N, N) background."""
        self._given = self._given.cover(background)
        self._use(self._left_out)

    def heed(self, flux: Tensor) -> bool:
        """Use the light of each frame, or leave out the frames that have spoiled the object which
        tells of it; whether that is so.

        They are those whose light differs much from what the steps took it for.

        Args:
            flux: (F,), see `find_flux`.
        """
        change = flux.log() if self.flux is None else (flux / self.flux).log()
        changed = torch.nonzero(change.abs() > SPOILS).flatten().tolist()
        left_out = {*changed} - self._left_out
        is_spoiled = 0 < len(left_out) <= FEW * len(flux)
        if is_spoiled:
            self.flux = torch.ones_like(flux)
            self._use(left_out)
        else:
            self.brighten(flux)
        return is_spoiled

    def describe_light(self) -> str:
        """What is heeded of it, to be added to a line."""
        return self._describe_background() + self._describe_flux()

    def _describe_background(self) -> str:
        if self.background is None:
            return ""
        share, counts = float(self.background.mean()), self._given.counts
        photons = f"{show_number(share * counts, 3)} photons a pixel, " if counts < math.inf else ""
        return f"; heeds a background of {photons}{100 * share:.2g} % of the light"

    def _describe_flux(self) -> str:
        if self.flux is None:
            return ""
        excess = self.flux - 1
        worst, usual = int(excess.abs().argmax()), float(excess.abs().median())
        typically = f", by over {usual:.1%} in half of the frames" if usual >= SHOWN else ""
        most = f"{show_number(1 + float(excess[worst]), 3)} times the median"
        return f"; heeds that light differs{typically}, most in frame {worst}: {most}"


def choose_held_back(exposure: Exposure) -> list[int]:
    """Frames of an exposure of one canvas to hold back, evenly spread; none if there are few.

    Of neighbours, the one where most light falls: a frame at the rim shows what no other does.
    """
    order = morton_order(exposure.places)
    if len(order) < LEAST_FRAMES:
        return []
    count = min(MOST_HELD_BACK, max(LEAST_HELD_BACK, len(order) // SHARE))
    rows, columns = (exposure.places[:, 1:] + exposure.size // 2).T
    light = exposure.light[0, rows, columns].tolist()
    bounds = [index * len(order) // count for index in range(count + 1)]
    neighbours = (order[first:last] for first, last in pairwise(bounds))
    return sorted(max(some, key=light.__getitem__) for some in neighbours)
