"""Physics steps on the whole canvas: an iterative engine, with nothing learned.

A step of a parallel PIE moves the object along a gradient. Three things let few steps lead far.
Momentum; and larger steps where the gradient is weak. It is weak at low frequencies of the phase: a
frame shows them only as a tilt across its spot, so that their curvature falls as (q r)^2, with q
the frequency and r the radius of the spot. The gradient is therefore split in two: the part along
the object's own phase changes the amplitude, the part across it changes the phase. A sum of
Lorentzians 1 / (1 + (q L)^2), with L in units of r, is added to the part across.

And frames take turns, as in a stochastic gradient. The first steps use a quarter of the frames
each, evenly spread: that costs a quarter of a step on all frames, and leads nearly as far. The next
use a half, so that what a frame's noise does to the object is averaged out by others; the last use
all.

Axis letters: B canvases, S, T rows and columns of a canvas, L lengths of the filter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from ptycho_tasks_torch.physics.exposure import WEAK_LIGHT, Exposure

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Lengths of the filter, in units of the spot's radius."""
EARLY_WEIGHTS, WEIGHTS = (1.7, 1.7, 1.7, 1.7, 1.7), (1.0, 1.5, 2.0, 3.0, 5.0)
"""Of the Lorentzians, in the first steps and later. A phase of several radians is found wrongly
where its lowest frequencies are moved far before the fine structure is there."""
EVEN_WEIGHTS = (0.2, 0.2, 0.2, 0.2, 0.2)
"""Of a filter that leaves a constant as it is."""
GAINS = (1.3, 1.2)
"""Of the step along and across the object's phase."""
SUBSETS, FEW_SUBSETS = 4, 2
"""Parts of the frames that take turns; and where there are few frames, or they are far apart."""
FEW_FRAMES, FAR_APART, FARTHER_APART = 80, 0.6, 0.85
"""Frames of a canvas, and their distance in radii of the spot from which on quarters, and halves
after the first steps, are too sparse. With less than a dozen or two in a step, or with frames in it
that hardly overlap, momentum drives the object away."""
SWEPT_PARTS = 24
"""Parts of the frames in a sweep."""
COARSE_STEPS = 8
"""Number of the first steps, which use one part each."""
MOMENTUM, RAMP = 0.585, 12
"""Of a step: what it grows to in the first steps, and their number."""
TOP_MOMENTUM, TOP_RAMP = 0.85, 12
"""What it then grows to, and in how many steps."""
SHOWN = ((0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0))
"""Weights of filters whose output a network sees."""


COARSE, FINE, ALL = range(3)
"""Stages of a run: a part of the frames in a turn, two parts, and all."""


class Turns:
    """The frames of an exposure, as they are used stage by stage.

    On a large canvas, the light of the turns takes more memory than the object: only that of the
    stage that was asked for last is kept.
    """

    def __init__(self, exposure: Exposure, frequency_filter: FrequencyFilter) -> None:
        """Split the frames into turns."""
        are_few = len(exposure.places) < FEW_FRAMES * exposure.canvases
        is_sparse = are_few or exposure.step > FAR_APART
        parts = exposure.split_in_turns(FEW_SUBSETS if is_sparse else SUBSETS)
        are_whole = are_few or exposure.step > FARTHER_APART
        pairs = 1 if are_whole else min(FEW_SUBSETS, len(parts))
        self._filter = frequency_filter
        self._members = (
            [[part] for part in parts],
            [parts[index::pairs] for index in range(pairs)],
            [[exposure]],
        )
        self._stage: int | None = None
        self._turns: list[Turn] = []

    def __getitem__(self, stage: int) -> list[Turn]:
        """The turns of a stage."""
        if stage != self._stage:
            self._stage, self._turns = stage, []
            self._turns = [Turn(parts, self._filter) for parts in self._members[stage]]
        return self._turns


