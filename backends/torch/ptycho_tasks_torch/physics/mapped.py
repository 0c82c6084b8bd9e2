"""All frames of a scan on one canvas, read from their file when they are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.scan import ScanData, corners_and_fractions, release_pages
from ptycho_tasks_torch.physics.canvas import padded_shape
from ptycho_tasks_torch.physics.exposure import CHUNK_PIXELS, Chunk, Exposure
from ptycho_tasks_torch.physics.forward import shift_probe, spot_radius

MULTIPLE = 8
"""Of what the sides of a canvas are multiples: few lengths are as fast to transform."""
HELD_BYTES = 2**28
"""Frames and probes up to this size stay in memory; larger ones are read again in every step."""


def expose_scan(scan: ScanData, modes: Tensor, scale: float, photon: float) -> Exposure:
    """Place all frames of a scan on one canvas; in memory where they are not large.

    Args:
        scan: its frames may lie on disk.
        modes: (P, N, N) complex64 probe, divided by `scale`.
        scale: amplitude that is divided out.
        photon: see `find_photon`.
    """
    N = scan.size
    corners, fractions = corners_and_fractions(scan.positions, N)
    corners = corners - corners.min(axis=0)
    mapped = MappedExposure(
        amplitude=modes.real.new_empty((0, N, N)),
        probes=modes,
        places=[(0, y, x) for y, x in corners.tolist()],
        canvases=1,
        shape=padded_shape(corners.max(axis=0).tolist(), N, MULTIPLE),
        radius=spot_radius(modes),
        counts=scale**2 / photon if photon else math.inf,
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
        mapped.counts,
    )


@dataclass(frozen=True, kw_only=True)
class MappedExposure(Exposure):
    """Reads frames, and moves the probe, when they are needed.

    `probes` is the one (P, N, N) probe, and `amplitude` is empty. There are no gradients for the
    probe.
    """

    diffraction: NDArray[np.float32]
    """(M, N, N) amplitude, zero frequency at N//2; may be a memmap."""
    frames: NDArray[np.int64]
    """(F,) indices of the frames on the canvas."""
    fractions: NDArray[np.float32]
    """(M, 2) sub-pixel parts (y, x) of the positions."""
    scale: float

    def chunks(self) -> Iterator[Chunk]:
        """See `Exposure`."""
        step = max(1, CHUNK_PIXELS // self.probes.numel())
        for first in range(0, len(self.frames), step):
            some = slice(first, min(first + step, len(self.frames)))
            frames = self.frames[some]
            values = torch.from_numpy(np.asarray(self.diffraction[frames]) / np.float32(self.scale))
            release_pages(self.diffraction)
            values = torch.fft.ifftshift(values.to(self.probes.device), dim=(-2, -1))
            amplitude = values.square_().add_(self.dark).sqrt_()
            fractions = torch.from_numpy(self.fractions[frames]).to(self.probes.device)
            yield Chunk(some, self.places[some], amplitude, shift_probe(self.probes, fractions))

    def take(self, frames: Sequence[int]) -> MappedExposure:
        """See `Exposure`."""
        places = [self.places[frame] for frame in frames]
        return replace(self, frames=self.frames[np.asarray(frames)], places=places)
