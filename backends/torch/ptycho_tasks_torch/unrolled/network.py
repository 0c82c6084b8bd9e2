"""Physics steps on the whole canvas, and a network that corrects what they lead to.

Axis letters: B canvases, S, T rows and columns of a canvas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from ptycho_tasks_torch.physics.canvas import list_places, padded_shape
from ptycho_tasks_torch.physics.exposure import Exposure, find_dark
from ptycho_tasks_torch.physics.forward import (
    has_bad_pixels,
    intensities,
    shift_probe,
    spot_radius,
)
from ptycho_tasks_torch.physics.mapped import MULTIPLE
from ptycho_tasks_torch.unrolled.correction import Correction
from ptycho_tasks_torch.unrolled.depth import Depth
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.steps import Engine, follow, run_steps

BLOCK_STEPS = 32
"""Steps on a block of frames."""
FEW_PHOTONS, CORRECTIONS, STEPS_BETWEEN = 3e5, 2, 2
"""Scans with at most so many photons a frame are corrected so often; and how many steps, on all
frames, lie between two corrections. They show what of the frames the first one missed."""


class UnrolledNetwork(nn.Module):
    """`diffraction_to_obj`: measured amplitudes to an object."""

    def __init__(self, channels: int) -> None:
        """A correction that does nothing yet, with `channels` feature maps at full size."""
        super().__init__()
        self.correction = Correction(channels)

    def forward(self, x: Tensor, positions: Tensor, probe: Tensor, scale: Tensor) -> Tensor:
        """Object patches (B, C, N, N) complex64; arguments as for `expose_blocks`."""
        exposure = expose_blocks(x, positions, probe, scale)
        return exposure.cut(self.object(exposure)).reshape(x.shape)

    def object(self, exposure: Exposure, steps: int = BLOCK_STEPS) -> Tensor:
        """(B, S, T) complex64 object after some steps, corrected; with gradients for the
        correction."""
        return self.correct(reconstruct(exposure, steps), exposure)

    def find_object(self, exposure: Exposure, steps: int | None = None) -> Tensor:
        """(1, S, T) complex64 object of an exposure of one canvas, with all corrections, after the
        steps that an inference takes; arguments as for `rehearse`."""
        corrected = self.correct_in_turns(rehearse(exposure, steps), exposure)
        return deque(corrected, maxlen=1).pop()

    def correct_in_turns(
        self,
        engine: Engine,
        exposure: Exposure,
        count: int | None = None,
        ways: int = 1,
        *,
        is_last: bool = False,
    ) -> Iterator[Tensor]:
        """Yield the (B, S, T) complex64 object of an engine, corrected once, then more often.

        Args:
            engine, exposure, is_last: as for `correct`.
            count: how often; None: once, and where photons are few a second time.
            ways: as for `correct`, of the last time; for those before, one is enough.
        """
        if count is None:
            count = CORRECTIONS if is_faint(exposure) else 1
        corrected: Tensor | None = None
        for left in reversed(range(count)):
            if corrected is not None:
                corrected = corrected.detach()
                engine = take_up(exposure, corrected, engine)
            taken = 1 if left else ways
            corrected = self.correct(engine, exposure, taken, corrected, is_last=is_last)
            yield corrected

    def correct(
        self,
        engine: Engine,
        exposure: Exposure,
        ways: int = 1,
        earlier: Tensor | None = None,
        *,
        is_last: bool = False,
    ) -> Tensor:
        """(B, S, T) complex64: the object of an engine, corrected.

        Args:
            engine: after a step.
            exposure: the frames, or more of them on the same canvas.
            ways: in which a canvas can lie, whose corrections are averaged.
            earlier: (B, S, T) complex64 corrected object that the engine began from, if it did.
            is_last: whether the engine takes no more steps, and is to keep the object alone.
        """
        canvas, fields = engine.canvas, engine.show()
        if is_last:  # on a large canvas the rest takes as much memory as the network
            engine.rest()
        maps = canvas, fields, exposure.light
        told = exposure.counts, exposure.apply, ways, earlier
        corrected: Tensor = self.correction(*maps, *told)
        return corrected


def reconstruct(exposure: Exposure, steps: int = BLOCK_STEPS, *, damping: float = 1.0) -> Engine:
    """The engine after some steps; without gradients. Arguments as for `run_steps`."""
    with torch.no_grad():
        return deque(run_steps(exposure, steps, damping=damping), maxlen=1).pop()


def rehearse(exposure: Exposure, steps: int | None = None) -> Engine:
    """The engine of one canvas as an inference leaves it for the correction; without gradients.

    What a network learns from must have the noise that an inference shows it: a few steps more on
    all frames make another.

    Args:
        exposure: of one canvas.
        steps: see `Depth`.
    """
    with torch.no_grad():
        depth = Depth(exposure, steps)
        deque(depth.run(), maxlen=0)
        return deque(depth.finish(depth.engine.canvas), maxlen=1).pop()


def take_up(exposure: Exposure, canvas: Tensor, like: Engine) -> Engine:
    """The engine after `STEPS_BETWEEN` steps from a corrected object; without gradients.

    Args:
        exposure: frames and probes.
        canvas: (B, S, T) complex64.
        like: an engine of the same canvas, whose steps are as long.
    """
    with torch.no_grad():
        return next(islice(follow(exposure, canvas, like), STEPS_BETWEEN - 1, None))


def is_faint(exposure: Exposure) -> bool:
    """Whether its frames have so few photons that one correction is not enough."""
    return exposure.photons <= FEW_PHOTONS


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
    network = UnrolledNetwork(options.channels)
    return network, UnrolledAutoencoder(network)


def expose_blocks(
    x: Tensor,
    positions: Tensor,
    probe: Tensor,
    scale: Tensor,
    shape: tuple[int, int] | None = None,
    photon: float = 1.0,
) -> Exposure:
    """Place the frames of blocks, each block on a canvas of its own.

    Args:
        x: (B, C, N, N) float32 amplitude, sqrt of counts, zero frequency at N//2; NaN where a pixel
            is bad.
        positions: (B, C, 1, 2) float32 (y, x) relative to the block, pixels.
        probe: (N, N) or (P, N, N) complex64 in counts.
        scale: (B,) amplitude that is divided out of `x` and `probe`.
        shape: (S, T) of the canvases, if `positions` are corners on them; None takes the smallest
            canvases that hold every block.
        photon: see `find_photon`.

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
    counts = float(scale.square().mean()) / photon if photon else float("inf")
    measured = torch.fft.ifftshift(x / factor, dim=(-2, -1)).square()
    return Exposure(
        (measured + find_dark(counts)).sqrt().flatten(0, 1),
        probes.flatten(0, 1),
        list_places(corners),
        len(corners),
        shape or padded_shape(corners.amax(dim=(0, 1)).tolist(), x.shape[-1], MULTIPLE),
        spot_radius(modes),
        counts,
        has_bad_pixels(x),
    )
