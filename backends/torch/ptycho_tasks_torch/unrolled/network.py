"""Physics steps on the whole canvas, their sizes learned, and a network that corrects the last.

A step of a parallel PIE moves the object along a gradient. Two things make few steps do: momentum,
and a step that is larger where the gradient is known to be weak. That is at low frequencies of the
phase: a frame tells of them by a tilt across its spot only, so that their curvature falls as
(q r)^2 with q the frequency and r the spot's radius. The gradient is therefore split into its part
along the object's own phase, which changes the amplitude, and the part across, which changes the
phase, and each is filtered by a sum of Lorentzians 1 / (1 + (q L)^2), L in units of r. All weights
of the steps are learned together with the network's.

Frames take turns: each step looks at an evenly spread part of them, as stochastic gradients do,
which costs a fraction of a step on all and leads as far. The second half of the steps, which is
about what is fine, takes two parts at a time, and the last step takes all.

Axis letters: B canvases, S, T rows and columns of a canvas, K steps, L lengths of the filter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from ptycho_tasks_torch.physics.canvas import padded_shape
from ptycho_tasks_torch.physics.exposure import WEAK_LIGHT, Exposure
from ptycho_tasks_torch.physics.forward import intensities, shift_probe, spot_radius
from ptycho_tasks_torch.unet import EncoderDecoder
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the filter, in units of the spot's radius."""
SHOWN = ((0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0))
"""Filters whose output the network gets to see."""
HALVINGS = 3
"""How often the network's encoder halves the canvas."""
MULTIPLE = 2**HALVINGS
"""Of what the sides of a canvas are to be multiples."""
LEAK = 0.1
"""Slope below zero of the network's ReLUs. Without it nine feature maps in ten of the deeper layers
die while the noise of few photons is learned to be ignored, and stay dead."""
FEATURES = 7 + len(SHOWN)
TILE, HALO = 512, 64
"""Pixels along the side of what the network corrects at once, and how much more it is shown
around: at least as far as it can see."""


