"""The course of a reconstruction: physics steps, and the network's correction where it helps."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.unrolled.correction import list_unlearned
from ptycho_tasks_torch.unrolled.depth import Depth, is_spoiled
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork, is_faint
from ptycho_tasks_torch.unrolled.steps import Engine

WAYS_TAKEN = 4
"""Ways in which the object is turned for the network, whose corrections are averaged, where photons
are few: what it does by chance of how an object lies is less then. With more photons it does too
little to be worth the time."""
STEPS_AFTER, ENOUGH = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0), 0.5
"""Steps that may follow a correction; and the share that is enough of the most that frames held
back gain by them, and by them and the correction. The last of it costs more noise, pixel by pixel,
than it is worth."""


class Choice(NamedTuple):
    """What is taken of a network's corrections."""

    corrections: int
    """How many, one after the other."""
    steps: float
    """On all frames, that follow: one of `STEPS_AFTER`."""


def choose_correction(
    depth: Depth, corrections: Callable[[Engine, Exposure], Iterable[Tensor]]
) -> Choice | None:
    """How many corrections are taken, and how many steps follow the last; None leaves them out.

    Steps that follow bring back what of the frames a correction took away, and their noise; the
    fewest are taken that are enough. Corrections are taken if frames held back gain by them,
    against the object without, or after a step; what they do to an object that they do not
    understand, and steps undo, is no gain. Objects are compared by counts, for the roots of few
    counts are missed least by an object that is too smooth.

    Args:
        depth: after `run`.
        corrections: gives the object of an engine, which takes no more steps, corrected once, and
            more often; from the engine and the frames that it is to explain.
    """
    if depth.frames.held_back is None:
        return Choice(1, 0.0)
    compare, canvas = depth.frames.held_back.measure_divergence, depth.engine.canvas
    without = min(map(compare, depth.go_on(canvas, (0.0, 1.0))))
    paths = [
        dict(zip(STEPS_AFTER, map(compare, depth.go_on(corrected, STEPS_AFTER)), strict=True))
        for corrected in corrections(depth.engine, depth.frames.rest)
    ]
    found = min(paths, key=lambda path: min(path.values()))
    least = min(found.values())
    if not least < without:
        return None
    enough = min(start + ENOUGH * (least - start) for start in (found[0.0], without))
    steps = next(count for count, value in found.items() if value <= enough)
    return Choice(1 + paths.index(found), steps)


class Course:
    """A reconstruction on one canvas; without gradients."""

    def __init__(
        self, exposure: Exposure, network: UnrolledNetwork, steps: int | None = None
    ) -> None:
        """Begin with a flat object.

        Args:
            exposure: frames and probes.
            network: corrects what the steps lead to.
            steps: see `Depth`.
        """
        self.depth, self._network = Depth(exposure, steps), network
        self.is_idle = network.correction.is_idle
        """Whether the network corrects nothing."""
        self.choice: Choice | None = None
        """See `choose_correction`; known after `run`."""

    def run(self) -> Iterator[Tensor]:
        """Yield the (1, S, T) complex64 object after each step and after the correction."""
        depth = self.depth
        yield from depth.run()
        correct = functools.partial(self._network.correct_in_turns, is_last=True)
        self.choice = choice = None if self.is_idle else choose_correction(depth, correct)
        # Where photons are few, more steps than frames held back ask for bring noise, which the
        # correction takes away, and low frequencies of the phase, which it could not find.
        for engine in depth.finish(depth.best if choice is None else depth.last):
            yield engine.canvas
        if choice is not None:
            ways = WAYS_TAKEN if is_faint(depth.frames.exposure) else 1
            uncorrected = engine.canvas
            *_, corrected = correct(engine, depth.frames.exposure, choice.corrections, ways)
            *_, corrected = depth.go_on(corrected, [choice.steps], takes_all=True)
            if is_spoiled(depth.frames.exposure, corrected, uncorrected):
                self.choice, corrected = None, uncorrected
            yield corrected

    def finish(self) -> Tensor:
        """The (1, S, T) complex64 object that it leads to."""
        return deque(self.run(), maxlen=1).pop()

    def describe(self) -> str:
        """What happened, in a line."""
        if self.is_idle:
            return self.depth.describe()
        return f"{self.depth.describe()}; {self._describe_correction()}"

    def _describe_correction(self) -> str:
        if self.choice is None:
            return "uncorrected: frames are explained no better by the network"
        corrections, steps = self.choice
        often = " twice" if corrections == 2 else ""
        taken = f"{steps:g} of a step" if steps < 1 else f"{steps:g} step{'s' if steps > 1 else ''}"
        after = f", then {taken}" if steps else ""
        unlearned = " and ".join(list_unlearned(self.depth.frames.exposure))
        doubt = f"; the network has not learned from such scans: {unlearned}" if unlearned else ""
        return f"corrected{often} by the network{after}{doubt}"
