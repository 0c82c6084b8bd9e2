"""The network: diffraction amplitudes of a group of neighbouring frames to object patches.

A diffraction pattern is the Fourier transform of what it shows, so that every pixel of it tells
of every pixel of the object: no job for convolutions. The network therefore starts with a few
steps of a parallel PIE (Rodenburg and Faulkner, Appl. Phys. Lett. 85, 4795, 2004) from a flat
object, without any weight, and gives an encoder-decoder what it is good at: an image in real
space, and the correction that the physics asks for there. A group's frames share one canvas, so
their overlap counts.

Axis letters: B groups, C frames in a group (gridsize squared), P probe modes, N detector pixels
along one side, S pixels along one side of a group's canvas, F feature maps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ptycho_tasks_torch.canvas import Corners, add_patches, cut_patches
from ptycho_tasks_torch.physics import intensities, shift_probe

WARM_STEPS = 8
"""Physics steps before the first correction; more bring little from one group's frames alone."""
HALVINGS = 2
"""How often the encoder halves the canvas."""
WEAK_LIGHT = 0.02
"""Share of the strongest illumination that is added before dividing by the illumination."""


class Convolutions(nn.Module):
    """Two convolutions of 3 x 3 pixels, each followed by a ReLU; (B, F, S, S) -> (B, F', S, S)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Weights for `inputs` and `outputs` feature maps."""
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return functional.relu(self.second(functional.relu(self.first(x))))


class EncoderDecoder(nn.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015) of three scales; the output starts at zero.

    (B, inputs, S, S) -> (B, 2, S, S), S a multiple of 2**HALVINGS.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        """Weights for `channels` feature maps at full size."""
        super().__init__()
        F = channels
        self.encoder = nn.ModuleList([Convolutions(inputs, F), Convolutions(F, 2 * F)])
        self.middle = Convolutions(2 * F, 2 * F)
        self.decoder = nn.ModuleList([Convolutions(4 * F, F), Convolutions(2 * F, F)])
        self.last = nn.Conv2d(F, 2, 3, padding=1)
        # Untrained, the network is the physics steps alone: training can only leave them.
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, decode with skip connections."""
        skips = []
        for encoder in self.encoder:
            x = encoder(x)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.middle(x)
        for decoder in self.decoder:
            x = functional.interpolate(x, scale_factor=2)
            x = decoder(torch.cat([x, skips.pop()], dim=1))
        correction: Tensor = self.last(x)
        return correction


class Exposure:
    """What a batch of groups measured, on canvases of their own."""

    def __init__(self, x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor) -> None:
        """Place the frames.

        Args:
            x: (B, C, N, N) float32 amplitude, sqrt of counts, zero frequency at N//2.
            positions: (B, C, 1, 2) float32 (y, x) relative to the group, pixels.
            probe: (N, N) or (P, N, N) complex64 in counts.
            scale: (B,) amplitude that is divided out of `x` and `probe`.
        """
        modes = probe if probe.ndim == 3 else probe[None]
        relative = positions[:, :, 0]
        whole = torch.round(relative)
        factor = scale[:, None, None, None]
        self.size = x.shape[-1]
        self.probes = shift_probe(modes, relative - whole) / factor[..., None]
        """(B, C, P, N, N), shifted by the sub-pixel rest."""
        self.amplitude = torch.fft.ifftshift(x / factor, dim=(-2, -1))
        """(B, C, N, N), zero frequency first."""
        self.side, self.corners = _place(whole, self.size)
        light = self.add(self.probes.abs().square().sum(dim=2))
        strongest = light.amax(dim=(-2, -1), keepdim=True)
        self.illumination = light / strongest
        """(B, S, S), at most 1."""
        self._weight = 1 / (light + WEAK_LIGHT * strongest)

    @property
    def _alone(self) -> bool:
        return self.side == self.size and len(self.corners[0]) == 1

    def add(self, patches: Tensor) -> Tensor:
        """Sum (B, C, N, N) patches on the canvases: (B, S, S)."""
        if self._alone:
            return patches[:, 0]
        return add_patches(patches, self.corners, (self.side, self.side))

    def cut(self, canvas: Tensor) -> Tensor:
        """Cut the (B, C, N, N) patches out of the (B, S, S) canvases."""
        return canvas[:, None] if self._alone else cut_patches(canvas, self.corners, self.size)

    def correction(self, canvas: Tensor) -> Tensor:
        """The step of a parallel PIE from `canvas`: replace the modulus, go back, average.

        Args:
            canvas: (B, S, S) complex64 object.

        Returns:
            (B, S, S) complex64, to be added to the canvas.
        """
        far = torch.fft.fft2(self.probes * self.cut(canvas)[:, :, None], norm="ortho")
        modulus = (far.real.square() + far.imag.square()).sum(dim=2, keepdim=True)
        # The floor keeps the gradient finite where the far field is dark.
        ratio = self.amplitude[:, :, None] / (modulus + 1e-6).sqrt()
        change = torch.fft.ifft2(far * (ratio - 1), norm="ortho")
        return self.add((self.probes.conj() * change).sum(dim=2)) * self._weight


def _place(whole: Tensor, size: int) -> tuple[int, Corners]:
    """Side of a canvas that holds every patch, and the patches' corners on it."""
    multiple = 2**HALVINGS
    reach = int(whole.abs().max())
    side = -(-(size + 2 * reach) // multiple) * multiple
    margin = (side - size) // 2
    corners = whole.to(torch.int64) + margin
    return side, [[(y, x) for y, x in group] for group in corners.tolist()]


class ObjectNetwork(nn.Module):
    """`diffraction_to_obj`: measured amplitudes to object patches."""

    def __init__(self, channels: int, steps: int) -> None:
        """Weights for `steps` corrections, each by a network of `channels` feature maps."""
        super().__init__()
        self.corrections = nn.ModuleList([EncoderDecoder(5, channels) for _ in range(steps)])
        self.gains = nn.Parameter(torch.ones(steps))
        # So few feature maps are convolved 1.4 times as fast on a CPU when they lie side by side.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor) -> Tensor:
        """Object patches (B, C, N, N) complex64; arguments as for `Exposure`."""
        return self.reconstruct(Exposure(x, positions, probe, scale))

    def reconstruct(self, exposure: Exposure) -> Tensor:
        """Object patches (B, C, N, N) complex64."""
        canvas = torch.ones_like(exposure.illumination).to(torch.complex64)
        with torch.no_grad():
            for _ in range(WARM_STEPS):
                canvas = canvas + exposure.correction(canvas)
        for gain, network in zip(self.gains, self.corrections, strict=True):
            step = exposure.correction(canvas)
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
        """Predicted amplitude (B, C, N, N) float32; arguments as for `Exposure`."""
        exposure = Exposure(x, positions, probe, scale)
        predicted = intensities(self.network.reconstruct(exposure), exposure.probes)
        return predicted.sqrt() * scale[:, None, None, None]