class UnrolledNetwork(nn.Module):
    """`diffraction_to_obj`: measured amplitudes to an object."""

    def __init__(self, steps: int, subsets: int, channels: int) -> None:
        """Steps as good as can be without training, and a network that does nothing yet."""
        super().__init__()
        self.steps, self.subsets = steps, subsets
        self.gains = nn.Parameter(torch.tensor([1.3, 1.2]).repeat(steps, 1))
        self.momenta = nn.Parameter(0.585 * torch.linspace(0, 1, steps)[:, None].repeat(1, 2))
        # The amplitude's low frequencies are in the counts themselves, and need no help.
        weak = torch.tensor([0.0, 1.7])[:, None].repeat(steps, 1, len(LENGTHS))
        self.filters = nn.Parameter(weak)
        self.correction = EncoderDecoder(FEATURES, channels, HALVINGS, leak=LEAK)
        # So few feature maps are convolved 1.4 times as fast on a CPU when they lie side by side.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step_weights(self) -> list[nn.Parameter]:
        """What the physics steps learn: each decides of much more than a network's weight."""
        return [self.gains, self.momenta, self.filters]

    def forward(self, x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor) -> Tensor:
        """Object patches (B, C, N, N) complex64; arguments as for `expose_blocks`."""
        exposure = expose_blocks(x, positions, probe, scale)
        return exposure.cut(self.object(exposure)).reshape(x.shape)

    def object(self, exposure: Exposure) -> Tensor:
        """(B, S, T) complex64 object after the last step."""
        return deque(self.objects(exposure), maxlen=1).pop()

    def objects(self, exposure: Exposure) -> Iterator[Tensor]:
        """The object after every step, each (B, S, T) complex64."""
        smooth = Smooth(exposure)
        parts = exposure.turns(self.subsets)
        pairs = -(-len(parts) // 2)
        coarse = [Turn([part], smooth) for part in parts]
        fine = [Turn(parts[index::pairs], smooth) for index in range(pairs)]
        everything = Turn([exposure], smooth)
        canvas = torch.ones_like(exposure.light).to(torch.complex64)
        velocity = torch.zeros((2, *canvas.shape), device=canvas.device)
        for k in range(self.steps):
            last = k == self.steps - 1
            turns = coarse if 2 * k < self.steps else fine
            turn = everything if last else turns[k % len(turns)]
            step, lit = turn.step(canvas), turn.lit
            modulus = (canvas.real.square() + canvas.imag.square() + 1e-4).sqrt()
            phase = canvas / modulus
            along = torch.view_as_real(step * phase.conj()).movedim(-1, 0)
            filtered = lit * smooth(lit * along, self.filters[k]) / turn.reach
            velocity = _each(self.gains[k], along) + filtered + _each(self.momenta[k], velocity)
            change = velocity
            if last:
                shown = [smooth(lit * along[1:], along.new_tensor([row]))[0] for row in SHOWN]
                fields = [canvas.real, canvas.imag, modulus, *along, exposure.illumination, *shown]
                change = change + self._learned(fields)
            canvas = canvas + phase * torch.complex(change[0], change[1])
            yield canvas

    def _learned(self, fields: Sequence[Tensor]) -> Tensor:
        """(2, B, S, T) of (B, S, T) fields; tile by tile where nothing is to be derived."""
        B, S, T = fields[0].shape
        if torch.is_grad_enabled() or S * T <= (TILE + 2 * HALO) ** 2:
            return self._corrected(fields)
        learned = fields[0].new_empty((2, B, S, T))
        for top in range(0, S, TILE):
            for left in range(0, T, TILE):
                y, x = max(top - HALO, 0), max(left - HALO, 0)
                seen = [f[:, y : top + TILE + HALO, x : left + TILE + HALO] for f in fields]
                made = self._corrected(seen)[:, :, top - y :, left - x :]
                learned[:, :, top : top + TILE, left : left + TILE] = made[:, :, :TILE, :TILE]
        return learned

    def _corrected(self, fields: Sequence[Tensor]) -> Tensor:
        real, imaginary, modulus, *others, light, first, second = fields
        features = [real - 1, imaginary, modulus - 1, *others, light, light.sqrt(), first, second]
        side_by_side = torch.stack(features, dim=-1).movedim(-1, 1)
        corrected: Tensor = self.correction(side_by_side)
        return corrected.movedim(1, 0)


class Smooth:
    """Filters fields on the canvases of an exposure."""

    def __init__(self, exposure: Exposure) -> None:
        """The frequencies of canvases with a margin, beyond which a filter hardly reaches."""
        margin = math.ceil(2 * exposure.radius)
        self._shape = exposure.shape
        self._padded = [next_fast_len(side + margin, real=True) for side in exposure.shape]
        rows, columns = self._padded
        device = exposure.light.device
        q_y = torch.fft.fftfreq(rows, device=device)[:, None]
        q_x = torch.fft.rfftfreq(columns, device=device)
        square = (2 * math.pi * exposure.radius) ** 2 * (q_y.square() + q_x.square())
        self._lorentzians = torch.stack([1 / (1 + square * length**2) for length in LENGTHS])

    def __call__(self, fields: Tensor, weights: Tensor) -> Tensor:
        """(A, B, S, T) fields, each filtered by its own of the (A, L) weights."""
        shape, (S, T) = self._padded, self._shape
        response = torch.einsum("al,lyx->ayx", weights, self._lorentzians)[:, None]
        spectrum = torch.fft.rfft2(fields, s=shape) * response
        filtered: Tensor = torch.fft.irfft2(spectrum, s=shape)[..., :S, :T]
        return filtered

    def reach(self, lit: Tensor) -> Tensor:
        """(B, 1, 1) what a filter leaves of a constant on lit pixels: little where they are few.
        Divided by it, a step learned on small blocks is right on a large canvas. To divide
        each pixel by its own share would be the gradient of nothing, and lead less far."""
        even = lit.new_full((1, len(LENGTHS)), 1 / len(LENGTHS))
        left, sides = lit * self(lit[None], even)[0], (-2, -1)
        return left.sum(dim=sides, keepdim=True) / lit.sum(dim=sides, keepdim=True)


class Turn:
    """What frames ask for, seen together, in a step."""

    def __init__(self, parts: Sequence[Exposure], smooth: Smooth) -> None:
        """Of exposures of the same canvases."""
        light = torch.stack([part.light for part in parts]).sum(dim=0)
        weak = WEAK_LIGHT * light.amax(dim=(-2, -1), keepdim=True)
        self._parts, self._weight = parts, 1 / (light + weak)
        self.lit = light * self._weight
        """(B, S, T) about 1 where light falls, else 0."""
        self.reach = smooth.reach(self.lit)

    def step(self, canvas: Tensor) -> Tensor:
        """(B, S, T) complex64 correction, divided by the light."""
        total = self._parts[0].correction(canvas)
        for part in self._parts[1:]:
            total = total + part.correction(canvas)
        return total * self._weight


class UnrolledAutoencoder(nn.Module):
    """`autoencoder`: measured amplitudes to an object to predicted amplitudes."""

    def __init__(self, network: UnrolledNetwork) -> None:
        """Share the weights of `network`."""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor) -> Tensor:
        """Predicted amplitude (B, C, N, N) float32; arguments as for `expose_blocks`."""
        exposure = expose_blocks(x, positions, probe, scale)
        patches = exposure.cut(self.network.object(exposure))
        predicted = intensities(patches, exposure.probes).reshape(x.shape)
        return predicted.sqrt() * scale[:, None, None, None]


