"""The network: diffraction amplitudes of a group of neighbouring frames to object patches.

Every pixel of a diffraction pattern depends on every pixel of the object, which convolutions cannot
follow. The network therefore starts with a few steps of a parallel PIE (Rodenburg and Faulkner,
Appl. Phys. Lett. 85, 4795, 2004) from a flat object. These steps have no weights. An
encoder-decoder then gets what it is good at: an image in real space, and the correction that the
physics asks for there. The frames of a group share one canvas, so that their overlap counts.

Axis letters: B groups, C frames in a group (gridsize squared), P probe modes, N detector pixels
along one side, S pixels along one side of a group's canvas, F feature maps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptycho_tasks_torch.physics.canvas import list_places
from ptycho_tasks_torch.physics.exposure import WEAK_LIGHT, Exposure
from ptycho_tasks_torch.physics.forward import has_bad_pixels, intensities, shift_probe
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.unet import EncoderDecoder

WARM_STEPS = 8
"""Physics steps before the first correction; more bring little from one group's frames alone."""


def expose_groups(
    x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor, multiple: int = 1
) -> Exposure:
    """Place the frames of groups, each group on a canvas of its own.

    Args:
        x: (B, C, N, N) float32 amplitude, sqrt of counts, zero frequency at N//2; NaN where a pixel
            is bad.
        positions: (B, C, 1, 2) float32 (y, x) relative to the group, pixels.
        probe: (N, N) or (P, N, N) complex64 in counts.
        scale: (B,) amplitude that is divided out of `x` and `probe`.
        multiple: of what S is to be a multiple.

    Returns:
        F = B * C frames, group after group, on B canvases of S x S pixels.
    """
    modes = probe if probe.ndim == 3 else probe[None]
    relative = positions[:, :, 0]
    whole = torch.round(relative)
    factor = scale[:, None, None, None]
    probes = shift_probe(modes, relative - whole) / factor[..., None]
    amplitude = torch.fft.ifftshift(x / factor, dim=(-2, -1))
    size = x.shape[-1]
    side = _side(whole, size, multiple)
    corners = whole.to(torch.int64) + (side - size) // 2
    return Exposure(
        amplitude.flatten(0, 1),
        probes.flatten(0, 1),
        list_places(corners),
        len(corners),
        (side, side),
        has_bad_pixels=has_bad_pixels(x),
    )


def _side(whole: Tensor, size: int, multiple: int) -> int:
    """Side of canvases that hold every patch, around the groups' references."""
    side: int = -(-(size + 2 * int(whole.abs().max())) // multiple) * multiple
    return side


def find_weight(exposure: Exposure) -> Tensor:
    """(B, S, T) float32 that a correction is multiplied by: one over the light."""
    return 1 / (exposure.light + WEAK_LIGHT * exposure.strongest)


@torch.no_grad()
def take_steps(exposure: Exposure, canvas: Tensor, weight: Tensor, count: int) -> Tensor:
    """(B, S, T) complex64 objects after some physics steps; nothing of these is learned. `weight`
    is that of `find_weight`."""
    for _ in range(count):
        canvas = canvas + exposure.correction(canvas) * weight
    return canvas


class ObjectNetwork(nn.Module):
    """`diffraction_to_obj`: measured amplitudes to object patches."""

    def __init__(self, channels: int, steps: int, halvings: int) -> None:
        """Weights for `steps` corrections, each by a network of `channels` feature maps at full
        size."""
        super().__init__()
        self.multiple = 2**halvings
        """Of what the sides of canvases are to be multiples."""
        self.corrections = nn.ModuleList(
            [EncoderDecoder(5, channels, halvings, halvings - 1) for _ in range(steps)]
        )
        self.gains = nn.Parameter(torch.ones(steps))
        # On a CPU, so few feature maps are convolved 1.4 times as fast in this memory layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor) -> Tensor:
        """Object patches (B, C, N, N) complex64; arguments as for `expose_groups`."""
        exposure = expose_groups(x, positions, probe, scale, self.multiple)
        return self.reconstruct(exposure).reshape(x.shape)

    def reconstruct(self, exposure: Exposure) -> Tensor:
        """Object patches (F, N, N) complex64."""
        flat = torch.ones_like(exposure.illumination).to(torch.complex64)
        weight = find_weight(exposure)
        canvas = take_steps(exposure, flat, weight, WARM_STEPS)
        for gain, network in zip(self.gains, self.corrections, strict=True):
            step = exposure.correction(canvas) * weight
            features = [canvas.real - 1, canvas.imag, step.real, step.imag, exposure.illumination]
            learned = network(torch.stack(features, dim=-1).movedim(-1, 1))
            canvas = canvas + gain * step + torch.complex(learned[:, 0], learned[:, 1])
        return exposure.cut(canvas)


class Autoencoder(nn.Module):
    """`autoencoder`: measured amplitudes to object patches to predicted amplitudes."""

    def __init__(self, network: ObjectNetwork) -> None:
        """Share the weights of `network`."""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor) -> Tensor:
        """Predicted amplitude (B, C, N, N) float32; arguments as for `expose_groups`."""
        exposure = expose_groups(x, positions, probe, scale, self.network.multiple)
        patches = self.network.reconstruct(exposure)
        predicted = intensities(patches, exposure.probes).reshape(x.shape)
        return predicted.sqrt() * scale[:, None, None, None]


def make_pinn_networks(options: PinnOptions) -> tuple[ObjectNetwork, Autoencoder]:
    """Both networks with fresh weights, which they share."""
    network = ObjectNetwork(options.channels, options.steps, options.halvings)
    return network, Autoencoder(network)
