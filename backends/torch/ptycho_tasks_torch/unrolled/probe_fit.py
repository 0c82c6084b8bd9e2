"""Fit a probe to the frames of a scan, together with its object.

First size, defocus and astigmatism of the guess; then every pixel of its modes, with every pixel of
the object; see `descent`.

A block of neighbouring frames is enough. Some of its frames are held back, and decide whether what
was found is taken.

Axis letters: M frames of a scan, H frames held back, P, Q probe modes, N detector pixels along one
side, S, T rows and columns of the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.scan import ScanData, corners_and_fractions, take_frames
from ptycho_tasks.scans.illumination import estimate_probe
from ptycho_tasks_torch.physics.calibration import calibrate_probe, search_widely
from ptycho_tasks_torch.physics.exposure import Exposure, morton_order
from ptycho_tasks_torch.physics.forward import shift_probe, spot_radius
from ptycho_tasks_torch.physics.mapped import HELD_BYTES, expose_scan
from ptycho_tasks_torch.physics.probe import (
    SAME_PROBE,
    Gauge,
    add_modes,
    probe_distance,
    sort_modes,
    take_lit,
)
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity
from ptycho_tasks_torch.unrolled.depth import DRIFTS, LEAST_DAMPING
from ptycho_tasks_torch.unrolled.descent import descend
from ptycho_tasks_torch.unrolled.network import reconstruct

FRAME_ROWS = 600 * 64
"""Detector rows of all frames that are fitted, so that larger frames are fewer."""
LEAST_FRAMES = 32
"""Fewer do not tell a probe from an object."""
HELD_BACK = 12
"""One in so many frames is held back."""
CALIBRATING_PIXELS, LEAST_CALIBRATING, CALIBRATING_STEPS = 2**18, 32, 12
"""To calibrate a probe: detector pixels of all frames together, least number of frames, and number
of physics steps. With fewer steps a wrong probe looks better than the right one."""
FIRST_STEPS = 12
"""Steps on the object before object and probe are moved together."""
FALLS, PATIENCE, MOST_LOOKS = 0.99, 2, 80
"""They are until the misfit of frames held back has not fallen to such a share in so many looks;
and how many looks there are at most."""
CONFIRMING_STEPS, MOST_CONFIRMING, STILL_FALLS, CERTAIN = 24, 384, 0.8, 3.0
"""To confirm a probe: steps on the object, at least and at most, the share to which the misfit of
the guess falls by twice as many where they are too few, and standard errors that frames held back
gain. A wrong probe may lead faster to what it can explain."""
NOISY, FAR = 8.0, 0.003
"""Misfit over that of photon noise, and over that of a flat object, from which on a probe has led
to no object: the guess was too far from the right one."""
AS_GOOD = -0.005
"""Least gain of a probe of fewer modes over one of all, which saves time: a hundredth of the
misfit is lost."""

Say = Callable[[str], None]


@torch.no_grad()
def fit_probe(
    scan: ScanData,
    guess: Tensor,
    modes: int,
    say: Say,
    *,
    frames: NDArray[np.int64] | None = None,
) -> Tensor:
    """Fit a probe, or keep the guess where frames held back gain nothing by another. Fewer modes
    are taken where these frames lose nothing by it, beside all modes, which are fitted, too. Where
    no probe near the guess explains the frames, one is estimated from them, and fitted.

    Args:
        scan: its frames may lie on disk; where its probe is an estimate, the search is a
            wide one.
        guess: (Q, N, N) complex64 in counts; dark modes are left out.
        modes: P; modes that the guess lacks are added, its weakest left out; see `add_modes`.
        say: shows the user one line.
        frames: (K,) those that may be used; None is all.

    Returns:
        (P, N, N) complex64 in counts, with flux, centre and tilt of the guess, but for the centre
        where frames held back tell another; modes are orthogonal, the strongest
        first. All Q modes where fewer are not taken, or the guess kept.
    """
    guess = take_lit(guess)
    frames = np.arange(scan.frame_count) if frames is None else frames
    if len(frames) < LEAST_FRAMES:
        say(describe_few(len(frames)))
        return guess
    most = max(modes, len(guess))
    block = _Block.choose(scan, frames, guess, FRAME_ROWS // scan.size, most)
    start, before = _calibrate(block, scan, frames, guess, say)
    gauge = Gauge(guess)

    def fit(first: Tensor) -> tuple[Tensor, Tensor]:
        fitted = _fit_modes(block, first)
        placed = sort_modes(gauge.keep(fitted), start)
        misfit = block.measure(placed)
        # Light that fills the frames has its place in them, and so have edges of the object as
        # sharp as a pixel: neither can be moved by a part of one.
        free = sort_modes(gauge.keep(fitted, moves=False), start)
        misfit_of_free = block.measure(free)
        return (free, misfit_of_free) if _is_better(misfit, misfit_of_free) else (placed, misfit)

    probe, _ = fit(add_modes(start, most))
    # A probe that is nearer to the right one needs more steps to show it than the guess.
    steps, after = block.steps, block.settle(probe)
    if block.steps > steps:
        before = block.measure(start)
    if not _is_better(before, after):
        probe, after = start, before
    if not scan.is_probe_estimated and block.is_unexplained(probe):
        say("probe: none near the guess explains the frames; one is estimated from them alone")
        estimate = torch.from_numpy(estimate_probe(scan.diffraction)).to(guess)
        estimate *= guess.norm() / estimate.norm()
        unknown = replace(scan, is_probe_estimated=True)
        found = sort_modes(
            gauge.keep(fit_probe(unknown, estimate, modes, say, frames=frames)), start
        )
        misfit = block.measure(found)
        if _is_better(after, misfit):
            return found
        say("probe: the estimate explains them no better")
    is_fewer = modes < len(guess)
    if is_fewer:
        first = add_modes(start, modes)
        few = min(fit(first), (first, block.measure(first)), key=lambda one: float(one[1].mean()))
        # Beside all modes as well as they can be: of a guess that is fitted, too, more is lost.
        is_fewer = bool(_gain(after, few[1]).mean() > AS_GOOD)
        if is_fewer:
            probe, after = few
        else:
            say(
                f"probe: all its {len(guess)} modes are kept; frames held back are explained worse "
                f"by {modes}"
            )
    if probe is start:
        if start is guess and modes >= len(guess):
            say("probe: kept as it is; frames held back are explained no better by a fitted one")
        return start
    power = probe.abs().square().sum(dim=(1, 2))
    shares = ", ".join(f"{100 * share:.3g}" for share in (power / power.sum()).tolist())
    parts = f" ({len(probe)} modes with {shares} % of the light)" if len(probe) > 1 else ""
    fewer = f", with {len(probe)} of its {len(guess)} modes" if is_fewer else ""
    say(
        f"probe: fitted to {len(block.exposure.places)} frames{fewer}{parts}; misfit of frames "
        f"held back {before.mean():.3g} -> {after.mean():.3g}"
    )
    return probe


def describe_few(frames: int) -> str:
    """Why a probe is kept where there are so few frames, in a line."""
    return f"probe: kept as it is, {frames} frames are too few to fit it"


def _calibrate(
    block: _Block, scan: ScanData, frames: NDArray[np.int64], guess: Tensor, say: Say
) -> tuple[Tensor, Tensor]:
    """The guess with another size, defocus and astigmatism, if they explain more; and its (H,)
    misfits of frames held back."""
    before = block.settle(guess)
    few = max(LEAST_CALIBRATING, CALIBRATING_PIXELS // scan.size**2)
    small = _Block.choose(scan, frames, guess, few, len(guess))

    def misfit(probe: Tensor) -> float:
        return float(small.measure(probe, CALIBRATING_STEPS).mean())

    start = guess
    if scan.is_probe_estimated:
        start = search_widely(guess, misfit)
    probe = Gauge(guess).keep(calibrate_probe(start, misfit))
    if probe_distance(probe.cpu().numpy(), guess.cpu().numpy()) < SAME_PROBE:
        return guess, before
    after = block.measure(probe)
    if not _is_better(before, after):
        return guess, before
    old, new = spot_radius(guess), spot_radius(probe)
    say(
        f"probe: size, defocus and astigmatism fitted, radius {old:.1f} -> {new:.1f} pixels; "
        f"misfit of frames held back {before.mean():.3g} -> {after.mean():.3g}"
    )
    return probe, after


def _gain(before: Tensor, after: Tensor) -> Tensor:
    """(H,) by how much misfits of frames fall, over their sum; from -1 to 1.

    Each counts by its own change: a wrong probe may explain a few frames a thousand times worse.
    """
    return (before - after) / (before + after)


def _is_better(before: Tensor, after: Tensor) -> bool:
    """Whether (H,) misfits of frames fall by more than chance."""
    gain = _gain(before, after)
    return bool(gain.mean() > CERTAIN * gain.std() / math.sqrt(len(gain)))


class _Block:
    """Neighbouring frames on a canvas, with any probe."""

    def __init__(self, scan: ScanData, guess: Tensor) -> None:
        """Take all frames of a scan into memory."""
        self.steps, self.damping = CONFIRMING_STEPS, 1.0
        """Number of steps on the object, to confirm a probe, and what their length is multiplied
        by."""
        self.least = 0.0
        """The misfit of frames held back that the last fit has led to."""
        photon, count = find_photon(scan.diffraction), scan.frame_count
        self.scale = math.sqrt(read_intensity(scan, np.arange(count)))
        self.exposure = expose_scan(scan, guess / self.scale, self.scale, photon)
        _, fractions = corners_and_fractions(scan.positions, scan.size)
        self.fractions = torch.from_numpy(fractions.astype(np.float32)).to(guess.device)
        order = morton_order(self.exposure.places)
        self.held_back = sorted(order[HELD_BACK // 2 :: HELD_BACK])
        self.rest = sorted({*order} - {*self.held_back})

    @classmethod
    def choose(
        cls, scan: ScanData, frames: NDArray[np.int64], guess: Tensor, count: int, modes: int
    ) -> _Block:
        """Of the frames that may be used, those nearest to the middle: `count`, or fewer where
        memory is short of it."""
        count = min(count, HELD_BYTES // (scan.size**2 * (4 + 8 * modes)))
        positions = scan.positions[frames]
        distance = np.square(positions - np.median(positions, axis=0)).sum(axis=1)
        nearest = frames[np.argsort(distance, kind="stable")[: max(count, LEAST_FRAMES)]]
        return cls(take_frames(scan, np.sort(nearest)), guess)

    def expose(self, modes: Tensor) -> Exposure:
        """All frames, with (P, N, N) modes in units of `scale`."""
        radius = spot_radius(modes)
        return replace(self.exposure, probes=shift_probe(modes, self.fractions), radius=radius)

    def settle(self, guess: Tensor) -> Tensor:
        """Take as many steps to confirm a probe as the object of the guess, (P, N, N) complex64 in
        counts, needs, and as short ones; its (H,) misfits."""
        misfit = self.measure(guess)
        while self.steps < MOST_CONFIRMING:
            later = self.measure(guess, 2 * self.steps)
            if later.mean() < STILL_FALLS * misfit.mean():
                self.steps, misfit = 2 * self.steps, later
            elif not later.mean() < DRIFTS * misfit.mean() and self.damping > LEAST_DAMPING:
                self.damping /= 2
                misfit = self.measure(guess)
            else:
                break
        return misfit

    def is_unexplained(self, probe: Tensor) -> bool:
        """Whether the fit has left a misfit far from noise, and not far below that of a flat object
        with a probe, (P, N, N) complex64 in counts."""
        flat = torch.ones_like(self.exposure.light) + 0j
        most = FAR * self.compare(probe / self.scale, flat)
        return self.least > NOISY * self.exposure.least_misfit and self.least > most

    def compare(self, modes: Tensor, canvas: Tensor) -> float:
        """Mean misfit of the frames held back, of (P, N, N) modes in units of `scale` and a
        (1, S, T) complex64 object."""
        return float(_compare(self.expose(modes).take(self.held_back), canvas).mean())

    def measure(self, probe: Tensor, steps: int | None = None) -> Tensor:
        """(H,) misfit of each frame held back, after steps on the others.

        Args:
            probe: (P, N, N) complex64 in counts.
            steps: on the object, from a flat one on; None takes those that confirm a probe.
        """
        exposure = self.expose(probe / self.scale)
        rest, count = exposure.take(self.rest), steps or self.steps
        canvas = reconstruct(rest, count, damping=self.damping).canvas
        return _compare(exposure.take(self.held_back), canvas)


def _compare(exposure: Exposure, canvas: Tensor) -> Tensor:
    square = (exposure.predict(canvas) - exposure.amplitude).square()
    return square.nanmean(dim=(1, 2)) if exposure.has_bad_pixels else square.mean(dim=(1, 2))


def _fit_modes(block: _Block, probe: Tensor) -> Tensor:
    """(P, N, N) complex64 modes in counts that explain the frames held back best; shift and tilt
    are as the fit pleases.

    Args:
        block: frames.
        probe: (P, N, N) complex64 modes in counts to begin with.
    """
    rest, modes = block.rest, probe / block.scale

    def expose(modes: Tensor) -> Exposure:
        return block.expose(modes).take(rest)

    canvas = reconstruct(expose(modes), FIRST_STEPS, damping=block.damping).canvas
    best, least, since = modes, block.compare(modes, canvas), 0

    def is_enough(canvas: Tensor, modes: Tensor) -> bool:
        nonlocal best, least, since
        misfit = block.compare(modes, canvas)
        since = 0 if misfit < FALLS * least else since + 1
        if misfit < least:
            best, least = modes, misfit
        return since == PATIENCE

    descend(expose, block.fractions[rest], canvas, modes, is_enough, MOST_LOOKS)
    block.least = least
    return best * block.scale
