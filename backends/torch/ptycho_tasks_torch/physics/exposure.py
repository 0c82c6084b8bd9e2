"""Frames on canvases, and the physics step that they ask for there.

Frames are computed in chunks. On a CPU these fit into its cache: their Fourier transforms are then
about three times as fast as all at once. The gradient of a step is written by hand, because it has
the same parts as the step: cutting and adding patches are adjoint to each other, and so are the two
Fourier transforms.

Moduli are compared as sqrt(counts + 3/8): its variance is a quarter for any number of photons but
the fewest, and its mean is that of the model (Anscombe, Biometrika 35, 246, 1948). The plain root
of counts is too small on average where photons are few, which pulls the object towards the dark.

Axis letters: B canvases, S, T rows and columns of a canvas, F frames of all canvases, P probe
modes, N detector pixels along one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ptycho_tasks_torch.physics.canvas import add_onto, cut_from, cut_patches
from ptycho_tasks_torch.physics.forward import shift_ramp
from ptycho_tasks_torch.threads import compute_ahead, operations_on_threads

T = TypeVar("T")

CHUNK_PIXELS, GPU_CHUNK_PIXELS = 2**17, 2**25
"""Complex pixels of a chunk: 1 MiB fits into the cache of a CPU. A GPU gets as many as keep it
busy; a step takes about ten times their 256 MiB."""
DARK = 1e-6
"""Least intensity that is added to every pixel, in units of the mean intensity, so that the slope
of the modulus is finite where the far field is dark."""
ANSCOMBE = 0.375
"""Photons that are added to every pixel, measured and predicted; see above."""
FAINT_SLOPE = 1.26
"""Four times the slope at 0 of the mean square noise of a root of counts, over the mean count:
(sqrt(1 + 3/8) - sqrt(3/8))^2, for a single photon."""
WEAK_LIGHT = 0.02
"""Share of the strongest illumination that is added before dividing by the illumination."""
SMOOTH = 1 / 16
"""Pixels of a detector side over which a background is the same, more or less: standard deviation
of a Gaussian, as a share of the side."""
UNKNOWN = 1e-30
"""Sum of weights with which nothing is known of a pixel."""

Apply = Callable[[nn.Module, Sequence[Tensor]], Iterator[Tensor]]
"""Gives what a network makes of each part of a canvas, in order and without gradients."""


def apply_here(network: nn.Module, parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """An `Apply` of this process."""
    # One at a time, on all threads: each takes some hundred MB.
    for part in parts:
        with operations_on_threads(), torch.no_grad():
            made = network(part)
        yield made


class Chunk(NamedTuple):
    """Some of the frames."""

    frames: slice
    places: Tensor
    """(C, 3) int64, as of `Exposure`."""
    amplitude: Tensor
    """(C, N, N) float32, as of `Exposure`."""
    probes: Tensor
    """(C, P, N, N) complex64, each moved by the sub-pixel part of its position."""

    def cut(self, canvas: Tensor) -> Tensor:
        """(C, 1, N, N) of (B, S, T) canvases, without gradients."""
        return cut_from(canvas, self.places, self.amplitude.shape[-1])[:, None]


@dataclass(frozen=True)
class Exposure:
    """Frames, their places on canvases, and their probes.

    Amplitudes and probes are in units in which the mean measured intensity is about 1.
    """

    amplitude: Tensor
    """(F, N, N) float32, sqrt of measured intensity + `dark`, zero frequency first; NaN where a
    pixel was not measured."""
    probes: Tensor
    """(F, P, N, N) complex64, each moved by the sub-pixel part of its position."""
    places: Tensor
    """(F, 3) int64, on the device of the frames; see `list_places`."""
    canvases: int
    """B."""
    shape: tuple[int, int]
    """(S, T)."""
    radius: float = 1.0
    """Root mean square radius of the probe's light, pixels; see `spot_radius`."""
    counts: float = math.inf
    """Photons of a pixel whose intensity is 1; infinite where that is not known."""
    has_bad_pixels: bool = False
    """Whether a pixel may be NaN; where none is, nothing is spent on it."""
    background: Tensor | None = None
    """(N, N) float32 intensity of every frame that is not the probe's light, zero frequency first;
    None where there is none."""

    @property
    def dark(self) -> float:
        """Intensity that is added to every pixel, measured and predicted."""
        return find_dark(self.counts)

    @property
    def floor(self) -> float | Tensor:
        """Intensity that is added to what the probe's light is predicted to be: the dark, and the
        (N, N) background."""
        return self.dark if self.background is None else self.background + self.dark

    @property
    def photons(self) -> float:
        """Mean photons a frame, as the mean intensity is about 1; infinite where not known."""
        return self.counts * self.size**2

    @property
    def least_misfit(self) -> float:
        """What `measure_misfit` gives where photon noise alone is left and photons are many; see
        `measure_noise`."""
        return 1 / (4 * self.counts)

    @property
    def size(self) -> int:
        """N."""
        return int(self.amplitude.shape[-1])

    @cached_property
    def light(self) -> Tensor:
        """(B, S, T) float32: the sum of |probe|^2 over frames and modes."""

        def measure(chunk: Chunk) -> Tensor:
            probes = chunk.probes.detach()
            return probes.real.square().add(probes.imag.square()).sum(dim=1)

        total = self.amplitude.new_zeros((self.canvases, *self.shape))
        for frames, light in self.compute(measure):
            add_onto(total, light, self.places[frames])
        return total

    def forget_light(self) -> None:
        """Free the memory of `light`, which is computed anew when it is asked for."""
        self.__dict__.pop("light", None)

    @cached_property
    def illumination(self) -> Tensor:
        """(B, S, T) float32 `light` as a share of the strongest on each canvas."""
        return self.light / self.strongest

    @cached_property
    def step(self) -> float:
        """Distance of neighbouring frames, in radii of the spot: the side of the square that a
        frame has for itself, on average, or the distance along a line. 0 of frames alone."""
        canvases, *corners = self.places.cpu().numpy().T
        area = length = 0.0
        for canvas in range(self.canvases):
            rows, columns = (float(np.ptp(axis[canvases == canvas])) for axis in corners)
            area, length = area + rows * columns, length + max(rows, columns)
        along = length / max(len(canvases) - self.canvases, 1)
        return max(math.sqrt(area / len(canvases)), along) / self.radius

    @property
    def strongest(self) -> Tensor:
        """(B, 1, 1) the largest `light` of each canvas."""
        return self.light.amax(dim=(-2, -1), keepdim=True)

    def parts(self) -> list[slice]:
        """Frames of each chunk: as many at a time as suit the device."""
        step = count_chunk_frames(self.probes)
        return [slice(at, at + step) for at in range(0, len(self.places), step)]

    def chunk(self, frames: slice) -> Chunk:
        """Some of the frames."""
        return Chunk(frames, self.places[frames], self.amplitude[frames], self.probes[frames])

    def chunks(self) -> Iterator[Chunk]:
        """All frames, part by part."""
        return map(self.chunk, self.parts())

    def compute(self, what: Callable[[Chunk], T]) -> Iterator[tuple[slice, T]]:
        """Compute something of each chunk, without gradients; see `chunks_on_threads`."""
        parts, most = self.parts(), None if self.probes.is_cpu else 1
        results = compute_ahead(lambda frames: what(self.chunk(frames)), parts, most)
        return zip(parts, results, strict=True)

    @property
    def apply(self) -> Apply:
        """What applies a network where the frames are."""
        return apply_here

    def take(self, frames: Sequence[int]) -> Exposure:
        """Some of the frames, on the same canvases."""
        chosen = torch.as_tensor(frames, device=self.amplitude.device)
        return replace(
            self,
            amplitude=self.amplitude[chosen],
            probes=self.probes[chosen],
            places=self.places[chosen],
        )

    def brighten(self, flux: Tensor) -> Exposure:
        """The same frames, said to have had so much more or less light than the probe holds.

        Args:
            flux: (F,) float32 light of each frame, as a share of the probe's.
        """
        return replace(self, probes=brighten_probes(self.probes, flux))

    def cover(self, background: Tensor | None) -> Exposure:
        """The same frames, said to have another background."""
        return replace(self, background=background)

    def count_photons(self) -> Tensor:
        """(F,) float32 measured intensity of each frame beside the background; pixels that were not
        measured count as none."""

        def count(chunk: Chunk) -> Tensor:
            return chunk.amplitude.square().sub_(self.floor).nan_to_num_(nan=0.0).sum(dim=(-2, -1))

        return torch.cat([photons for _, photons in self.compute(count)])

    def measure_flux(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """(F,) float32 light of each frame, measured over predicted, and its variance by photon
        noise: for photons whose pattern is known, their number is all that tells of it.
        Of (B, S, T) complex64, without gradients."""

        def measure(chunk: Chunk) -> tuple[Tensor, Tensor]:
            predicted = _propagate(canvas, chunk, self.floor)[1].square_().sub_(self.floor)
            measured = chunk.amplitude.square().sub_(self.floor)
            if self.has_bad_pixels:
                predicted.masked_fill_(measured.isnan(), 0)
                measured.nan_to_num_(nan=0.0)
            sides = (-2, -1)
            return measured.sum(dim=sides), predicted.sum(dim=sides).clamp_(min=DARK)

        found = [sums for _, sums in self.compute(measure)]
        measured, predicted = (torch.cat(sums) for sums in zip(*found, strict=True))
        noise = predicted if self.background is None else predicted + self.background.sum()
        return measured / predicted, noise / self.counts / predicted.square()

    def measure_background(self, canvas: Tensor) -> tuple[Tensor, float]:
        """The background beside the light that an object predicts: the mean of what is measured
        beyond that light, over frames and neighbouring pixels, weighted by how surely it is known.
        Of (B, S, T) complex64, without gradients.

        Returns:
            (N, N) float32, zero frequency first; and by about how much it lowers the misfit.
        """

        def measure(chunk: Chunk) -> tuple[Tensor, Tensor, int]:
            variance = _propagate(canvas, chunk, self.floor)[1].square_()
            excess = chunk.amplitude.square().sub_(variance).div_(variance)
            weight = variance.reciprocal_()
            bad = excess.isnan() if self.has_bad_pixels else None
            if bad is not None:
                weight.masked_fill_(bad, 0)
                excess.nan_to_num_(nan=0.0)
            measured = excess.numel() - (0 if bad is None else int(bad.sum()))
            return excess.sum(dim=0), weight.sum(dim=0), measured

        found = [sums for _, sums in self.compute(measure)]
        excess, weight, pixels = map(sum, zip(*found, strict=True))
        near = _find_neighbours(self.size).to(excess)
        before = 0 if self.background is None else self.background
        # Far from all pixels that were measured, there is none.
        known = (near @ weight @ near).clamp_(min=UNKNOWN)
        background = (before + (near @ excess @ near) / known).clamp_(min=0)
        more = background - before
        return background, float((more * (2 * excess - more * weight)).sum()) / (4 * pixels)

    def split_in_turns(self, count: int) -> list[Exposure]:
        """Split the frames into `count` parts, each spread evenly over every canvas.

        Into fewer where a canvas has fewer frames.
        """
        orders: dict[int, list[int]] = {}
        canvases = self.places[:, 0].tolist()
        for frame in morton_order(self.places):
            orders.setdefault(canvases[frame], []).append(frame)
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
        """Replace the modulus of each frame by the measured one, propagate back, add the changes.

        This is the gradient step of a parallel PIE (Rodenburg and Faulkner, Appl. Phys. Lett. 85,
        4795, 2004), not divided by the light yet:

            sum over frames of conj(P) * F^-1[ F(P O) (A / |F(P O)| - 1) ]

        with the modulus |F(P O)| of all modes together. Where a pixel was not measured, the modulus
        stays.

        Args:
            canvas: (B, S, T) complex64 object.

        Returns:
            (B, S, T) complex64, without gradients.
        """
        total, per_pixel = torch.zeros_like(canvas), 1 / self.size**2

        def correct(chunk: Chunk) -> Tensor:
            far = torch.fft.fft2(chunk.probes * chunk.cut(canvas))
            # In place: memory that is asked for anew costs half as much as the transforms.
            excess = _sum_intensity(far).mul_(per_pixel).add_(self.floor).rsqrt_()
            excess = excess.mul_(chunk.amplitude).sub_(1).mul_(per_pixel)
            if self.has_bad_pixels:
                excess.nan_to_num_(nan=0.0)
            waves = torch.fft.ifft2(far.mul_(excess[:, None]), norm="forward")
            return _sum_modes(waves.mul_(chunk.probes.conj()))

        with torch.no_grad():
            for frames, patches in self.compute(correct):
                add_onto(total, patches, self.places[frames])
        return total

    def joint_correction(self, canvas: Tensor, fractions: Tensor) -> tuple[float, Tensor, Tensor]:
        """The misfit, the changes that it asks of the object, and those that it asks of the probe.

        The last are an ePIE step of all frames together, not divided by the object yet (Maiden and
        Rodenburg, Ultramicroscopy 109, 1256, 2009). Both are, in the plane of complex numbers,
        half the slope of the misfit, downwards.

        Args:
            canvas: (B, S, T) complex64 object.
            fractions: (F, 2) float32 pixels (y, x) by which the probe was moved for each frame.

        Returns:
            The sum of squares of what predicted amplitudes differ by from the measured ones; the
            (B, S, T) complex64 sum over frames that `correction` gives; and (P, N, N) complex64,
            the sum of conj(O) times the change of the wave, moved back; without gradients.
        """
        total, N = torch.zeros_like(canvas), self.size
        change = self.probes.new_zeros(self.probes.shape[-3:])
        square = canvas.real.new_zeros((), dtype=torch.float64)

        def correct(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
            far, modulus = _propagate(canvas, chunk, self.floor)
            missing = chunk.amplitude - modulus
            if self.has_bad_pixels:
                missing.nan_to_num_(nan=0.0)
            square = missing.square().sum()
            excess = missing.div_(modulus).mul_(1 / N**2)
            waves = torch.fft.ifft2(far.mul_(excess[:, None]), norm="forward")
            ramp = shift_ramp((N, N), -fractions[chunk.frames])[:, None]
            moved = torch.fft.fft2(waves * chunk.cut(canvas).conj()) * ramp
            return square, _sum_modes(waves.mul_(chunk.probes.conj())), moved.sum(dim=0)

        with torch.no_grad():
            for frames, (of_chunk, patches, moved) in self.compute(correct):
                square, change = square + of_chunk, change + moved
                add_onto(total, patches, self.places[frames])
        return float(square), total, torch.fft.ifft2(change)

    def measure_misfit(self, canvas: Tensor) -> float:
        """Mean square of what predicted amplitudes differ by from the measured ones; 1/4 over
        `counts` is noise. Of (B, S, T) complex64, without gradients."""
        return self._average(canvas, lambda modulus, chunk: modulus.sub_(chunk.amplitude).square_())

    def measure_noise(self, canvas: Tensor) -> float:
        """What `measure_misfit` is on average where photon noise alone is left."""

        def vary(modulus: Tensor, chunk: Chunk) -> Tensor:
            photons = modulus.square_().sub_(self.dark).mul_(self.counts)
            # Of a Poisson variable, the mean square of the difference of its root, with 3/8 added,
            # from that of its mean: 0.31 of the mean where that is small, and soon 1/4.
            noise = torch.expm1(photons.mul_(-FAINT_SLOPE)).mul_(-1 / 4)
            return noise.div_(self.counts).masked_fill_(chunk.amplitude.isnan(), math.nan)

        return self._average(canvas, vary) if math.isfinite(self.counts) else 0.0

    def measure_divergence(self, canvas: Tensor) -> float:
        """Half the Poisson deviance of the frames, with `dark` added to what is predicted and
        measured: about `measure_misfit` where photons are many, and where they are few, least on
        average for the intensities that are right (L. Bregman, USSR Comput. Math. Math. Phys. 7,
        200, 1967), while the mean of a root of counts is not the root of their mean.
        Of (B, S, T) complex64, without gradients."""

        def diverge(modulus: Tensor, chunk: Chunk) -> Tensor:
            square = modulus.square()
            # Of what is nearly equal, the difference first; and no logarithm of a rounded zero.
            excess = (chunk.amplitude - modulus) * (chunk.amplitude + modulus) / square
            excess = excess.clamp_(min=-1 + 1e-6)
            return square * ((1 + excess) * torch.log1p(excess) - excess) / 2

        return self._average(canvas, diverge)

    def _average(self, canvas: Tensor, compare: Callable[[Tensor, Chunk], Tensor]) -> float:
        """Mean over the pixels that were measured of what compares (C, N, N) predicted amplitudes
        with those of a chunk."""

        def measure(chunk: Chunk) -> tuple[Tensor, int]:
            values = compare(_propagate(canvas, chunk, self.floor)[1], chunk)
            bad = int(values.isnan().sum()) if self.has_bad_pixels else 0
            return (values.nan_to_num_(nan=0.0) if bad else values).sum(), values.numel() - bad

        total, pixels = canvas.real.new_zeros(()), 0
        for _, (of_chunk, measured) in self.compute(measure):
            total, pixels = total + of_chunk, pixels + measured
        return float(total) / max(pixels, 1)

    def predict(self, canvas: Tensor) -> Tensor:
        """(F, N, N) float32, to compare with `amplitude`, of the object on the canvas."""
        amplitude: Tensor = _Prediction.apply(canvas, self)  # type: ignore[no-untyped-call]
        return amplitude


def brighten_probes(probes: Tensor, flux: Tensor) -> Tensor:
    """(F, P, N, N) probes with as much light as (F,) says."""
    return probes * flux.sqrt()[:, None, None, None]


def _find_neighbours(size: int) -> Tensor:
    """(N, N) float32 weights of pixels along an axis for one another, zero frequency first."""
    places = torch.fft.fftfreq(size)
    return torch.exp((places[:, None] - places).div(SMOOTH).square().div(-2))


def find_dark(counts: float) -> float:
    """The `dark` of an `Exposure`, from its `counts`."""
    return max(DARK, ANSCOMBE / counts)


def count_chunk_frames(probes: Tensor) -> int:
    """Frames of a chunk, from (..., P, N, N) probes on the device of the frames."""
    pixels = CHUNK_PIXELS if probes.is_cpu else GPU_CHUNK_PIXELS
    return max(1, pixels // math.prod(probes.shape[-3:]))


def morton_order(places: Tensor) -> list[int]:
    """Indices of (F, 3) places in Morton order (G. M. Morton, IBM, 1966): neighbours stay
    neighbours."""
    canvases, *axes = places.cpu().numpy().T
    corners = np.stack(axes, axis=1)
    for canvas in np.unique(canvases):
        corners[canvases == canvas] -= corners[canvases == canvas].min(axis=0)
    code = np.zeros(len(corners), dtype=np.int64)
    for bit in range(24):
        for axis in (0, 1):
            code |= (corners[:, axis] >> bit & 1) << (2 * bit + axis)
    order: list[int] = np.lexsort((code, canvases)).tolist()
    return order


def _propagate(canvas: Tensor, chunk: Chunk, floor: float | Tensor) -> tuple[Tensor, Tensor]:
    """(C, P, N, N) complex64 far field *times N*, and (C, N, N) float32 modulus of all modes and
    the floor, which is not times N. To scale the far field would cost a pass through memory."""
    far = torch.fft.fft2(chunk.probes * chunk.cut(canvas))
    N = far.shape[-1]
    return far, _sum_intensity(far).mul_(1 / N**2).add_(floor).sqrt_()


def _sum_intensity(far: Tensor) -> Tensor:
    """(C, N, N) float32: |far|^2 of (C, P, N, N) complex64, summed over modes."""
    square = torch.view_as_real(far).square()
    return _sum_modes(square[..., 0] + square[..., 1])


def _sum_modes(values: Tensor) -> Tensor:
    return values[:, 0] if values.shape[1] == 1 else values.sum(dim=1)


def _propagate_back(canvas: Tensor, far: Tensor, chunk: Chunk) -> None:
    """Add conj(P) F^-1[far] to the canvas.

    Args:
        canvas: (B, S, T) complex64.
        far: (C, P, N, N) complex64 waves on the detector, divided by N.
        chunk: the frames.
    """
    waves = torch.fft.ifft2(far, norm="forward")
    add_onto(canvas, _sum_modes(waves * chunk.probes.conj()), chunk.places)


class _Prediction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, canvas: Tensor, exposure: Exposure) -> Tensor:
        parts, kept = [], []
        for _, (far, modulus) in exposure.compute(
            lambda chunk: _propagate(canvas, chunk, exposure.floor)
        ):
            parts.append(modulus)
            if ctx.needs_input_grad[0]:
                kept.append(far)
        ctx.exposure, ctx.kept, ctx.shape = exposure, kept, canvas.shape
        predicted = torch.cat(parts)
        ctx.save_for_backward(predicted)
        return predicted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (predicted,), N = ctx.saved_tensors, ctx.exposure.size
        slope = gradients[0] / (predicted * N**2)
        by_canvas = ctx.exposure.probes.new_zeros(ctx.shape)
        for chunk, far in zip(ctx.exposure.chunks(), ctx.kept, strict=True):
            _propagate_back(by_canvas, far * slope[chunk.frames][:, None], chunk)
        return by_canvas, None
