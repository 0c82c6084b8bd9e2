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
GAINS = (1.3, 1.2)
"""Of the step along and across the object's phase."""
SUBSETS, FEW_SUBSETS = 4, 2
"""Parts of the frames that take turns; and where there are few frames, or they are far apart."""
FEW_FRAMES, FAR_APART, FARTHER_APART = 80, 0.6, 0.85
"""Frames of a canvas, and their distance in radii of the spot from which on quarters, and halves
after the first steps, are too sparse. With less than a dozen or two in a step, or with frames in it
that hardly overlap, momentum drives the object away."""
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

    On a large canvas, turns take more memory than the object: only those of the stage that was
    asked for last are kept.
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
        frequency_filter: FrequencyFilter | None = None,
    ) -> None:
        """Begin with a flat object, or with another.

        Args:
            exposure: frames and probes.
            start: (B, S, T) complex64.
            steps: that led to it.
            damping: what the length of every step is multiplied by.
            frequency_filter: of the same canvas, where there is one: it takes as much memory as
                the object.
        """
        self.filter = frequency_filter or FrequencyFilter(exposure)
        self.canvas = torch.ones_like(exposure.light) + 0j if start is None else start
        """(B, S, T) complex64 object."""
        self.velocity = exposure.light.new_zeros(()).expand((2, *self.canvas.shape))
        self.steps = steps
        """That were taken."""
        self.gradient = self.velocity
        """(2, B, S, T) float32 step along and across the object's phase that the frames of the last
        turn asked for."""
        # Once, for a GPU waits for each constant that is sent there.
        self._gains = damping * self.velocity.new_tensor(GAINS)[:, None, None, None]
        self._weights = damping * self.velocity.new_tensor((EARLY_WEIGHTS, WEIGHTS))[:, None]
        self._lit = exposure.light

    def advance(self, turn: Turn) -> None:
        """Take a step."""
        step = turn.step(self.canvas)
        phase = self.canvas / modulus(self.canvas)
        self.gradient = torch.view_as_real(step.mul_(phase.conj())).movedim(-1, 0)
        lit = self._lit = turn.lit
        weights = self._weights[0 if self.steps < COARSE_STEPS else 1]
        across = self.filter(lit * self.gradient[1:], weights).mul_(lit).div_(turn.reach)
        # In place, here and in the filter: on a large canvas each field counts.
        self.velocity = self.velocity * find_momentum(self.steps)
        self.velocity.add_(self._gains * self.gradient)
        self.velocity[1] += across[0]
        del across
        self.canvas = phase.mul_(torch.complex(*self.velocity)).add_(self.canvas)
        self.steps += 1

    def stop(self) -> None:
        """Take the momentum away."""
        self.velocity = self.velocity.new_zeros(()).expand_as(self.velocity)

    def show(self) -> Tensor:
        """(4, B, S, T) float32 for a network: the last gradient, and its part across the phase
        through the filters of `SHOWN`."""
        across = self._lit * self.gradient[1:]
        shown = [self.filter(across, across.new_tensor([row]))[0] for row in SHOWN]
        return torch.stack([*self.gradient, *shown])


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


def modulus(canvas: Tensor) -> Tensor:
    """Modulus of a complex canvas, with a finite slope at zero."""
    return (canvas.real.square() + canvas.imag.square() + 1e-4).sqrt()


class FrequencyFilter:
    """Filters fields on the canvases of an exposure."""

    def __init__(self, exposure: Exposure) -> None:
        """Compute the filters, on canvases with a margin that they hardly reach beyond."""
        margin = math.ceil(2 * exposure.radius)
        self._shape = exposure.shape
        self._padded = [next_fast_len(side + margin, real=True) for side in exposure.shape]
        rows, columns = self._padded
        device = exposure.light.device
        q_y = torch.fft.fftfreq(rows, device=device)[:, None]
        q_x = torch.fft.rfftfreq(columns, device=device)
        square = (2 * math.pi * exposure.radius) ** 2 * (q_y.square() + q_x.square())
        self._lorentzians = square.new_empty((len(LENGTHS), *square.shape))
        for lorentzian, length in zip(self._lorentzians, LENGTHS, strict=True):
            torch.mul(square, length**2, out=lorentzian).add_(1).reciprocal_()

    def __call__(self, fields: Tensor, weights: Tensor) -> Tensor:
        """Filter (A, B, S, T) fields, each with its own (L,) of the (A, L) weights."""
        shape, (S, T) = self._padded, self._shape
        response = torch.einsum("al,lyx->ayx", weights, self._lorentzians)[:, None]
        spectrum = torch.fft.rfft2(fields, s=shape).mul_(response)
        filtered: Tensor = torch.fft.irfft2(spectrum, s=shape)[..., :S, :T]
        return filtered

    def reach(self, lit: Tensor) -> Tensor:
        """(B, 1, 1) share of a constant that a filter leaves on lit pixels; small if they are few.

        Divided by this share, a step that is learned on small blocks is right on a large canvas. A
        share for each pixel would make the step the gradient of nothing, and lead less far.
        """
        even = lit.new_full((1, len(LENGTHS)), 1 / len(LENGTHS))
        filtered, sides = lit * self(lit[None], even)[0], (-2, -1)
        return filtered.sum(dim=sides, keepdim=True) / lit.sum(dim=sides, keepdim=True)


class Turn:
    """Frames that are used together in a step."""

    def __init__(self, parts: Sequence[Exposure], frequency_filter: FrequencyFilter) -> None:
        """Join parts of an exposure."""
        light = sum((part.light for part in parts[1:]), parts[0].light)
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
            total = total + part.correction(canvas)
        return total.mul_(self._weigh())