class Engine:
    """The object of an exposure, step by step; without gradients."""

    def __init__(
        self,
        exposure: Exposure,
        start: Tensor | None = None,
        steps: int = 0,
        *,
        damping: float = 1.0,
        lift: float = 1.0,
        frequency_filter: FrequencyFilter | None = None,
    ) -> None:
        """Begin with a flat object, or with another.

        Args:
            exposure: frames and probes.
            start: (B, S, T) complex64.
            steps: that led to it.
            damping: what the length of every step is multiplied by.
            lift: what the share of the filters in it is multiplied by.
            frequency_filter: of the same canvas, where there is one: it takes as much memory as
                the object.
        """
        self.filter = frequency_filter or FrequencyFilter(exposure)
        self.canvas = torch.ones_like(exposure.light) + 0j if start is None else start
        """(B, S, T) complex64 object."""
        self.velocity: Tensor | None = None
        """(2, B, S, T) float32 last change along and across the object's phase."""
        self.steps = steps
        """That were taken."""
        self.gradient: Tensor | None = None
        """(2, B, S, T) float32 step along and across the object's phase that the frames of the last
        turn asked for."""
        self.damping, self.lift = damping, lift
        self._turn: Turn | None = None

    def advance(self, turn: Turn) -> None:
        """Take a step."""
        # One field at a time, and in place: on a large canvas each of them counts.
        self.gradient = None
        step = turn.step(self.canvas)
        phase = (self.canvas / modulus(self.canvas)).conj_physical_()
        self.gradient = torch.view_as_real(step.mul_(phase)).movedim(-1, 0)
        phase.conj_physical_()
        if self.velocity is None:
            self.velocity = self.gradient.new_zeros(self.gradient.shape)
        self.velocity.mul_(find_momentum(self.steps))
        for along, part, gain in zip(self.velocity, self.gradient, GAINS, strict=True):
            along += self.damping * gain * part
        self._turn = turn
        weights = EARLY_WEIGHTS if self.steps < COARSE_STEPS else WEIGHTS
        across = self.filter(turn.lit.mul_(self.gradient[1]), weights)
        across.mul_(turn.lit).div_(turn.reach)
        self.velocity[1] += across.mul_(self.damping * self.lift)
        del across
        self.canvas = phase.mul_(torch.complex(*self.velocity)).add_(self.canvas)
        self.steps += 1

    def stop(self) -> None:
        """Take the momentum away."""
        self.velocity = None

    def go_back(self, canvas: Tensor) -> None:
        """Take another object, and steps half as long from there."""
        self.canvas = canvas
        self.damping /= 2
        self.stop()

    def rest(self) -> None:
        """Keep the object alone: there is nothing to `show` until the next step."""
        self.velocity = self.gradient = self._turn = None

    def show(self) -> Tensor:
        """(4, B, S, T) float32 for a network: the last gradient, and its part across the phase
        through the filters of `SHOWN`."""
        assert self.gradient is not None
        assert self._turn is not None
        across = self._turn.lit.mul_(self.gradient[1])
        return torch.stack([*self.gradient, *(self.filter(across, row) for row in SHOWN)])


def find_momentum(step: int) -> float:
    """Momentum of a step, counted from 0."""
    late = min(max(step - RAMP, 0) / TOP_RAMP, 1.0)
    return MOMENTUM * min(step / RAMP, 1.0) + (TOP_MOMENTUM - MOMENTUM) * late


