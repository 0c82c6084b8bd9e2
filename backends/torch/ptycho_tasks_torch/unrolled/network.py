"""Physics steps on the whole canvas, with learned sizes, and a network that corrects the last.

A step of a parallel PIE moves the object along a gradient. Two things make a few steps enough:
momentum, and larger steps where the gradient is weak. It is weak at low frequencies of the phase: a
frame shows them only as a tilt across its spot, so that their curvature falls as (q r)^2, with q
the frequency and r the radius of the spot. The gradient is therefore split in two: the part along
the object's own phase changes the amplitude, the part across it changes the phase. A sum of
Lorentzians 1 / (1 + (q L)^2), with L in units of r, filters each part. The weights of the steps are
learned together with those of the network.

Frames take turns, as in a stochastic gradient: each step uses an evenly spread part of them. That
costs a fraction of a step on all frames, and leads as far. The second half of the steps, in which
fine structure appears, takes two parts at a time, and the last step takes all frames.

Axis letters: B canvases, S, T rows and columns of a canvas, K steps, L lengths of the filter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from ptycho_tasks_torch.physics.canvas import list_places, padded_shape
from ptycho_tasks_torch.physics.exposure import WEAK_LIGHT, Exposure
from ptycho_tasks_torch.physics.forward import intensities, shift_probe, spot_radius
from ptycho_tasks_torch.unet import EncoderDecoder
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Lengths of the filter, in units of the spot's radius."""
SHOWN = ((0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 1.0))
"""Weights of the filters whose output the network sees."""
HALVINGS = 3
"""How often the network's encoder halves the canvas."""
MULTIPLE = 2**HALVINGS
"""Of what the sides of a canvas are to be multiples."""
LEAK = 0.1
"""Slope below zero of the ReLUs. Without it, nine in ten feature maps of the deeper layers
become zero and stay zero where photons are few and the network learns to ignore their noise."""
FEATURES = 7 + len(SHOWN)
TILE, HALO = 512, 64
"""Pixels along one side of a tile that the network corrects at once, and of the rim around it that
the network sees too: at least its receptive field."""


