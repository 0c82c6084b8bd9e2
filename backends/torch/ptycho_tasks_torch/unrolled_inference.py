"""Reconstruct a scan with the unrolled network. Lightning is not needed here."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.backend import InferRequest, Reconstruction
from ptycho_tasks.errors import BundleError, ScanError
from ptycho_tasks.scan import ScanData, canvas_of, corners_and_fractions, release_pages
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.exposure import CHUNK_PIXELS, Chunk, Exposure
from ptycho_tasks_torch.inference import trained_for
from ptycho_tasks_torch.load import OBJECT_NETWORK, PROBE, modules_from
from ptycho_tasks_torch.physics import mean_intensity, scale_probe, shift_probe, spot_radius
from ptycho_tasks_torch.unrolled_network import UnrolledNetwork, padded_shape

HELD_BYTES = 2**28
"""Frames and probes up to this size are held in memory; more are read again in every step."""
SAME_PROBE = 0.02
"""Largest difference of two guesses of one probe, over their norm."""


def infer(request: InferRequest) -> Reconstruction:
    """Reconstruct the object of all frames on one canvas; see `Unrolled.infer`."""
    with settings(TorchExecution.of(request.execution)), torch.inference_mode():
        return deque(iterates(request), maxlen=1).pop()


def iterates(request: InferRequest) -> Iterator[Reconstruction]:
    """What the object has come to after each step; the last is the result. Exceptions are those of
    `Unrolled.infer`. To be called in `torch.inference_mode`."""
    scan, N = request.scan, request.scan.size
    intensity_scale = trained_for(request.model, scan)
    device = find_device(TorchExecution.of(request.execution).accelerator)
    network = modules_from(request.model, request.options)[OBJECT_NETWORK].to(device)
    assert isinstance(network, UnrolledNetwork)
    counts = mean_intensity(scan.diffraction, np.arange(scan.frame_count)) * N**2
    if counts == 0:
        raise ScanError(f"{scan.name}: every frame is dark; there is nothing to reconstruct")
    probe = _probe_of(request, scale_probe(scan.probe, counts))
    modes = torch.from_numpy(probe / np.float32(math.sqrt(intensity_scale))).to(device)
    exposure = frames_of(scan, modes, math.sqrt(intensity_scale))
    place = canvas_of(scan.positions, N)
    rows, columns = place.shape
    lit = exposure.light[0, :rows, :columns].cpu().numpy() > 0
    losses = [epoch["loss"] for epoch in request.model.history]
    request.progress(0, network.steps, {})
    for done, canvas in enumerate(network.objects(exposure), start=1):
        seen = canvas[0, :rows, :columns].cpu().numpy() * lit
        yield Reconstruction(seen, place.origin, probe, scan.positions, losses)
        request.progress(done, network.steps, {})


def _probe_of(request: InferRequest, guess: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The probe as the training refined it, where the scan has the guess that it began with; the
    scan's own, scaled, elsewhere."""
    refined = request.model.models.get(PROBE)
    if refined is None:
        return guess
    lacking = sorted({"guess", "modes"} - refined.keys())
    if lacking:
        raise BundleError(
            f"the bundle's model `{PROBE}` lacks {' and '.join(lacking)}; train again"
        )
    if refined["guess"].shape != guess.shape:
        return guess
    norm, trained = np.linalg.norm(guess), np.linalg.norm(refined["guess"])
    if np.linalg.norm(guess / norm - refined["guess"] / trained) > SAME_PROBE:
        return guess
    return np.asarray(refined["modes"] * (norm / trained), dtype=np.complex64)


def frames_of(scan: ScanData, modes: Tensor, scale: float) -> Exposure:
    """What a scan measured, on one canvas; held in memory where it is not large.

    Args:
        scan: its frames may lie on disk.
        modes: (P, N, N) complex64 probe, divided by `scale`.
        scale: amplitude that is divided out.
    """
    N = scan.size
    corners, fractions = corners_and_fractions(scan.positions, N)
    corners = corners - corners.min(axis=0)
    mapped = MappedExposure(
        amplitude=modes.real.new_empty((0, N, N)),
        probes=modes,
        places=[(0, y, x) for y, x in corners.tolist()],
        canvases=1,
        shape=padded_shape(corners.max(axis=0).tolist(), N),
        radius=spot_radius(modes),
        diffraction=scan.diffraction,
        frames=np.arange(scan.frame_count),
        fractions=fractions.astype(np.float32),
        scale=scale,
    )
    if scan.frame_count * N**2 * (4 + 8 * len(modes)) > HELD_BYTES:
        return mapped
    chunks = list(mapped.chunks())
    return Exposure(
        torch.cat([chunk.amplitude for chunk in chunks]),
        torch.cat([chunk.probes for chunk in chunks]),
        mapped.places,
        mapped.canvases,
        mapped.shape,
        mapped.radius,
    )


@dataclass(frozen=True, kw_only=True)
class MappedExposure(Exposure):
    """Frames that are read, and probes that are moved, when they are due. `probes` is the one probe
    and `amplitude` is empty; nothing can be derived by the probe."""

    diffraction: NDArray[np.float32]
    """(M, N, N) amplitude, zero frequency at N//2; may be a memmap."""
    frames: NDArray[np.int64]
    """(F,) of those."""
    fractions: NDArray[np.float32]
    """(M, 2) sub-pixel rests (y, x)."""
    scale: float

    def chunks(self) -> Iterator[Chunk]:
        """See `Exposure`."""
        step = max(1, CHUNK_PIXELS // self.probes.numel())
        for first in range(0, len(self.frames), step):
            some = slice(first, min(first + step, len(self.frames)))
            frames = self.frames[some]
            read = torch.from_numpy(np.asarray(self.diffraction[frames]) / np.float32(self.scale))
            release_pages(self.diffraction)
            amplitude = torch.fft.ifftshift(read.to(self.probes.device), dim=(-2, -1))
            rests = torch.from_numpy(self.fractions[frames]).to(self.probes.device)
            yield Chunk(some, self.places[some], amplitude, shift_probe(self.probes, rests))

    def take(self, frames: Sequence[int]) -> MappedExposure:
        """See `Exposure`."""
        places = [self.places[frame] for frame in frames]
        return replace(self, frames=self.frames[np.asarray(frames)], places=places)
