"""What frames measured on canvases, and the physics step that it asks for there.

Frames are worked off in chunks that fit into a CPU's cache, which makes their Fourier transforms
about three times as fast as all at once; and the derivative of a step is written by hand, because
its parts are the forward step's own: each of cutting and adding patches is the other's adjoint, and
so is each Fourier transform the other's.

Axis letters: B canvases, S, T rows and columns of a canvas, F frames of all canvases, P probe
modes, N detector pixels along one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_tasks_torch.physics.canvas import Place, add_onto, cut_from, cut_patches

CHUNK_PIXELS = 2**17
"""Complex pixels of a chunk: 1 MiB."""
DARK = 1e-6
"""Intensity that is added to every pixel, in units of the mean one: the slope of the modulus stays
finite where the far field is dark."""
WEAK_LIGHT = 0.02
"""Share of the strongest illumination that is added before dividing by the illumination."""


class Chunk(NamedTuple):
    """Some of the frames."""

    frames: slice
    places: Sequence[Place]
    amplitude: Tensor
    """(C, N, N) float32 measured, zero frequency first."""
    probes: Tensor
    """(C, P, N, N) complex64, each moved by its sub-pixel rest."""

    def cut(self, canvas: Tensor) -> Tensor:
        """(C, 1, N, N) of (B, S, T) canvases; not to be derived."""
        return cut_from(canvas, self.places, self.amplitude.shape[-1])[:, None]


@dataclass(frozen=True)
class Exposure:
    """Frames, where they lie, and the light that they were taken with.

    Amplitudes and probes are in units in which the mean measured intensity is about 1.
    """

    amplitude: Tensor
    """(F, N, N) float32, sqrt of counts, zero frequency first."""
    probes: Tensor
    """(F, P, N, N) complex64, moved by the sub-pixel rest of the positions."""
    places: Sequence[Place]
    canvases: int
    """B."""
    shape: tuple[int, int]
    """(S, T)."""
    radius: float = 1.0
    """Of the light of a frame, root mean square, pixels; see `physics.spot_radius`."""

    @property
    def size(self) -> int:
        """N."""
        return int(self.amplitude.shape[-1])

    @cached_property
    def light(self) -> Tensor:
        """(B, S, T) float32: the sum of |probe|^2 over frames and modes."""
        total = self.amplitude.new_zeros((self.canvases, *self.shape))
        for chunk in self.chunks():
            probes = chunk.probes.detach()
            add_onto(total, probes.real.square().add(probes.imag.square()).sum(dim=1), chunk.places)
        return total

    @cached_property
    def illumination(self) -> Tensor:
        """(B, S, T) float32 `light` as a share of the strongest on each canvas."""
        return self.light / self.strongest

    @property
    def strongest(self) -> Tensor:
        """(B, 1, 1) the largest `light` of each canvas."""
        return self.light.amax(dim=(-2, -1), keepdim=True)

    def chunks(self) -> Iterator[Chunk]:
        """The frames, as many at a time as fit into a CPU's cache."""
        modes, size = self.probes.shape[1], self.size
        step = max(1, CHUNK_PIXELS // (modes * size**2))
        for first in range(0, len(self.places), step):
            some = slice(first, min(first + step, len(self.places)))
            yield Chunk(some, self.places[some], self.amplitude[some], self.probes[some])

    def take(self, frames: Sequence[int]) -> Exposure:
        """Some of the frames, on the same canvases."""
        chosen = torch.as_tensor(frames, device=self.amplitude.device)
        return Exposure(
            self.amplitude[chosen],
            self.probes[chosen],
            [self.places[frame] for frame in frames],
            self.canvases,
            self.shape,
            self.radius,
        )

    def turns(self, count: int) -> list[Exposure]:
        """The frames in `count` parts, or as many as a canvas has frames, each spread evenly over
        every canvas."""
        orders: dict[int, list[int]] = {}
        for frame in along_z(self.places):
            orders.setdefault(self.places[frame][0], []).append(frame)
        count = min(count, *(len(order) for order in orders.values()))
        if count == 1:
            return [self]
        return [
            self.take(sorted(frame for order in orders.values() for frame in order[part::count]))
            for part in range(count)
        ]

    def cut(self, canvas: Tensor) -> Tensor:
        """(F, N, N) patches of (B, S, T) canvases."""
        return cut_patches(canvas, self.places, self.size)

    def correction(self, canvas: Tensor) -> Tensor:
        """Replace each frame's modulus by the measured one, go back, add what changed.

        The gradient step of a parallel PIE (Rodenburg and Faulkner, Appl. Phys. Lett. 85, 4795,
        2004), not divided by the light yet:

            sum over frames of conj(P) * F^-1[ F(P O) (A / |F(P O)| - 1) ]

        with |F(P O)| taken over all modes.

        Args:
            canvas: (B, S, T) complex64 object.

        Returns:
            (B, S, T) complex64, which can be derived by canvas and `probes`.
        """
        made: Tensor = _Correction.apply(canvas, self.probes, self)  # type: ignore[no-untyped-call]
        return made

    def predicted(self, canvas: Tensor) -> Tensor:
        """(F, N, N) float32 amplitude that the object on the canvas gives, zero frequency first."""
        made: Tensor = _Predicted.apply(canvas, self.probes, self)  # type: ignore[no-untyped-call]
        return made


def along_z(places: Sequence[Place]) -> list[int]:
    """Indices of places in Morton order (G. M. Morton, IBM, 1966): what is close stays close."""
    at = np.asarray(places, dtype=np.int64)
    corners = at[:, 1:].copy()
    for canvas in np.unique(at[:, 0]):
        corners[at[:, 0] == canvas] -= corners[at[:, 0] == canvas].min(axis=0)
    code = np.zeros(len(at), dtype=np.int64)
    for bit in range(24):
        for axis in (0, 1):
            code |= (corners[:, axis] >> bit & 1) << (2 * bit + axis)
    order: list[int] = np.lexsort((code, at[:, 0])).tolist()
    return order


def _far(canvas: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """(C, P, N, N) complex64 far field *times N*, and (C, N, N) float32 its modulus, over all
    modes, as it is. To scale the far field would be one more pass through memory."""
    far = torch.fft.fft2(chunk.probes * chunk.cut(canvas))
    square = torch.view_as_real(far).square()
    square = square[..., 0] + square[..., 1]
    total = square[:, 0] if square.shape[1] == 1 else square.sum(dim=1)
    N = far.shape[-1]
    return far, total.mul_(1 / N**2).add_(DARK).sqrt_()


def _back(canvas: Tensor, far: Tensor, chunk: Chunk) -> Tensor:
    """Add conj(P) F^-1[far] to the canvas; (C, P, N, N) complex64 F^-1[far].

    Args:
        canvas: (B, S, T) complex64.
        far: (C, P, N, N) complex64 waves on the detector, divided by N.
        chunk: where to add.
    """
    waves: Tensor = torch.fft.ifft2(far, norm="forward")
    patches = waves * chunk.probes.conj()
    add_onto(canvas, patches[:, 0] if patches.shape[1] == 1 else patches.sum(dim=1), chunk.places)
    return waves


def _along(far: Tensor, wave: Tensor) -> Tensor:
    """(C, N, N) float32: Re conj(far) wave, summed over modes."""
    product = torch.view_as_real(far) * torch.view_as_real(wave)
    along: Tensor = (product[..., 0] + product[..., 1]).sum(dim=1)
    return along


class _Correction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, canvas: Tensor, probes: Tensor, exposure: Exposure) -> Tensor:
        by_canvas, by_probes, _ = ctx.needs_input_grad
        total, kept, N = torch.zeros_like(canvas), [], exposure.size
        for chunk in exposure.chunks():
            far, modulus = _far(canvas, chunk)
            excess = chunk.amplitude / modulus - 1
            change = _back(total, far * (excess / N**2)[:, None], chunk)
            if by_canvas or by_probes:
                kept.append((far, modulus, excess, change if by_probes else None))
        ctx.exposure, ctx.kept = exposure, kept
        ctx.save_for_backward(canvas, probes)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        canvas, _ = ctx.saved_tensors
        by_canvas, by_probes, N = torch.zeros_like(canvas), [], ctx.exposure.size
        for chunk, (far, modulus, excess, change) in zip(
            ctx.exposure.chunks(), ctx.kept, strict=True
        ):
            behind = chunk.cut(gradients[0])
            wave = torch.fft.fft2(chunk.probes * behind)
            # What changes the modulus alone is lost when the modulus is replaced.
            lost = (excess + 1) * _along(far, wave) / (modulus * N).square()
            wave = wave * (excess / N**2)[:, None] - far * (lost / N**2)[:, None]
            wave = _back(by_canvas, wave, chunk)
            if ctx.needs_input_grad[1]:
                by_probes.append(behind.conj() * change + wave * chunk.cut(canvas).conj())
        return by_canvas, torch.cat(by_probes) if by_probes else None, None


class _Predicted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, canvas: Tensor, probes: Tensor, exposure: Exposure) -> Tensor:
        parts, kept = [], []
        for chunk in exposure.chunks():
            far, modulus = _far(canvas, chunk)
            parts.append(modulus)
            if any(ctx.needs_input_grad[:2]):
                kept.append(far)
        ctx.exposure, ctx.kept = exposure, kept
        predicted = torch.cat(parts)
        ctx.save_for_backward(canvas, probes, predicted)
        return predicted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        canvas, _, predicted = ctx.saved_tensors
        by_canvas, by_probes, N = torch.zeros_like(canvas), [], ctx.exposure.size
        slope = gradients[0] / (predicted * N**2)
        for chunk, far in zip(ctx.exposure.chunks(), ctx.kept, strict=True):
            wave = _back(by_canvas, far * slope[chunk.frames][:, None], chunk)
            if ctx.needs_input_grad[1]:
                by_probes.append(wave * chunk.cut(canvas).conj())
        return by_canvas, torch.cat(by_probes) if by_probes else None, None
