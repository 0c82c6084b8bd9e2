"""How many physics steps a scan needs: until frames held back are explained no better.

A few frames, evenly spread, are left out of the steps, and their misfit is followed. Steps on parts
of the frames lead far at little cost; when the frames held back no longer gain by them, steps on
all others average out what noise the parts leave; when these gain nothing either, the frames held
back are taken in for the last steps. Where photons are few that also keeps the object from fitting
their noise. Steps that diverge are undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from torch import Tensor

from ptycho_tasks_torch.physics.exposure import Exposure, morton_order
from ptycho_tasks_torch.unrolled.steps import ALL, COARSE, COARSE_STEPS, FINE, Engine, Turn, Turns

SHARE, LEAST_HELD_BACK, MOST_HELD_BACK = 24, 3, 64
"""One in so many frames is held back, and bounds of their number."""
LEAST_FRAMES = 12
"""A scan of fewer frames can spare none."""
LEAST_STEPS, MOST_STEPS = 24, 100
"""Bounds. Where photons are few, the low frequencies of the phase gain by steps that the misfit
of single frames does not show."""
UNSPARED_STEPS = 48
"""Steps of a scan that has no frames to spare."""
GAIN, PATIENCE = 0.002, 6
"""Share by which the misfit must fall to count, and how many steps without that end a stage."""
WORSE = 2.0
"""A misfit so many times the least one: the steps diverge."""
LAST_SHARE, LEAST_LAST = 0.1, 4
"""Steps on all frames at the end: as a share of those before, and at least."""
STEPS_AFTER, ENOUGH = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0), 0.5
"""Steps that may follow a correction; and the share that is enough of the most that frames held
back gain by them, and by them and the correction. The last of it costs more noise, pixel by pixel,
than it is worth."""


class Depth:
    """Steps on an exposure of one canvas, as many as it needs."""

    def __init__(
        self, exposure: Exposure, steps: int | None = None, start: Tensor | None = None
    ) -> None:
        """Hold frames back, where there are enough.

        Args:
            exposure: frames and probes.
            steps: how many steps to take, the last ones included; None takes as many as it needs.
            start: (1, S, T) complex64 object to go on from; None begins with a flat one.
        """
        self.exposure, self.steps = exposure, steps
        held_back = choose_held_back(exposure)
        self.held_back = exposure.take(held_back) if held_back else None
        """Frames that are no part of the steps but the last."""
        rest = sorted({*range(len(exposure.places))} - {*held_back})
        self.rest = exposure.take(rest) if held_back else exposure
        self.engine = Engine(self.rest, start)
        self.misfits = [self.measure(self.engine.canvas)]
        """Of the frames held back, before the first step and after each."""
        self.best = self.engine.canvas
        """The object with the least misfit."""
        self.has_diverged = False

    def measure(self, canvas: Tensor) -> float:
        """Misfit of the frames held back, or of all if none are: mean square of what amplitudes
        differ by."""
        frames = self.exposure if self.held_back is None else self.held_back
        return frames.measure_misfit(canvas)

    def run(self) -> Iterator[Tensor]:
        """Yield the object after each step but the last ones."""
        turns = Turns(self.rest, self.engine.filter)
        for number in (COARSE, FINE, ALL):
            stage = turns[number]
            least = min(self.misfits)
            since = 0
            while not self._is_enough(number == COARSE, since):
                self.engine.advance(stage[self.engine.steps % len(stage)])
                misfit = self.measure(self.engine.canvas)
                if not misfit < WORSE * min(self.misfits):
                    self._undo()
                    break
                since = 0 if misfit < least * (1 - GAIN) else since + 1
                least = min(least, misfit)
                if misfit <= min(self.misfits):
                    self.best = self.engine.canvas
                self.misfits.append(misfit)
                yield self.engine.canvas
        self.engine.stop()

    def _is_enough(self, is_coarse: bool, since: int) -> bool:
        done = self.engine.steps
        if self.steps is not None:
            limit = max(1, self.steps - self.last_steps)
            return done >= (min(COARSE_STEPS, limit // 2) if is_coarse else limit)
        if is_coarse:
            return done >= COARSE_STEPS
        if self.held_back is None:
            return done >= UNSPARED_STEPS
        return done >= MOST_STEPS or (done >= LEAST_STEPS and since >= PATIENCE)

    def _undo(self) -> None:
        self.has_diverged = True
        self.engine.canvas = self.best
        self.engine.stop()

    @property
    def best_step(self) -> int:
        """The step after which the misfit was least; 0 is the start."""
        return min(range(len(self.misfits)), key=self.misfits.__getitem__)

    @property
    def most_steps(self) -> int:
        """How many steps there are at most, the last ones included."""
        return round((1 + LAST_SHARE) * MOST_STEPS) if self.steps is None else self.steps

    @property
    def taken(self) -> int:
        """How many steps were taken, `finish` included."""
        return self.engine.steps + self.last_steps

    @property
    def last_steps(self) -> int:
        """How many steps are left for `finish`."""
        count = self.engine.steps if self.steps is None else self.steps
        most = LEAST_LAST if self.steps is None else max(1, self.steps // 2)
        return max(round(LAST_SHARE * count), min(LEAST_LAST, most))

    def finish(self, start: Tensor) -> Iterator[Engine]:
        """Yield the engine after each of the last steps, on all frames.

        Args:
            start: (1, S, T) complex64 object to go on from.
        """
        count = self.last_steps
        # Nothing is shown or undone from here on; on a large canvas each field counts.
        self.engine.rest()
        self.best = self.engine.canvas = start
        steps, frequency_filter = self.engine.steps, self.engine.filter
        engine = Engine(self.exposure, start, steps, frequency_filter=frequency_filter)
        turn = Turn([self.exposure], engine.filter)
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
        exposure = self.exposure if takes_all else self.rest
        before = canvas
        engine = Engine(exposure, canvas, frequency_filter=self.engine.filter)
        turn = Turn([exposure], engine.filter)
        for count in counts:
            while engine.steps < count:
                before = engine.canvas
                engine.advance(turn)
            over = engine.steps - count
            yield (before - engine.canvas).mul_(over).add_(engine.canvas) if over else engine.canvas

    def describe(self) -> str:
        """How many steps there were, and why, in a line."""
        taken, best = self.taken, self.best_step
        if self.steps is not None and self.has_diverged:
            return f"{taken} steps, not {self.steps}; diverged, back to step {best}"
        if self.steps is not None:
            return f"{taken} steps, as asked for"
        if self.held_back is None:
            return f"{taken} steps; too few frames to hold some back"
        if best == 0:
            return (
                f"{taken} steps; frames held back are explained no better than at the start: check "
                "probe and positions"
            )
        if self.has_diverged:
            return f"{taken} steps; diverged, back to step {best}, the best for frames held back"
        if self.engine.steps >= MOST_STEPS:
            return f"{taken} steps, the most; the misfit of frames held back still falls"
        return f"{taken} steps; misfit of frames held back level since {best}"


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


def choose_correction(depth: Depth, correct: Callable[[Engine], Tensor]) -> float | None:
    """Whether a correction is taken, and how many steps on all frames follow it: one of
    `STEPS_AFTER`; None leaves it out.

    Steps that follow bring back what of the frames a correction took away, and their noise; the
    fewest are taken that are enough. The correction is taken if frames held back gain by it,
    against the object without, or after a step; what it does to an object that it does not
    understand, and steps undo, is no gain. They are compared by counts, for the roots of few counts
    are missed least by an object that is too smooth.

    Args:
        depth: after `run`.
        correct: gives the corrected object of an engine's, which takes no more steps.
    """
    if depth.held_back is None:
        return 0.0
    compare, canvas = depth.held_back.measure_divergence, depth.engine.canvas
    without = min(map(compare, depth.go_on(canvas, (0.0, 1.0))))
    path = depth.go_on(correct(depth.engine), STEPS_AFTER)
    found = dict(zip(STEPS_AFTER, map(compare, path), strict=True))
    least = min(found.values())
    if not least < without:
        return None
    enough = min(start + ENOUGH * (least - start) for start in (found[0.0], without))
    return next(count for count, value in found.items() if value <= enough)
