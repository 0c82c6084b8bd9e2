"""Patches to one object: the mean of overlapping patches, weighted by the light they saw.

Axis letters: G groups, C frames in a group, N detector pixels along one side, H, W object rows
and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scan import Canvas


class Stitcher:
    """Collects patches; the sum fits in memory, however many patches come."""

    def __init__(self, canvas: Canvas) -> None:
        """An empty object."""
        self.canvas = canvas
        self._sum = np.zeros(canvas.shape, dtype=np.complex64)
        self._weight = np.zeros(canvas.shape, dtype=np.float32)

    def add(
        self,
        patches: NDArray[np.complex64],
        light: NDArray[np.float32],
        corners: NDArray[np.int64],
    ) -> None:
        """Add patches.

        Args:
            patches: (G, C, N, N) complex64 on whole pixels.
            light: (G, C, N, N) float32, |probe|^2 of the probe at its sub-pixel place.
            corners: (G, C, 2) top-left pixel (row, column) on the scan's object grid.
        """
        N = patches.shape[-1]
        flat = (-1, N, N)
        weighted = (patches * light).reshape(flat)
        places = corners.reshape(-1, 2) - np.asarray(self.canvas.origin)
        for (y, x), patch, weight in zip(places, weighted, light.reshape(flat), strict=True):
            self._sum[y : y + N, x : x + N] += patch
            self._weight[y : y + N, x : x + N] += weight

    def object(self) -> NDArray[np.complex64]:
        """(H, W) complex64; zero where no patch saw anything."""
        # Below the noise of single precision a quotient is no information.
        floor = 1e-6 * float(self._weight.max(initial=0.0))
        seen = self._weight > floor
        image = np.zeros_like(self._sum)
        np.divide(self._sum, self._weight, out=image, where=seen)
        return image
