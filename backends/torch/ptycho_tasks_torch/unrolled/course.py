"""The course of a reconstruction: physics steps, and the network's correction where it helps."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator

from torch import Tensor

from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.unrolled.correction import list_unlearned
from ptycho_tasks_torch.unrolled.depth import Choice, Depth, choose_correction
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork, is_faint

WAYS_TAKEN = 4
"""Ways in which the object is turned for the network, whose corrections are averaged, where photons
are few: what it does by chance of how an object lies is less then. With more photons it does too
little to be worth the time."""


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
        for engine in depth.finish(depth.best if choice is None else depth.engine.canvas):
            yield engine.canvas
        if choice is not None:
            ways = WAYS_TAKEN if is_faint(depth.exposure) else 1
            *_, corrected = correct(engine, depth.exposure, choice.corrections, ways)
            yield from depth.go_on(corrected, [choice.steps], takes_all=True)

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
            return "uncorrected: frames held back are explained no better by the network"
        corrections, steps = self.choice
        often = " twice" if corrections == 2 else ""
        plural = "s" if steps > 1 else ""
        after = f", then {steps:g} step{plural}" if steps else ""
        unlearned = " and ".join(list_unlearned(self.depth.exposure))
        doubt = f"; the network has not learned from such scans: {unlearned}" if unlearned else ""
        return f"corrected{often} by the network{after}{doubt}"
