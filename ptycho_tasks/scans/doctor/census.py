"""One pass over all frames of a scan: what each pixel and each frame holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scan import release_pages
from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.system.large_arrays import row_chunks

HIDDEN = 0.02
"""Light on the good pixels of a frame that shows nearly nothing, over that on those of others."""


@dataclass(frozen=True)
class Census:
    """Counts of pixels and frames."""

    lowest: NDArray[np.float64]
    """(N, N) least value of each pixel, as found; Inf where never measured."""
    highest: NDArray[np.float64]
    """(N, N)."""
    total: NDArray[np.float64]
    """(N, N) counts of each pixel over all frames."""
    measured: NDArray[np.int64]
    """(N, N) frames in which a pixel was measured."""
    light: NDArray[np.float64]
    """(M,) counts of each frame."""
    expected: NDArray[np.float64]
    """(M,) counts of the mean frame on the pixels that were measured in each frame."""
    hidden: NDArray[np.bool_]
    """(M,) frames of which bad pixels hide nearly all light."""
    quantum: float
    """Counts of the least light that a pixel held, 1 at least: a photon where counts are multiplied
    by a number."""
    digests: tuple[bytes, ...]
    """(M,) equal for equal frames."""


def take_census(case: Case) -> Census:
    """Look at every frame of a scan."""
    N, light, expected, digests, quantum = case.size, [], [], [], np.inf
    lowest, highest = np.full((N, N), np.inf), np.full((N, N), -np.inf)
    total, measured = np.zeros((N, N)), np.zeros((N, N), np.int64)
    for part in row_chunks(case.frames.shape, np.dtype(np.float64)):
        values = case.values(part)
        is_there = np.isfinite(values)
        lowest = np.fmin(lowest, np.fmin.reduce(values, axis=0))
        highest = np.fmax(highest, np.fmax.reduce(values, axis=0))
        digests += [
            hashlib.blake2b(frame, digest_size=8).digest() for frame in values.astype(np.float32)
        ]
        counts = np.fmax(values, 0, out=values)  # zero where there is none
        if case.power != 0.5:
            counts **= 2 * case.power
        total += counts.sum(axis=0)
        measured += is_there.sum(axis=0)
        quantum = min(quantum, counts.min(initial=np.inf, where=counts > 0))
        light.append(counts.sum(axis=(1, 2)))
        # Not by a matrix product: its threads would wait for each other longer than it takes.
        expected.append(np.where(is_there, case.mean, 0).sum(axis=(1, 2)))
        release_pages(case.frames)
    quantum = max(float(quantum), 1.0) if np.isfinite(quantum) else 1.0
    lights, means = np.concatenate(light), np.concatenate(expected)
    hidden = means <= HIDDEN * means.max(initial=0)
    return Census(lowest, highest, total, measured, lights, means, hidden, quantum, tuple(digests))
