"""Patches to one object: their phases aligned, then the mean weighted by the light they saw.

The data of one group do not tell its global phase, so that patches predicted apart disagree in
it, and a plain mean would lose the lowest frequencies of the phase. Where patches overlap they
tell their relative phase: the angular synchronisation of Singer (Appl. Comput. Harmon. Anal.
30, 20, 2011).

Axis letters: G groups, C frames in a group, N detector pixels along one side, H, W object rows
and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scan import Canvas

SWEEPS = 30
"""How often every group is turned; more change little on a scan of some thousand frames."""
OVERSHOOT = 1.7
"""Turns are this much larger than the neighbours ask for (successive over-relaxation)."""

Window = tuple[slice, slice, NDArray[np.complex64]]
"""Rows and columns of the object, and a group's patches times light, summed."""


class Stitcher:
    """Collects patches; keeps one window a group, about N x N complex64."""

    def __init__(self, canvas: Canvas) -> None:
        """An empty object."""
        self.canvas = canvas
        self._windows: list[Window] = []
        self._weight = np.zeros(canvas.shape, dtype=np.float32)

    def add(
        self,
        patches: NDArray[np.complex64],
        light: NDArray[np.float32],
        corners: NDArray[np.int64],
    ) -> None:
        """Add patches.

        Args:
            patches: (G, C, N, N) complex64 on whole pixels; within a group their phases agree.
            light: (G, C, N, N) float32, |probe|^2 of the probe at its sub-pixel place.
            corners: (G, C, 2) top-left pixel (row, column) on the scan's object grid.
        """
        N = patches.shape[-1]
        places = corners - np.asarray(self.canvas.origin)
        for at, group, weights in zip(places, patches * light, light, strict=True):
            low, high = at.min(axis=0), at.max(axis=0) + N
            window = np.zeros(high - low, dtype=np.complex64)
            for (y, x), patch, weight in zip(at, group, weights, strict=True):
                window[y - low[0] :, x - low[1] :][:N, :N] += patch
                self._weight[y : y + N, x : x + N] += weight
            rows, columns = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            self._windows.append((rows, columns, window))

    def object(self) -> NDArray[np.complex64]:
        """(H, W) complex64; zero where no patch saw anything."""
        # In an order that the order of the frames does not decide.
        windows = sorted(self._windows, key=lambda w: (w[0].start, w[1].start))
        total = _summed(align_phases(windows, self.canvas.shape), self.canvas.shape)
        # Below the noise of single precision a quotient is no information.
        floor = 1e-6 * float(self._weight.max(initial=0.0))
        seen = self._weight > floor
        image = np.zeros_like(total)
        np.divide(total, self._weight, out=image, where=seen)
        return image


def align_phases(windows: list[Window], shape: tuple[int, int]) -> list[Window]:
    """Turn every window to agree with the sum of the others; the mean phase stays.

    Args:
        windows: as in `Stitcher`, inside `shape`.
        shape: (H, W).
    """
    before = _summed(windows, shape)
    total, turned = before.copy(), [window.copy() for _, _, window in windows]
    for _ in range(SWEEPS):
        for (rows, columns, _), window in zip(windows, turned, strict=True):
            there = total[rows, columns]
            # Zero, and no turn, where no other window overlaps.
            others = np.vdot(window, there - window)
            turn = np.complex64(np.exp(1j * OVERSHOOT * np.angle(others)))
            there += (turn - 1) * window
            window *= turn
    back = np.complex64(np.exp(-1j * np.angle(np.vdot(before, total))))
    return [
        (rows, columns, back * w) for (rows, columns, _), w in zip(windows, turned, strict=True)
    ]


def _summed(windows: list[Window], shape: tuple[int, int]) -> NDArray[np.complex64]:
    total = np.zeros(shape, dtype=np.complex64)
    for rows, columns, window in windows:
        total[rows, columns] += window
    return total
