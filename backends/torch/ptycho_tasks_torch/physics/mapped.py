"""All frames of a scan on one canvas, read from their file when they are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.scan import ScanData, corners_and_fractions, release_pages
from ptycho_tasks_torch.physics.canvas import list_places, padded_shape
from ptycho_tasks_torch.physics.exposure import Chunk, Exposure, brighten_probes
from ptycho_tasks_torch.physics.forward import shift_probe, spot_radius

MULTIPLE = 8
"""Of what the sides of a canvas are multiples: few lengths are as fast to transform."""
HELD_BYTES = 2**28
"""Frames and probes up to this size stay in memory; larger ones are read again in every step."""
GPU_HELD_SHARE, GPU_FRAMES_SHARE = 1 / 8, 1 / 2
"""Of a GPU's memory, that frames and probes may take, three times over while parts of them take
turns; and that frames alone may take, whose probes are then moved again in every step."""


def expose_scan(scan: ScanData, modes: Tensor, scale: float, photon: float) -> Exposure:
    """Place all frames of a scan on one canvas; in memory where they are not large; arguments as
    for `map_scan`."""
    return load_frames(map_scan(scan, modes, scale, photon))


def map_scan(scan: ScanData, modes: Tensor, scale: float, photon: float) -> MappedExposure:
    """Place all frames of a scan on one canvas, and read none.

    Args:
        scan: its frames may lie on disk.
        modes: (P, N, N) complex64 probe, divided by `scale`.
        scale: amplitude that is divided out.
        photon: see `find_photon`.
    """
    N = scan.size
    corners, fractions = corners_and_fractions(scan.positions, N)
    corners = corners - corners.min(axis=0)
    return MappedExposure(
        amplitude=modes.real.new_empty((0, N, N)),
        probes=modes,
        places=list_places(torch.from_numpy(corners)[None]).to(modes.device),
        canvases=1,
        shape=padded_shape(corners.max(axis=0).tolist(), N, MULTIPLE),
        radius=spot_radius(modes),
        counts=scale**2 / photon if photon else math.inf,
        has_bad_pixels=scan.bad_pixels is not None,
        diffraction=scan.diffraction,
        frames=torch.arange(scan.frame_count, device=modes.device),
        fractions=torch.from_numpy(fractions.astype(np.float32)).to(modes.device),
        scale=scale,
    )


def load_frames(mapped: MappedExposure) -> Exposure:
    """The same frames, in memory where they are not large."""
    whole, frames_alone = find_room(mapped.probes.device)
    pixels = len(mapped.places) * mapped.size**2
    if pixels * (4 + 8 * len(mapped.probes)) > whole:
        return mapped.hold() if pixels * 4 <= frames_alone else mapped
    chunks = list(mapped.chunks())
    return Exposure(
        torch.cat([chunk.amplitude for chunk in chunks]),
        torch.cat([chunk.probes for chunk in chunks]),
        mapped.places,
        mapped.canvases,
        mapped.shape,
        mapped.radius,
        mapped.counts,
        mapped.has_bad_pixels,
        mapped.background,
    )


def find_room(device: torch.device) -> tuple[int, int]:
    """Bytes that may stay in a device's memory: of frames and probes, and of frames alone."""
    if device.type != "cuda":
        return HELD_BYTES, 0
    memory = torch.cuda.get_device_properties(device).total_memory
    return int(GPU_HELD_SHARE * memory), int(GPU_FRAMES_SHARE * memory)


@dataclass(frozen=True, kw_only=True)
class MappedExposure(Exposure):
    """Reads frames, and moves the probe, when they are needed.

    `probes` is the one (P, N, N) probe, and `amplitude` is empty. There are no gradients for the
    probe.
    """

    diffraction: NDArray[np.float32]
    """(M, N, N) amplitude, zero frequency at N//2; may be a memmap."""
    frames: Tensor
    """(F,) int64 indices of the frames on the canvas."""
    fractions: Tensor
    """(F, 2) float32 sub-pixel parts (y, x) of their positions."""
    scale: float
    flux: Tensor | None = None
    """(F,) float32, see `brighten`; None: the light of the probe."""
    held: Tensor | None = None
    """(M, N, N) `amplitude` of all frames, in the device's memory; None reads them from the file.
    """

    def chunk(self, frames: slice) -> Chunk:
        """See `Exposure`."""
        probes = shift_probe(self.probes, self.fractions[frames])
        if self.flux is not None:
            probes = brighten_probes(probes, self.flux[frames])
        return Chunk(frames, self.places[frames], self.read(self.frames[frames]), probes)

    def read(self, frames: Tensor) -> Tensor:
        """(C, N, N) float32 `amplitude` of some frames, (C,) int64 indices as in `frames`."""
        if self.held is not None:
            return self.held[frames]
        values = _read_rows(self.diffraction, frames.cpu().numpy()) / np.float32(self.scale)
        release_pages(self.diffraction)
        moved = torch.from_numpy(values).to(self.probes.device)
        amplitude: Tensor = torch.fft.ifftshift(moved, dim=(-2, -1))
        return amplitude.square_().add_(self.dark).sqrt_()

    def hold(self) -> MappedExposure:
        """The same, with all frames in the device's memory."""
        held = self.amplitude.new_empty((len(self.diffraction), *self.probes.shape[1:]))
        for chunk in self.chunks():
            held[self.frames[chunk.frames]] = chunk.amplitude
        return replace(self, held=held)

    def take(self, frames: Sequence[int]) -> MappedExposure:
        """See `Exposure`."""
        chosen = torch.as_tensor(frames, device=self.frames.device)
        return replace(
            self,
            frames=self.frames[chosen],
            fractions=self.fractions[chosen],
            places=self.places[chosen],
            flux=None if self.flux is None else self.flux[chosen],
        )

    def brighten(self, flux: Tensor) -> MappedExposure:
        """See `Exposure`."""
        return replace(self, flux=flux if self.flux is None else flux * self.flux)


def _read_rows(diffraction: NDArray[np.float32], frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """(C, N, N) frames; those that follow each other are not copied."""
    first, count = int(frames[0]), len(frames)
    if np.array_equal(frames, np.arange(first, first + count)):
        return np.asarray(diffraction[first : first + count])
    return np.asarray(diffraction[frames])
