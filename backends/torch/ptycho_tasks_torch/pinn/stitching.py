"""Stitch patches to one object: align their phases, then average with the light as weight.

The frames of one group do not fix its global phase. Patches that are predicted apart disagree in
it, and a plain mean would lose the lowest frequencies of the phase. Where two patches overlap,
their relative phase is known: the angular synchronisation of Singer (Appl. Comput. Harmon. Anal.
30, 20, 2011).

Axis letters: G groups, C frames in a group, N detector pixels along one side, H, W object rows
and columns.
"""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scan import Canvas, release_pages
from ptycho_tasks.system.files import report_write_errors

SWEEPS = 30
"""How often every window is turned; more change little on a scan of some thousand frames."""
OVERSHOOT = 1.7
"""Turns are this much larger than the neighbours ask for (successive over-relaxation)."""

Extent = tuple[slice, slice]
"""Rows and columns of the object."""
Window = tuple[slice, slice, NDArray[np.complex64]]
"""Rows and columns of the object, and a group's patches times light, summed."""


class Stitcher:
    """Collects patches; keeps one window a group, about N x N complex64, in a temporary file.

    Raises:
        FileWriteError: the folder of temporary files is full.
    """

    def __init__(self, canvas: Canvas) -> None:
        """An empty object."""
        self.canvas = canvas
        self._extents: list[Extent] = []
        self._windows = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        weakref.finalize(self, self._windows.close)
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
        for place, group, weights in zip(places, patches * light, light, strict=True):
            low, high = place.min(axis=0), place.max(axis=0) + N
            window = np.zeros(high - low, dtype=np.complex64)
            for (y, x), patch, weight in zip(place, group, weights, strict=True):
                window[y - low[0] :, x - low[1] :][:N, :N] += patch
                self._weight[y : y + N, x : x + N] += weight
            rows, columns = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
            self._extents.append((rows, columns))
            with report_write_errors(Path(tempfile.gettempdir())):
                self._windows.write(window.tobytes())

    def object(self) -> NDArray[np.complex64]:
        """(H, W) complex64; zero where no patch saw anything."""
        windows = self._map_windows()
        turns = align_phases(windows, self.canvas.shape)
        total = _sum_windows(windows, turns, self.canvas.shape)
        # Below the noise of single precision a quotient is no information.
        floor = 1e-6 * float(self._weight.max(initial=0.0))
        seen = self._weight > floor
        image = np.zeros_like(total)
        np.divide(total, self._weight, out=image, where=seen)
        return image

    def _map_windows(self) -> list[Window]:
        """The windows from top to bottom, whatever the order of the frames."""
        with report_write_errors(Path(tempfile.gettempdir())):
            self._windows.flush()
        values = np.memmap(self._windows, np.complex64, "r")
        windows: list[Window] = []
        end = 0
        for rows, columns in self._extents:
            shape = rows.stop - rows.start, columns.stop - columns.start
            start, end = end, end + shape[0] * shape[1]
            windows.append((rows, columns, values[start:end].reshape(shape)))
        return sorted(windows, key=lambda w: (w[0].start, w[1].start))


def align_phases(windows: list[Window], shape: tuple[int, int]) -> NDArray[np.complex64]:
    """Find the phase of every window that makes it agree with the others; the mean phase stays.

    Args:
        windows: as in `Stitcher`, inside `shape`.
        shape: (H, W).

    Returns:
        (G,) complex64 factors of modulus 1.
    """
    turns = np.ones(len(windows), dtype=np.complex64)
    before = _sum_windows(windows, turns, shape)
    total = before.copy()
    for _ in range(SWEEPS):
        for index, (rows, columns, window) in enumerate(windows):
            sum_here, own = total[rows, columns], turns[index] * window
            release_pages(window)
            # Zero, and no turn, where no other window overlaps.
            others = np.vdot(own, sum_here - own)
            turn = np.complex64(np.exp(1j * OVERSHOOT * np.angle(others)))
            sum_here += (turn - 1) * own
            turns[index] *= turn
    back = np.complex64(np.exp(-1j * np.angle(np.vdot(before, total))))
    return np.asarray(back * turns)


def _sum_windows(
    windows: list[Window], turns: NDArray[np.complex64], shape: tuple[int, int]
) -> NDArray[np.complex64]:
    total = np.zeros(shape, dtype=np.complex64)
    for (rows, columns, window), turn in zip(windows, turns, strict=True):
        total[rows, columns] += turn * window
        release_pages(window)
    return total