def run_steps(exposure: Exposure, count: int, *, damping: float = 1.0) -> Iterator[Engine]:
    """Yield the engine after each of `count` steps; the last eighth is on all frames.

    Args:
        exposure: frames and probes.
        count: number of steps.
        damping: see `Engine`.
    """
    engine = Engine(exposure, damping=damping)
    turns = Turns(exposure, engine.filter)
    last = max(1, count // 8)
    for k in range(count):
        # A quarter of a short run at least: the last steps are to average the noise out.
        early = COARSE if k < min(COARSE_STEPS, count / 2) else FINE
        stage = turns[early if k < count - last else ALL]
        engine.advance(stage[k % len(stage)])
        yield engine


def follow(exposure: Exposure, canvas: Tensor, like: Engine) -> Iterator[Engine]:
    """Yield the engine after each step, without end, from an object; all frames are in each, and
    the momentum begins anew.

    Args:
        exposure: frames and probes.
        canvas: (B, S, T) complex64.
        like: an engine of the same canvas, whose steps are alike.
    """
    engine = begin_like(like, exposure, canvas)
    turn = Turn([exposure], engine.filter)
    while True:
        engine.advance(turn)
        yield engine


def sweep(
    parts: Sequence[Exposure], start: Tensor, count: int, restraint: float, seed: int
) -> Iterator[Tensor]:
    """Yield the (1, S, T) complex64 object after each of `count` sweeps over the frames: steps on
    small parts of them, one after the other in random order.

    They are those of rPIE (A. Maiden, D. Johnson and P. Li, Optica 4, 736, 2017) with the frames of
    a part together. Where they lead depends on the order, and they find their way also where steps
    on many frames do not: to objects without a mean, whose phase jumps by half a turn.

    Args:
        parts: the frames, split in `SWEPT_PARTS` turns.
        start: (1, S, T) complex64 object.
        count: of sweeps.
        restraint: of steps where little light falls, 0 to 1: alpha of rPIE.
        seed: of the order.
    """
    canvas, generator = start, random.Random(seed)
    weights = [torch.lerp(part.light, part.light.max(), restraint).reciprocal_() for part in parts]
    for _ in range(count):
        for index in generator.sample(range(len(parts)), len(parts)):
            canvas = parts[index].correction(canvas).mul_(weights[index]).add_(canvas)
        yield canvas


def begin_like(like: Engine, exposure: Exposure, canvas: Tensor, steps: int = 0) -> Engine:
    """An engine on the same canvas, whose steps are as long and as much filtered.

    Args:
        like: the other engine.
        exposure, canvas, steps: as for an `Engine`.
    """
    length, lift = like.damping, like.lift
    return Engine(exposure, canvas, steps, damping=length, lift=lift, frequency_filter=like.filter)


def modulus(canvas: Tensor) -> Tensor:
    """Modulus of a complex canvas, with a finite slope at zero."""
    return (canvas.real.square() + canvas.imag.square() + 1e-4).sqrt()


class FrequencyFilter:
    """Filters fields on the canvases of an exposure."""

    def __init__(self, exposure: Exposure) -> None:
        """For canvases with a margin that the filters hardly reach beyond."""
        margin = math.ceil(2 * exposure.radius)
        self._shape, self._radius = exposure.shape, exposure.radius
        self._padded = [next_fast_len(side + margin, real=True) for side in exposure.shape]
        self._device = exposure.light.device
        self._weights: tuple[float, ...] = ()
        self._response: Tensor = exposure.light[:0]

    def __call__(self, field: Tensor, weights: tuple[float, ...]) -> Tensor:
        """Filter a (B, S, T) field with the (L,) weights of the Lorentzians."""
        if weights != self._weights:
            self._weights, self._response = weights, self._respond(weights)
        shape, (S, T) = self._padded, self._shape
        spectrum = torch.fft.rfft2(field, s=shape).mul_(self._response)
        del field
        filtered: Tensor = torch.fft.irfft2(spectrum, s=shape)[..., :S, :T]
        return filtered

    def _respond(self, weights: tuple[float, ...]) -> Tensor:
        """Rows and columns of the weighted sum of the Lorentzians, as of a real field's transform.

        That of the weights that were used last is kept, and not each Lorentzian.
        """
        rows, columns = self._padded
        q_y = torch.fft.fftfreq(rows, device=self._device)[:, None]
        q_x = torch.fft.rfftfreq(columns, device=self._device)
        square = (2 * math.pi * self._radius) ** 2 * (q_y.square() + q_x.square())
        response = torch.zeros_like(square)
        for length, weight in zip(LENGTHS, weights, strict=True):
            if weight:
                response += (square * length**2).add_(1).reciprocal_().mul_(weight)
        return response

    def reach(self, lit: Tensor) -> Tensor:
        """(B, 1, 1) share of a constant that a filter leaves on lit pixels; small if they are few.

        Divided by this share, a step that is learned on small blocks is right on a large canvas. A
        share for each pixel would make the step the gradient of nothing, and lead less far.
        """
        filtered, sides = lit * self(lit, EVEN_WEIGHTS), (-2, -1)
        return filtered.sum(dim=sides, keepdim=True) / lit.sum(dim=sides, keepdim=True)


class Turn:
    """Frames that are used together in a step."""

    def __init__(self, parts: Sequence[Exposure], frequency_filter: FrequencyFilter) -> None:
        """Join parts of an exposure."""
        light = sum((part.light for part in parts[1:]), parts[0].light)
        if len(parts) > 1:
            for part in parts:
                part.forget_light()
        self._weak = WEAK_LIGHT * light.amax(dim=(-2, -1), keepdim=True)
        self._parts, self._light = parts, light
        self.reach = frequency_filter.reach(self.lit)

    @property
    def lit(self) -> Tensor:
        """(B, S, T) float32, about 1 where light falls, else 0."""
        return self._weigh().mul_(self._light)

    def _weigh(self) -> Tensor:
        return (self._light + self._weak).reciprocal_()

    def step(self, canvas: Tensor) -> Tensor:
        """(B, S, T) complex64 correction, divided by the light."""
        total = self._parts[0].correction(canvas)
        for part in self._parts[1:]:
            total.add_(part.correction(canvas))
        return total.mul_(self._weigh())
