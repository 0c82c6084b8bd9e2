"""Fit a probe to the frames of a scan, together with its object.

First size, defocus and astigmatism of the guess; then every pixel of its modes, with every pixel of
the object; see `descent`.

A block of neighbouring frames is enough. Some of its frames are held back, and decide whether what
was found is taken. Light that is not the probe's would become modes of it: it is found first,
beside the guess.

Axis letters: M frames of a scan, H frames held back, P, Q probe modes, N detector pixels along one
side, S, T rows and columns of the canvas.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.illumination import estimate_probe
from ptycho_tasks_torch.physics.calibration import calibrate_probe, search_widely
from ptycho_tasks_torch.physics.exposure import morton_order
from ptycho_tasks_torch.physics.forward import spot_radius
from ptycho_tasks_torch.physics.mapped import HELD_BYTES, MappedExposure, load_frames, map_scan
from ptycho_tasks_torch.physics.probe import (
    SAME_PROBE,
    Gauge,
    add_modes,
    probe_distance,
    sort_modes,
    take_lit,
)
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity
from ptycho_tasks_torch.unrolled.background import suspect_background
from ptycho_tasks_torch.unrolled.depth import DRIFTS, LEAST_DAMPING, Depth
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
FIRST_STEPS = 12
"""Steps on the object before object and probe are moved together, where those before have led to
one that is worse."""
MUCH = 0.5
"""Share to which a fit brings the misfit of the guess where there is no doubt of it."""
KEPT = 1.01
"""Misfit of a fit that is moved to the place of the guess, over that where it was, up to which the
place makes no difference."""
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
        (P, N, N) complex64 in counts, with flux, centre and tilt of the guess, but for centre and
        tilt where frames held back tell others; modes are orthogonal, the strongest first. All Q
        modes where fewer are not taken, or the guess kept.
    """
    guess = take_lit(guess)
    frames = np.arange(scan.frame_count) if frames is None else frames
    if len(frames) < LEAST_FRAMES:
        say(describe_few(len(frames)))
        return guess
    most = max(modes, len(guess))
    block = _Block.choose(scan, frames, guess, FRAME_ROWS // scan.size, most)
    before = block.settle(guess)
    if block.heed_background(before):
        before = block.settle(guess)
    start = _calibrate(block, before, scan, frames, say)
    gauge = Gauge(guess)

    def fit(first: Tensor) -> _Fit:
        begun = block.compare(first, start.canvas), block.reconstruct(first, FIRST_STEPS)
        return _settle_place(block, gauge, _fit_modes(block, min(begun, key=_mean)))

    best = fit(add_modes(start.probe, most))
    if not block.is_confirmed(start, best):
        best = start
    if not scan.is_probe_estimated and block.is_unexplained(best):
        say("probe: none near the guess explains the frames; one is estimated from them alone")
        estimate = torch.from_numpy(estimate_probe(scan.diffraction)).to(guess)
        estimate *= guess.norm() / estimate.norm()
        unknown = replace(scan, is_probe_estimated=True)
        found = gauge.keep(fit_probe(unknown, estimate, modes, say, frames=frames))
        if _is_better(best.misfit, block.reconstruct(found).misfit):
            return sort_modes(found, start.probe)
        say("probe: the estimate explains them no better")
    is_fewer = modes < len(guess)
    if is_fewer:
        first = add_modes(start.probe, modes)
        few = min(fit(first), block.reconstruct(first), key=_mean)
        # Beside all modes as well as they can be: of a guess that is fitted, too, more is lost.
        is_fewer = bool(_gain(best.misfit, few.misfit).mean() > AS_GOOD)
        if is_fewer:
            best = few
        else:
            say(
                f"probe: all its {len(guess)} modes are kept; frames held back are explained worse "
                f"by {modes}"
            )
    if best is start:
        if start.probe is guess and modes >= len(guess):
            say("probe: kept as it is; frames held back are explained no better by a fitted one")
        return start.probe
    probe = sort_modes(best.probe, start.probe)
    power = probe.abs().square().sum(dim=(1, 2))
    shares = ", ".join(f"{100 * share:.3g}" for share in (power / power.sum()).tolist())
    parts = f" ({len(probe)} modes with {shares} % of the light)" if len(probe) > 1 else ""
    fewer = f", with {len(probe)} of its {len(guess)} modes" if is_fewer else ""
    say(
        f"probe: fitted to {len(block.whole.places)} frames{fewer}{parts}; "
        f"{_describe_misfit(start, best)}"
    )
    return probe


def describe_few(frames: int) -> str:
    """Why a probe is kept where there are so few frames, in a line."""
    return f"probe: kept as it is, {frames} frames are too few to fit it"


class _Fit(NamedTuple):
    """A probe, and an object that explains the frames with it."""

    probe: Tensor
    """(P, N, N) complex64 in counts."""
    canvas: Tensor
    """(1, S, T) complex64."""
    misfit: Tensor
    """(H,) of each frame held back."""


def _calibrate(
    block: _Block, before: _Fit, scan: ScanData, frames: NDArray[np.int64], say: Say
) -> _Fit:
    """The guess, which is settled, with another size, defocus and astigmatism, if they explain
    more."""
    guess = before.probe
    few = max(LEAST_CALIBRATING, CALIBRATING_PIXELS // scan.size**2)
    small = _Block.choose(scan, frames, guess, few, len(guess))
    small.cover(block.background)

    def misfit(probe: Tensor) -> float:
        return _mean(small.reconstruct(probe, CALIBRATING_STEPS))

    start = guess
    if scan.is_probe_estimated:
        start = search_widely(guess, misfit)
    probe = Gauge(guess).keep(calibrate_probe(start, misfit))
    if probe_distance(probe.cpu().numpy(), guess.cpu().numpy()) < SAME_PROBE:
        return before
    after = block.reconstruct(probe)
    if not _is_better(before.misfit, after.misfit):
        return before
    old, new = spot_radius(guess), spot_radius(probe)
    say(
        f"probe: size, defocus and astigmatism fitted, radius {old:.1f} -> {new:.1f} pixels; "
        f"{_describe_misfit(before, after)}"
    )
    return after


def _mean(fit: _Fit) -> float:
    return float(fit.misfit.mean())


def _describe_misfit(before: _Fit, after: _Fit) -> str:
    return f"misfit of frames held back {_mean(before):.3g} -> {_mean(after):.3g}"


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
        self.background: Tensor | None = None
        """(N, N) counts of every frame that are not the probe's light."""
        photon, count = find_photon(scan.diffraction), scan.frame_count
        self.scale = math.sqrt(read_intensity(scan, np.arange(count)))
        self.whole = map_scan(scan, guess / self.scale, self.scale, photon).hold()
        order = morton_order(self.whole.places)
        held_back = sorted(order[HELD_BACK // 2 :: HELD_BACK])
        self.held_back = self.whole.take(held_back)
        self.rest = self.whole.take(sorted({*order} - {*held_back}))

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

    def reconstruct(self, probe: Tensor, steps: int | None = None) -> _Fit:
        """What a probe leads to from a flat object on; None takes the steps that confirm one."""
        rest = load_frames(_with_probe(self.rest, probe / self.scale))
        canvas = reconstruct(rest, steps or self.steps, damping=self.damping).canvas
        return self.compare(probe, canvas)

    def compare(self, probe: Tensor, canvas: Tensor) -> _Fit:
        """A probe and an object, with their misfits."""
        frames = _with_probe(self.held_back, probe / self.scale)
        square = (frames.predict(canvas) - frames.read(frames.frames)).square()
        sides = (1, 2)
        misfit = square.nanmean(dim=sides) if frames.has_bad_pixels else square.mean(dim=sides)
        return _Fit(probe, canvas, misfit)

    def settle(self, guess: Tensor) -> _Fit:
        """Take as many steps to confirm a probe as the object of the guess needs, and as short
        ones; what these lead to."""
        found = self.reconstruct(guess)
        while self.steps < MOST_CONFIRMING:
            later = self.reconstruct(guess, 2 * self.steps)
            misfit, least = _mean(later), _mean(found)
            if misfit < STILL_FALLS * least:
                self.steps, found = 2 * self.steps, later
            elif not misfit < DRIFTS * least and self.damping > LEAST_DAMPING:
                self.damping /= 2
                found = self.reconstruct(guess)
            else:
                break
        return found

    def cover(self, background: Tensor | None) -> None:
        """Use (N, N) counts of every frame that are not the probe's light."""
        if background is None:
            return
        self.background, share = background, background / self.scale**2
        self.whole, self.held_back, self.rest = (
            replace(frames, background=share) for frames in (self.whole, self.held_back, self.rest)
        )

    def heed_background(self, fit: _Fit) -> bool:
        """Use a background from now on, if frames are explained much better beside one; whether
        that is so."""
        exposure = load_frames(_with_probe(self.whole, fit.probe / self.scale))
        if suspect_background(exposure, fit.canvas) is None:
            return False
        depth = Depth(exposure)
        deque(depth.run(), maxlen=0)
        if depth.frames.background is None:
            return False
        self.cover(depth.frames.background * self.scale**2)
        return True

    def is_confirmed(self, start: _Fit, fit: _Fit) -> bool:
        """Whether frames held back are explained better by a probe that was fitted.

        Its object was fitted with it, and is nearer to what its probe can explain than that of the
        start: where it does not explain them much better, both begin with a flat one.
        """
        if not _mean(fit) < MUCH * _mean(start):
            fit = self.reconstruct(fit.probe)
        return _is_better(start.misfit, fit.misfit)

    def is_unexplained(self, fit: _Fit) -> bool:
        """Whether what is left is far from noise, and not far below what a flat object leaves."""
        flat = self.compare(fit.probe, torch.ones_like(fit.canvas))
        return _mean(fit) > max(NOISY * self.whole.least_misfit, FAR * _mean(flat))


def _with_probe(frames: MappedExposure, modes: Tensor) -> MappedExposure:
    """The same frames, with other (P, N, N) modes."""
    return replace(frames, probes=modes, radius=spot_radius(modes))


def _settle_place(block: _Block, gauge: Gauge, fit: _Fit) -> _Fit:
    """A fit with flux, centre and tilt of the guess, or with as many of them as lose nothing.

    Light that fills the frames has its place in them, and so have edges of the object as sharp as a
    pixel: neither can be moved by a part of one. The same holds for light that fills the detector,
    and a tilt.
    """
    for moves, turns in ((True, True), (False, True), (False, False)):
        found = block.compare(*gauge.keep_both(fit.probe, fit.canvas, moves=moves, turns=turns))
        if _mean(found) < KEPT * _mean(fit) or not _is_better(found.misfit, fit.misfit):
            break
    return found


def _fit_modes(block: _Block, start: _Fit) -> _Fit:
    """Modes and object, to begin with others, that explain the frames held back best; shift and
    tilt are as the fit pleases."""
    best, since = start, 0

    def is_enough(canvas: Tensor, modes: Tensor) -> bool:
        nonlocal best, since
        found = block.compare(modes * block.scale, canvas)
        misfit, least = _mean(found), _mean(best)
        since = 0 if misfit < FALLS * least else since + 1
        if misfit < least:
            best = found
        return since == PATIENCE

    descend(block.rest, start.canvas, start.probe / block.scale, is_enough, MOST_LOOKS)
    return best