class UnrolledNetwork(nn.Module):
    """`diffraction_to_obj`: measured amplitudes to an object."""

    def __init__(self, steps: int, subsets: int, channels: int) -> None:
        """The best steps known without training, and a correction that does nothing yet."""
        super().__init__()
        self.steps, self.subsets = steps, subsets
        self.gains = nn.Parameter(torch.tensor([1.3, 1.2]).repeat(steps, 1))
        self.momenta = nn.Parameter(0.585 * torch.linspace(0, 1, steps)[:, None].repeat(1, 2))
        # The counts themselves show the low frequencies of the amplitude.
        weak = torch.tensor([0.0, 1.7])[:, None].repeat(steps, 1, len(LENGTHS))
        self.filters = nn.Parameter(weak)
        self.correction = EncoderDecoder(FEATURES, channels, HALVINGS, leak=LEAK)
        # On a CPU, so few feature maps are convolved 1.4 times as fast in this memory layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step_weights(self) -> list[nn.Parameter]:
        """The weights of the physics steps; each changes more than a weight of the network."""
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
        frequency_filter = FrequencyFilter(exposure)
        parts = exposure.split_in_turns(self.subsets)
        pairs = -(-len(parts) // 2)
        coarse = [Turn([part], frequency_filter) for part in parts]
        fine = [Turn(parts[index::pairs], frequency_filter) for index in range(pairs)]
        everything = Turn([exposure], frequency_filter)
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
            filtered = lit * frequency_filter(lit * along, self.filters[k]) / turn.reach
            velocity = _scale(self.gains[k], along) + filtered + _scale(self.momenta[k], velocity)
            change = velocity
            if last:
                shown = [
                    frequency_filter(lit * along[1:], along.new_tensor([row]))[0] for row in SHOWN
                ]
                fields = [canvas.real, canvas.imag, modulus, *along, exposure.illumination, *shown]
                change = change + self._correct(fields)
            canvas = canvas + phase * torch.complex(change[0], change[1])
            yield canvas

    def _correct(self, fields: Sequence[Tensor]) -> Tensor:
        """(2, B, S, T) correction from (B, S, T) fields; tile by tile where gradients are off."""
        B, S, T = fields[0].shape
        if torch.is_grad_enabled() or S * T <= (TILE + 2 * HALO) ** 2:
            return self._correct_tile(fields)
        result = fields[0].new_empty((2, B, S, T))
        for top in range(0, S, TILE):
            for left in range(0, T, TILE):
                y, x = max(top - HALO, 0), max(left - HALO, 0)
                parts = [f[:, y : top + TILE + HALO, x : left + TILE + HALO] for f in fields]
                tile = self._correct_tile(parts)[:, :, top - y :, left - x :]
                result[:, :, top : top + TILE, left : left + TILE] = tile[:, :, :TILE, :TILE]
        return result

    def _correct_tile(self, fields: Sequence[Tensor]) -> Tensor:
        real, imaginary, modulus, *others, light, first, second = fields
        features = [real - 1, imaginary, modulus - 1, *others, light, light.sqrt(), first, second]
        # Stacked last and moved: the memory layout of the convolutions.
        inputs = torch.stack(features, dim=-1).movedim(-1, 1)
        correction: Tensor = self.correction(inputs)
        return correction.movedim(1, 0)


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
        self._lorentzians = torch.stack([1 / (1 + square * length**2) for length in LENGTHS])

    def __call__(self, fields: Tensor, weights: Tensor) -> Tensor:
        """Filter (A, B, S, T) fields, each with its own (L,) of the (A, L) weights."""
        shape, (S, T) = self._padded, self._shape
        response = torch.einsum("al,lyx->ayx", weights, self._lorentzians)[:, None]
        spectrum = torch.fft.rfft2(fields, s=shape) * response
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
        light = torch.stack([part.light for part in parts]).sum(dim=0)
        weak = WEAK_LIGHT * light.amax(dim=(-2, -1), keepdim=True)
        self._parts, self._weight = parts, 1 / (light + weak)
        self.lit = light * self._weight
        """(B, S, T) float32, about 1 where light falls, else 0."""
        self.reach = frequency_filter.reach(self.lit)

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
    """Place the frames of blocks, each block on a canvas of its own.

    Args:
        x: (B, C, N, N) float32 amplitude, sqrt of counts, zero frequency at N//2.
        positions: (B, C, 1, 2) float32 (y, x) relative to the block, pixels.
        probe: (N, N) or (P, N, N) complex64 in counts.
        scale: (B,) amplitude that is divided out of `x` and `probe`.
        shape: (S, T) of the canvases, if `positions` are corners on them; None takes the smallest
            canvases that hold every block.

    Returns:
        F = B * C frames, block after block, on B canvases.
    """
    modes = probe if probe.ndim == 3 else probe[None]
    relative = positions[:, :, 0]
    whole = torch.round(relative)
    if shape is None:
        first = whole.amin(dim=1, keepdim=True)
        whole, relative = whole - first, relative - first
    corners = whole.to(torch.int64)
    factor = scale[:, None, None, None]
    probes = shift_probe(modes, relative - whole) / factor[..., None]
    amplitude = torch.fft.ifftshift(x / factor, dim=(-2, -1))
    return Exposure(
        amplitude.flatten(0, 1),
        probes.flatten(0, 1),
        list_places(corners),
        len(corners),
        shape or padded_shape(corners.amax(dim=(0, 1)).tolist(), x.shape[-1], MULTIPLE),
        spot_radius(modes),
    )


def _scale(weights: Tensor, fields: Tensor) -> Tensor:
    """(A, B, S, T) fields times (A,) weights."""
    return weights[:, None, None, None] * fields
