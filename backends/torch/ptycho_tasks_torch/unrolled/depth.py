"""How many physics steps a scan needs: until frames held back are explained no better.

A few frames, evenly spread, are left out of the steps, and their misfit is followed. Steps on parts
of the frames lead far at little cost; when the frames held back no longer gain by them, steps on
all others average out what noise the parts leave; when these gain nothing either, the frames held
back are taken in for the last steps. Where photons are few that also keeps the object from fitting
their noise. Steps that diverge are undone, and go on half as long. Where such steps leave more
than noise in the end, they may have led to a wrong object that no step leaves: where low
frequencies of the phase are lifted too far, as with probes that fade slowly, and where a flat
object is no beginning, as for a phase that jumps by half a turn. Others begin anew then, with weak
filters, from what sweeps over small parts of the frames lead to in one order or another.

Where more than noise is left still, not all light may be the probe's, or frames may have had more
or less of it than others; see `Frames`. Steps begin again beside a background, as objects of few
steps tell it. And they go on with what the object says of the light of each frame, as long as that
explains frames better, or begin again where it was spoiled by frames that are left out then.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.unrolled.background import NOISY, may_explain, suspect_background
from ptycho_tasks_torch.unrolled.held_back import Frames
from ptycho_tasks_torch.unrolled.steps import (
    ALL,
    COARSE,
    COARSE_STEPS,
    FINE,
    SWEPT_PARTS,
    Engine,
    Turn,
    Turns,
    begin_like,
    follow,
    sweep,
)

LEAST_STEPS, DOUBTFUL_STEPS, MOST_STEPS = 24, 500, 1000
"""Bounds; few scans need the last, or that of steps which are doubtful and may begin anew. Where
photons are few, the low frequencies of the phase gain by steps that the misfit of single frames
does not show."""
UNSPARED_STEPS = 48
"""Steps of a scan that has no frames to spare."""
GAIN, PATIENCE = 0.0005, 6
"""Share by which the misfit must fall to count, and how many steps without that end a stage."""
NEAR, MORE_PATIENCE = 1.003, 0.5
"""A misfit that is more than noise may rest, or rise a little, before it falls: a stage goes on
until it was so near to the least one for such a share of all steps."""
WORSE, DRIFTS = 2.0, 1.05
"""A misfit so many times the least one, after any step, and where a stage would end: the steps
diverge. They are undone, and go on half as long. What noise of the frames the steps fit is a
hundredth at most until they end."""
LEAST_DAMPING, SHORTER_GAIN = 0.1, 0.9
"""Length of steps, in units of the usual one, that are not tried any more; and what shorter steps
must bring the misfit down to, as a share, that still shorter ones are tried."""
RESTRAINTS, SWEEPS, MOST_SWEPT = (0.05, 0.2, 0.1, 0.05, 0.2, 0.1), 40, 2**20
"""Of the sweeps from which steps begin anew, each time in another order; how many sweeps these are,
and pixels of a canvas on which they would take too much memory."""
WEAK, TRIAL, CLEARLY = 0.1, 100, 0.97
"""Lift of the steps that begin anew; how many of them may be no better than those before; and what
they must bring the misfit down to, as a share of the least one before, to be taken."""
FAR, SOMEWHERE = 0.05, 0.4
"""Shares of the misfit of a flat object, below which steps must have led that another begin may
help, or the light of frames: with wrong positions nothing does."""
LOOKS, STEPS_OF_A_LOOK, MUCH = 4, 100, 0.5
"""How often the light of the frames is measured; how many steps may follow each time; and what all
this must bring the misfit beyond noise down to, as a share."""
VARIES, ALIKE = 0.05, 0.25
"""Standard deviation of the logarithm of the frames' photons, and correlation of these with what an
object led astray says, from which on they may tell of the light: else they tell of the object."""
MEASURED, STEPS_BETWEEN = 12, 5
"""How often it, or a background, is measured in first steps, and after how many each time."""
MANY = 100
"""Steps after which a background is looked for already."""
LEAST_LATE, MEASURED_LATE = 2, 12
"""How often a background is measured after the first steps, at most: one that is none, and one that
is."""
STEADY, VERY_STEADY = 0.02, 0.005
"""Change of a background from which on steps go on with a new one, where noise is left, and where
more than that is."""
LAST_SHARE, LEAST_LAST = 0.1, 4
"""Steps on all frames at the end: as a share of those before, and at least."""


@dataclass
class _Path:
    """Steps from the start on, and where they have led."""

    engine: Engine
    best: Tensor
    """The object with the least misfit."""
    least: float
    """That misfit."""
    most: int
    """How many steps the engine has taken at the end, at most."""
    rival: float = math.inf
    """The least misfit of another path, which is left for this one if it is better."""
    may_be_left: bool = False
    """Whether other steps may begin anew."""
    noise: float | None = None
    """What photon noise alone would leave of that misfit; None if nobody has asked yet."""
    best_step: int = 0
    """Number of the step after which the misfit was least; 0 is the start."""
    has_diverged: bool = False
    """Whether steps diverge, and shorter ones are no better."""
    least_before: float = math.inf
    """The least misfit when steps were made shorter."""
    misfits: list[float] = field(default_factory=list)
    """After each of its steps."""

    def shorten(self) -> None:
        """Go back to the best object, with shorter steps; they are no use if those before were
        none."""
        is_idle = self.best_step > 0 and self.least > SHORTER_GAIN * self.least_before
        self.engine.go_back(self.best)
        self.has_diverged = is_idle or self.engine.damping < LEAST_DAMPING
        self.least_before = self.least


class Depth:
    """Steps on an exposure of one canvas, as many as it needs."""

    def __init__(
        self,
        exposure: Exposure,
        steps: int | None = None,
        start: Tensor | None = None,
        flux: Tensor | None = None,
    ) -> None:
        """Hold frames back, where there are enough.

        Args:
            exposure: frames and probes.
            steps: how many steps to take, the last ones included; None takes as many as it needs.
            start: (1, S, T) complex64 object to go on from; None begins with a flat one.
            flux: as for `Frames`.
        """
        self.steps = steps
        self.frames = Frames(exposure, flux)
        """Which of them take part, which judge, how much light each has had, and what came besides.
        """
        engine = Engine(self.frames.rest, start)
        self.misfits = [self.measure(engine.canvas)]
        """Of the frames held back, before the first step and after each."""
        self._flat = self.misfits[0] if start is None else self.measure(torch.ones_like(start))
        self._start, self._path = start, self._make_path(engine, MOST_STEPS)
        self._path.may_be_left = self._goes_by_frames
        self._left = 0  # steps of paths that were left
        self._story = ""

    def _make_path(self, engine: Engine, most: int) -> _Path:
        least = self.measure(engine.canvas)
        return _Path(engine, engine.canvas, least, most)

    @property
    def engine(self) -> Engine:
        """After the last step."""
        return self._path.engine

    @property
    def flux(self) -> NDArray[np.float32] | None:
        """(F,) light of each frame over the probe's, where it is heeded that they differ."""
        flux = self.frames.flux
        return None if flux is None else flux.cpu().numpy()

    def scale_background(self, intensity: float) -> NDArray[np.float32] | None:
        """(N, N) counts of every frame that are heeded as not the probe's light, zero frequency at
        N//2, where it is heeded that there are.

        Args:
            intensity: counts that are 1 in the frames.
        """
        background = self.frames.background
        if background is None:
            return None
        return np.asarray(np.fft.fftshift(background.cpu().numpy()) * np.float32(intensity))

    @property
    def best(self) -> Tensor:
        """The (1, S, T) complex64 object with the least misfit."""
        return self._path.best

    @property
    def last(self) -> Tensor:
        """The (1, S, T) complex64 object after the last step; or the best one, where all frames are
        explained much better by it: those held back lie inside, and do not tell of the rim."""
        last = self.engine.canvas
        return self.best if is_spoiled(self.frames.exposure, last, self.best) else last

    @property
    def best_step(self) -> int:
        """The step after which the misfit was least; 0 is the start."""
        return self._path.best_step

    def measure(self, canvas: Tensor) -> float:
        """Misfit of the frames that judge, those held back or all: mean square of what amplitudes
        differ by."""
        return self.frames.judges.measure_misfit(canvas)

    def _measure_best(self) -> None:
        """Once more, as other frames judge or their light is heeded."""
        path = self._path
        path.least, path.noise = self.measure(path.best), None

    def run(self) -> Iterator[Tensor]:
        """Yield the object after each step but the last ones."""
        yield from self._follow_beside_background()
        yield from self._heed_light()
        if self.frames.flux is not None and self.frames.background is None:
            path = self._path
            yield from self._heed_background()
            if self._path is not path:
                yield from self._heed_light()
        if self._goes_by_frames and self.engine.damping < 1:
            if self._is_noise():
                self.frames.judge_by_all()
                self._measure_best()
            if not self._is_noise():
                yield from self._begin_anew()
                if self.frames.flux is None:
                    yield from self._heed_light()
        self.engine.stop()

    def _begin_anew(self) -> Iterator[Tensor]:
        """Take other paths, until one leaves nothing but noise; the best is taken."""
        first, left = self._path, self._left
        start = torch.ones_like(first.best) if self._start is None else self._start
        parts = self.frames.rest.split_in_turns(SWEPT_PARTS) if start.numel() <= MOST_SWEPT else []
        found: Tensor | None = None
        least = math.inf
        # Steps that lead nowhere have wrong positions more often than bad luck.
        restraints = RESTRAINTS[: 1 if self._is_hopeless else None] if parts else ()
        for seed, restraint in enumerate(restraints):
            canvas = start
            for canvas in sweep(parts, start, SWEEPS, restraint, seed):
                self.misfits.append(self.measure(canvas))
                yield canvas
            self._left += SWEEPS
            if self.misfits[-1] < least:
                found, least = canvas, self.misfits[-1]
            if least < self._path.least:
                yield from self._try(found)
                if self._is_noise():
                    break
                found, least = None, math.inf
        else:
            for begun in [self._start] if found is None else [found, self._start]:
                if self._has_led_far and not self._is_noise():
                    yield from self._try(begun)
        how = "for {} in vain" if self._path is first else "after {}"
        self._story = f", begun anew {how.format(self._left - left)}, as long ones diverged"

    def _try(self, start: Tensor | None) -> Iterator[Tensor]:
        """Take steps with weak filters from another object, and their path if that is better."""
        one = self._path
        one.engine.stop()
        engine = Engine(self.frames.rest, start, lift=WEAK, frequency_filter=one.engine.filter)
        self._path = two = self._make_path(engine, MOST_STEPS)
        two.best_step, two.rival = len(self.misfits) - 1, one.least
        self._left += one.engine.steps
        yield from self._follow()
        is_better = two.least < CLEARLY * one.least
        self._path, other = (two, one) if is_better else (one, two)
        self._left += other.engine.steps - one.engine.steps

    def _follow_beside_background(self) -> Iterator[Tensor]:
        """Take steps, and begin again beside a background, if there is one: where it keeps the
        object from being found, not after hundreds of steps only."""
        path = self._path
        for canvas in self._follow():
            yield canvas
            if self.engine.steps == MANY:
                yield from self._heed_background()
                if self._path is not path:  # also where the background is measured down to none
                    return
        yield from self._heed_background()

    def _heed_background(self) -> Iterator[Tensor]:
        """Begin again beside light that is not the probe's, where that explains frames better."""
        frames = self.frames
        if not self._goes_by_frames or frames.background is not None or self._is_noise():
            return
        # Of the few that judge first, which costs nothing.
        noise = self._find_noise()
        gain = 2 * frames.judges.measure_background(self.best)[1]  # as they are few
        if not may_explain(gain, self._path.least - noise, noise):
            return
        background = suspect_background(frames.exposure, self.best)
        if background is None:
            return
        misfit, noise = self._measure_all()
        beyond, before, one = misfit - noise, copy.copy(frames), self._path

        def measure(canvas: Tensor) -> None:
            nonlocal background
            background = frames.find_background(canvas)
            frames.cover(background)

        def explains_much() -> bool:
            left, least = self._measure_all()  # beside a background there is more noise
            return left - least <= MUCH * beyond

        frames.cover(background)
        yield from self._begin_with(measure)
        # Where photons are few, so many steps fit noise.
        self._path = self._begin_again()
        self._path.rival = one.least
        yield from self._follow()
        for look in range(MEASURED_LATE):
            if look >= LEAST_LATE and not explains_much():
                break
            # A fine object scatters what one of few steps leaves to the background.
            last = background
            measure(self.best)
            steady = STEADY if self._is_noise() else VERY_STEADY
            if (background - last).norm() <= steady * last.norm():
                break
            self._measure_best()
            self._path = self._go_farther()
            yield from self._follow()
        if not explains_much():
            self._left += self.engine.steps - one.engine.steps
            self._path, self.frames = one, before
        elif not background.any():
            frames.cover(None)

    def _measure_all(self) -> tuple[float, float]:
        """Misfit of all frames, and what of it would be noise, of the best object.

        Those held back need not be near the ones whose light differs, and may be such frames.
        """
        exposure = self.frames.exposure
        return exposure.measure_misfit(self.best), exposure.measure_noise(self.best)

    def _heed_light(self) -> Iterator[Tensor]:
        """Go on with the light that each frame has had, where that explains frames better: as the
        best object says, and as their photons do, where that object was led astray by it."""
        if not self._goes_by_frames:
            return
        flux, is_sure = self.frames.find_flux(self.best)
        if not is_sure:
            return
        yield from self._go_on_with(flux)
        counted = self.frames.count_light()
        likeness = torch.corrcoef(torch.stack([flux, counted]))[0, 1]
        if counted.log().std() > VARIES and likeness > ALIKE:
            yield from self._go_on_with(counted, is_told=False)

    def _go_on_with(self, flux: Tensor, *, is_told: bool = True) -> Iterator[Tensor]:
        """Go on with the light of the frames, as long as something but noise is left and that
        explains frames better.

        Args:
            flux: (F,) to begin with.
            is_told: whether it is what the best object says, which must have led somewhere.
        """
        frames = self.frames
        misfit, noise = self._measure_all()
        if is_told and not min(misfit, self._path.least) < SOMEWHERE * self._flat:
            return
        most = noise + MUCH * (misfit - noise)
        is_spoiled = False
        for look in range(LOOKS):
            if misfit <= NOISY * noise:
                return
            before, one = copy.copy(frames), self._path
            if look == 0 and not is_told:
                frames.brighten(flux)
                yield from self._begin_with(self._measure_light)
            elif frames.heed(flux) if look == 0 else is_spoiled:
                self._path = self._begin_again()
            else:
                self._path = self._go_farther()
            yield from self._follow()
            is_spoiled = frames.heed(frames.find_flux(self.best)[0])
            self._measure_best()
            least, misfit = misfit, frames.exposure.measure_misfit(self.best)
            if not misfit < min(CLEARLY * least, most):
                self._left += self.engine.steps - one.engine.steps
                self._path, self.frames = one, before
                return

    def _measure_light(self, canvas: Tensor) -> None:
        self.frames.brighten(self.frames.find_flux(canvas)[0])

    def _begin_with(self, measure: Callable[[Tensor], None]) -> Iterator[Tensor]:
        """Steps from the start, of which the object says more and more of the light: it is measured
        again after every few."""
        one = self._path
        self._path = path = self._begin_again()
        engine, path.rival = path.engine, one.least
        for _ in range(MEASURED):
            turns = Turns(self.frames.rest, engine.filter)
            for _ in range(STEPS_BETWEEN):
                stage = turns[COARSE if engine.steps < COARSE_STEPS else FINE]
                engine.advance(stage[engine.steps % len(stage)])
                self._note(self.measure(engine.canvas))
                yield engine.canvas
            measure(engine.canvas)
        path.best, path.best_step = engine.canvas, len(self.misfits) - 1
        self._measure_best()

    def _begin_again(self) -> _Path:
        """Steps from the start, without what has spoiled the object."""
        engine = self.engine
        self._left += engine.steps
        rest, start = self.frames.rest, self._start
        begun = Engine(rest, start, lift=engine.lift, frequency_filter=engine.filter)
        return self._make_path(begun, MOST_STEPS)

    def _go_farther(self) -> _Path:
        """Steps from the best object, as long as at first: it may be a frame of other light that
        made them diverge."""
        one, like = self._path, self.engine
        engine = Engine(
            self.frames.rest, one.best, like.steps, lift=like.lift, frequency_filter=like.filter
        )
        path = self._make_path(engine, engine.steps + STEPS_OF_A_LOOK)
        path.best_step = one.best_step
        return path

    def _follow(self) -> Iterator[Tensor]:
        path, turns = self._path, Turns(self.frames.rest, self.engine.filter)
        for number in (COARSE, FINE, ALL):
            stage = turns[number]
            least = misfit = path.least
            since = 0
            while True:
                is_enough = self._is_enough(number == COARSE, since)
                if not misfit < (DRIFTS if is_enough else WORSE) * path.least:
                    path.shorten()
                    if path.has_diverged or (is_enough and self.steps is not None):
                        break
                    misfit, since = path.least, 0
                elif is_enough:
                    break
                path.engine.advance(stage[path.engine.steps % len(stage)])
                misfit = self.measure(path.engine.canvas)
                if misfit < WORSE * path.least:
                    since = 0 if misfit < least * (1 - GAIN) else since + 1
                    least = min(least, misfit)
                    if misfit <= path.least:
                        path.best, path.least, path.noise = path.engine.canvas, misfit, None
                        path.best_step = len(self.misfits)
                    self._note(misfit)
                    yield path.engine.canvas

    def _note(self, misfit: float) -> None:
        self.misfits.append(misfit)
        self._path.misfits.append(misfit)

    @property
    def _goes_by_frames(self) -> bool:
        """Whether frames held back say how far to go, and whether to try anything else."""
        return self.steps is None and self.frames.held_back is not None

    @property
    def _is_doubtful(self) -> bool:
        """Whether steps that were too long may have led to a wrong object."""
        path = self._path
        return path.may_be_left and path.engine.damping < 1 and not self._is_hopeless

    @property
    def _is_hopeless(self) -> bool:
        return self._path.has_diverged and not self._has_led_far

    @property
    def _has_led_far(self) -> bool:
        return self._path.least < FAR * self._flat

    def _is_enough(self, is_coarse: bool, since: int) -> bool:
        path, done = self._path, self.engine.steps
        if self.steps is not None:
            limit = max(1, self.steps - self.last_steps)
            return done >= (min(COARSE_STEPS, limit // 2) if is_coarse else limit)
        if is_coarse:
            return done >= COARSE_STEPS
        if self.frames.held_back is None:
            return done >= UNSPARED_STEPS
        if done >= (DOUBTFUL_STEPS if self._is_doubtful else path.most):
            return True
        if done >= TRIAL and path.least > CLEARLY * path.rival:
            return True
        if done < LEAST_STEPS or since * path.engine.damping < PATIENCE:
            return False
        enough, misfits = NEAR * path.least, enumerate(path.misfits, start=1)
        near = next((step for step, misfit in misfits if misfit <= enough), 0)
        return done - near >= MORE_PATIENCE * done or self._is_noise()

    def _is_noise(self) -> bool:
        """Whether nothing but photon noise keeps the frames held back from being explained."""
        return self._path.least <= NOISY * self._find_noise()

    def _find_noise(self) -> float:
        path = self._path
        if path.noise is None:
            path.noise = self.frames.judges.measure_noise(path.best)
        return path.noise

    @property
    def taken(self) -> int:
        """How many steps were taken, `finish` included."""
        return self._left + self.engine.steps + self.last_steps

    @property
    def last_steps(self) -> int:
        """How many steps are left for `finish`."""
        count = self.engine.steps if self.steps is None else self.steps
        most = LEAST_LAST if self.steps is None else max(1, self.steps // 2)
        return max(round(LAST_SHARE * count), min(LEAST_LAST, most))

    def finish(self, start: Tensor) -> Iterator[Engine]:
        """Yield the engine after each of the last steps, on all frames; where they explain frames
        worse, they are undone and taken half as long, or left out.

        Args:
            start: (1, S, T) complex64 object to go on from.
        """
        count = self.last_steps
        # Nothing is shown or undone from here on; on a large canvas each field counts.
        self.engine.rest()
        self._path.best = self.engine.canvas = start
        engine = begin_like(self.engine, self.frames.exposure, start, self.engine.steps)
        turn = Turn([self.frames.exposure], engine.filter)
        for _ in range(count - 1):
            engine.advance(turn)
            yield engine
        engine.advance(turn)
        # Frames held back are among them now, and must not be explained worse; nor must those at
        # the rim, of which these do not tell.
        least, exposure = self.measure(start), self.frames.exposure
        while not self.measure(engine.canvas) <= least or is_spoiled(
            exposure, engine.canvas, start
        ):
            engine.go_back(start)
            if engine.damping < LEAST_DAMPING:
                break
            for _ in range(count):
                engine.advance(turn)
        yield engine

    def go_on(
        self, canvas: Tensor, counts: Iterable[float], *, takes_all: bool = False
    ) -> Iterator[Tensor]:
        """Yield the (1, S, T) complex64 object after numbers of steps from another, all frames in
        each; the momentum begins anew.

        Args:
            canvas: (1, S, T) complex64.
            counts: in rising order; a fraction lies between two steps.
            takes_all: whether the frames held back are taken in.
        """
        exposure = self.frames.exposure if takes_all else self.frames.rest
        before = after = canvas
        engines, done = follow(exposure, canvas, self.engine), 0
        for count in counts:
            while done < count:
                before, after, done = after, next(engines).canvas, done + 1
            over = done - count
            yield (before - after).mul_(over).add_(after) if over else after

    def describe(self) -> str:
        """How many steps there were, and why, in a line."""
        return f"{self._describe_steps()}{self.frames.describe_light()}"

    def _describe_steps(self) -> str:
        length, best = self.engine.damping, self.best_step
        taken = f"{self.taken} steps"
        if self._story:
            taken += self._story
        elif length < 1:
            taken += f", at the end {length:g} times as long, as longer ones diverged"
        if self.steps is not None:
            asked = f", not {self.steps}; back to step {best}" if self._path.has_diverged else ""
            return f"{taken}{asked or ', as asked for'}"
        held_back = "frames" if self.frames.held_back is None else "frames held back"
        if best == 0 and self.frames.held_back is not None and self._is_noise():
            return f"{taken}; nothing but photon noise is left of {held_back} from the start"
        if best == 0:
            return (
                f"{taken}; {held_back} are explained no better than at the start: check probe and "
                "positions"
            )
        if self._path.has_diverged:
            return f"{taken}; back to step {best}, the best for {held_back}"
        if self.frames.held_back is None:
            return f"{taken}; too few frames to hold some back"
        if self.engine.steps >= MOST_STEPS:
            return f"{taken}, the most; the misfit of frames held back still falls"
        return f"{taken}; misfit of frames held back level since {best}"


def is_spoiled(exposure: Exposure, after: Tensor, before: Tensor) -> bool:
    """Whether all frames are explained much worse by an object that has become much brighter
    somewhere, as at the rim, of which frames held back do not tell.

    Args:
        exposure: the frames.
        after, before: (1, S, T) complex64 objects.
    """
    if not after.abs().max() > WORSE * before.abs().max():
        return False
    return exposure.measure_misfit(after) > WORSE * exposure.measure_misfit(before)
