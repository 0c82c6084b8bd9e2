"""The arrays of one ptychographic scan.

Axis letters used in names and docstrings:

    M  frames            N  detector pixels along one side (even)
    P  probe modes       H, W  rows and columns of the object grid
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.system.files import FileStamp
from ptycho_tasks.system.large_arrays import Rows, forget_pages, stack_parts


@dataclass(frozen=True)
class Canvas:
    """A window of the object grid.

    `origin` is the (row, column) on the scan's object grid of the window's pixel [0, 0];
    `shape` is its (rows, columns).
    """

    origin: tuple[int, int]
    shape: tuple[int, int]


@dataclass(frozen=True)
class ScanData:
    """One validated scan, in canonical axis order and dtypes.

    A position (y, x) is the index on the object grid, possibly fractional, on which the
    patch's pixel (N//2, N//2) lies.
    """

    diffraction: NDArray[np.float32]
    """(M, N, N) amplitude, sqrt of counts, zero frequency at index N//2; may be a memmap. NaN where
    a pixel was not measured, in every frame or in one.

    Who reads a large one batch by batch calls `release_pages` between them."""
    positions: NDArray[np.float64]
    """(M, 2) pixels on the object grid; column 0 is y (row), column 1 is x (column)."""
    probe: NDArray[np.complex64]
    """(P, N, N) incoherent probe modes; |probe|^2 in counts where the scale is known."""
    bad_pixels: NDArray[np.bool_] | None = None
    """(N, N) the pixels that are bad in every frame: all false where pixels are bad in some frames
    only, None where every pixel of every frame was measured."""
    object: NDArray[np.complex64] | None = None
    """(H, W) object guess; the ground truth where the scan is simulated."""
    scan_index: NDArray[np.int64] | None = None
    """(M,) which scan a frame belongs to; None means one scan."""
    start_positions: NDArray[np.float64] | None = None
    """(M, 2) nominal positions, like `positions`."""
    pixel_size_m: tuple[float, float] | None = None
    """(height, width) in metres of an object pixel, where known."""
    energy_ev: float = 0.0
    """Photon energy in eV; zero where the scan does not say."""
    distance_m: float = 0.0
    """Distance from object to detector in metres; zero where the scan does not say."""
    exposure_s: float = 0.0
    """Exposure of one frame in seconds; zero where the scan does not say."""
    name: str = "scan"
    """Name for messages and for the product: the file's stem."""
    is_probe_estimated: bool = False
    """Whether the probe is no more than a first estimate from the frames; see `raw_scan`."""
    notes: tuple[str, ...] = field(default=())
    """What was changed on reading (axis order, dtype, sqrt), one sentence each."""
    doubts: tuple[str, ...] = field(default=())
    """What looked doubtful on reading, one sentence each."""
    files: Mapping[Path, FileStamp] = field(default_factory=dict)
    """Further files that hold a part of the scan, and what they were when they were opened."""

    @property
    def frame_count(self) -> int:
        """M, the number of frames."""
        return int(self.diffraction.shape[0])

    @property
    def size(self) -> int:
        """N, the number of detector pixels along one side."""
        return int(self.diffraction.shape[-1])


def scan_numbers(scan: ScanData) -> NDArray[np.int64]:
    """(S,) sorted numbers of the scans that the frames belong to; at least one."""
    if scan.scan_index is None:
        return np.zeros(1, dtype=np.int64)
    values = np.unique(scan.scan_index)
    # An index that never repeats is a mere frame number.
    return values if len(values) < scan.frame_count else np.zeros(1, dtype=np.int64)


def corners_and_fractions(
    positions: NDArray[np.float64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Split positions into the patch's top-left pixel and the sub-pixel rest.

    The only place where a position becomes array indices. With `corner, fraction` the
    position is `corner + size//2 + fraction` and every fraction lies in [-0.5, 0.5].

    Args:
        positions: (M, 2) float64 positions (y, x) in pixels.
        size: N.

    Returns:
        corners (M, 2) int64 and fractions (M, 2) float64, both (y, x).
    """
    whole = np.rint(positions)
    return whole.astype(np.int64) - size // 2, positions - whole


def canvas_of(positions: NDArray[np.float64], size: int) -> Canvas:
    """The smallest window of the object grid that holds every patch of a scan."""
    corners, _ = corners_and_fractions(positions, size)
    low, high = corners.min(axis=0), corners.max(axis=0) + size
    return Canvas(
        origin=(int(low[0]), int(low[1])),
        shape=(int(high[0] - low[0]), int(high[1] - low[1])),
    )


def canvas_sides(scan: ScanData) -> tuple[float, float]:
    """(rows, columns) of the smallest canvas of a scan, as floats: none is too large to say."""
    rows, columns = np.ptp(np.rint(scan.positions), axis=0) + scan.size
    return float(rows), float(columns)


def evenly_spaced(total: int, count: int) -> NDArray[np.int64]:
    """(count,) int64 indices below `total`, from the first to the last; count <= total."""
    return np.arange(count, dtype=np.int64) * (total - 1) // max(count - 1, 1)


def release_pages(array: Any) -> None:
    """Let go of what was read of a mapped file; what is asked for again is read again.

    The system counts every page that was read as memory of this process until something else
    needs it. Called now and then, a pass over a file keeps a few of them at a time. Without
    effect on an array that is not a read-only memory map, or a part of one.
    """
    forget_pages(array)


def take_frames(scan: ScanData, indices: NDArray[np.int64]) -> ScanData:
    """The scan with (K,) frames: every per-frame array is taken by the same indices."""
    frames = Rows(scan.diffraction, np.arange(scan.frame_count)[indices])
    return replace(
        scan,
        diffraction=stack_parts(frames.shape, frames.dtype, frames.chunks()),
        positions=scan.positions[indices],
        scan_index=None if scan.scan_index is None else scan.scan_index[indices],
        start_positions=None if scan.start_positions is None else scan.start_positions[indices],
    )