def make_unrolled_networks(
    options: UnrolledOptions,
) -> tuple[UnrolledNetwork, UnrolledAutoencoder]:
    """Both networks with fresh weights, which they share."""
    network = UnrolledNetwork(options.steps, options.subsets, options.channels)
    return network, UnrolledAutoencoder(network)


def expose_blocks(
    x: Tensor,
    positions: Tensor,
    probe: Tensor,
    scale: Tensor,
    shape: tuple[int, int] | None = None,
) -> Exposure:
    """Place the frames of blocks, each block on a canvas of its own that just holds it.

    Args:
        x: (B, C, N, N) float32 amplitude, sqrt of counts, zero frequency at N//2.
        positions: (B, C, 1, 2) float32 (y, x) relative to the block, pixels.
        probe: (N, N) or (P, N, N) complex64 in counts.
        scale: (B,) amplitude that is divided out of `x` and `probe`.
        shape: (S, T) of the canvases, where the positions are those of corners, all of them on the
            canvas; None takes the smallest canvases that hold every block.

    Returns:
        F = B * C frames, block after block, on B canvases.
    """
    modes = probe if probe.ndim == 3 else probe[None]
    relative = positions[:, :, 0]
    whole = torch.round(relative)
    if shape is None:
        whole, relative = (at - whole.amin(dim=1, keepdim=True) for at in (whole, relative))
    corners = whole.to(torch.int64)
    factor = scale[:, None, None, None]
    probes = shift_probe(modes, relative - whole) / factor[..., None]
    amplitude = torch.fft.ifftshift(x / factor, dim=(-2, -1))
    places = [(b, y, x) for b, block in enumerate(corners.tolist()) for y, x in block]
    return Exposure(
        amplitude.flatten(0, 1),
        probes.flatten(0, 1),
        places,
        len(corners),
        shape or padded_shape(corners.amax(dim=(0, 1)).tolist(), x.shape[-1], MULTIPLE),
        spot_radius(modes),
    )


def _each(weights: Tensor, fields: Tensor) -> Tensor:
    """(A, B, S, T) fields times (A,) weights."""
    return weights[:, None, None, None] * fields
