"""What a scan measured, on one canvas, read from its file as it is needed."""

from __future__ import annotations

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

HELD_BYTES = 2**28
"""Frames and probes up to this size are held in memory; more are read again in every step."""


def expose_scan(scan: ScanData, modes: Tensor, scale: float, multiple: int) -> Exposure:
    """What a scan measured, on one canvas; held in memory where it is not large.

    Args:
        scan: its frames may lie on disk.
        modes: (P, N, N) complex64 probe, divided by `scale`.
        scale: amplitude that is divided out.
        multiple: of what the sides of the canvas are to be multiples.
    """
    N = scan.size
    corners, fractions = corners_and_fractions(scan.positions, N)
    corners = corners - corners.min(axis=0)
    mapped = MappedExposure(
        amplitude=modes.real.new_empty((0, N, N)),
        probes=modes,
        places=[(0, y, x) for y, x in corners.tolist()],
        canvases=1,
        shape=padded_shape(corners.max(axis=0).tolist(), N, multiple),
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
