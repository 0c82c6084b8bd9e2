"""Groups of neighbouring frames. All offsets of frames inside a group are computed here.

Axis letters: M frames, G groups, C frames in a group (gridsize squared), K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData, corners_and_fractions

NO_TIE = 0.4999
"""Largest sub-pixel part of a position, pixels: a half could be rounded up here and down there."""


@dataclass(frozen=True)
class Groups:
    """Groups of frames on the object grid; `take` selects some of them."""

    frames: NDArray[np.int64]
    """(G, C) frame of each channel; channel c lies at row c // gridsize, column c % gridsize."""
    relative: NDArray[np.float32]
    """(G, C, 1, 2) positions (y, x) relative to the group's `reference`, pixels."""
    corners: NDArray[np.int64]
    """(G, C, 2) top-left pixel (row, column) of each patch on the object grid."""

    def __len__(self) -> int:
        """G."""
        return len(self.frames)

    def take(self, which: NDArray[np.int64]) -> Groups:
        """Some of the groups."""
        return Groups(self.frames[which], self.relative[which], self.corners[which])


def make_groups(
    scan: ScanData, anchors: NDArray[np.int64], pool: NDArray[np.int64], gridsize: int
) -> Groups:
    """One group around each anchor frame: itself and its nearest neighbours in the pool.

    Args:
        scan: positions and scan index; neighbours are of the same scan.
        anchors: (G,) frames.
        pool: frames that may be neighbours.
        gridsize: C = gridsize squared.

    Raises:
        ScanError: too few frames for a group.
    """
    C = gridsize**2
    if C == 1:
        return locate_groups(scan, anchors[:, None])
    points = _list_points(scan)
    rows = []
    for anchor, nearest in zip(
        anchors, find_nearest(points[anchors], points[pool], C), strict=True
    ):
        others = [frame for frame in pool[nearest] if frame != anchor][: C - 1]
        rows.append([anchor, *others])
    frames = np.array(rows, dtype=np.int64)
    if not np.all(_scan_numbers(scan)[frames] == _scan_numbers(scan)[frames[:, :1]]):
        raise ScanError(
            f"{scan.name}: one of its scans has fewer than {C} frames, too few for a group of "
            f"gridsize {gridsize}; take gridsize 1, or more frames"
        )
    return locate_groups(scan, _sort_in_rows(scan, frames, gridsize))


def cover_frames(scan: ScanData, gridsize: int) -> Groups:
    """Choose groups of neighbours so that every frame is in one; about M / 2 for gridsize 2.

    Raises:
        ScanError: too few frames for a group.
    """
    frames = np.arange(scan.frame_count)
    groups = make_groups(scan, frames, frames, gridsize)
    is_covered = np.zeros(scan.frame_count, dtype=bool)
    chosen = []
    # By position, so that the order of the frames does not decide which groups are taken.
    for index in np.lexsort(_list_points(scan).T):
        if not is_covered[index]:
            is_covered[groups.frames[index]] = True
            chosen.append(index)
    return groups.take(np.array(chosen))


def locate_groups(scan: ScanData, frames: NDArray[np.int64]) -> Groups:
    """The offsets and corners of (G, C) frames in groups."""
    N = scan.size
    corners, fractions = corners_and_fractions(scan.positions, N)
    corners, fractions = corners[frames], np.clip(fractions[frames], -NO_TIE, NO_TIE)
    reference = np.rint(corners.mean(axis=1, keepdims=True))
    relative = (corners - reference + fractions).astype(np.float32)
    return Groups(frames, relative[:, :, None, :], corners)


def find_nearest_groups(
    scan: ScanData, groups: Groups, among: Groups, count: int
) -> NDArray[np.int64]:
    """(G, K) indices of the groups in `among` that are nearest to each group; K <= count."""

    points = _list_points(scan)
    centres, others = (points[some.frames].mean(axis=1) for some in (groups, among))
    return find_nearest(centres, others, min(count, len(among)))


def find_nearest(
    points: NDArray[np.float64], among: NDArray[np.float64], count: int
) -> NDArray[np.int64]:
    """(G, K) indices of the `count` points of `among` nearest to each point, nearest first.

    Raises:
        ScanError: there are fewer points than asked for.
    """
    from scipy.spatial import cKDTree

    if count > len(among):
        raise ScanError(
            f"training.neighbours: {count} neighbours are asked for, but only {len(among)} frames "
            "are there; lower it (and training.batch_size), or take more frames into the fixture"
        )
    _, indices = cKDTree(among).query(points, k=count)
    return np.asarray(indices, dtype=np.int64).reshape(len(points), count)


def _list_points(scan: ScanData) -> NDArray[np.float64]:
    """(M, 3): y, x, and a third axis that keeps different scans far apart."""
    reach = np.ptp(scan.positions, axis=0).sum() + 1
    return np.column_stack([scan.positions, 10 * reach * _scan_numbers(scan)])


def _scan_numbers(scan: ScanData) -> NDArray[np.int64]:
    """(M,) the scan that each frame belongs to; an index that never repeats only numbers frames."""
    index = scan.scan_index
    if index is None:
        return np.zeros(scan.frame_count, dtype=np.int64)
    values, inverse = np.unique(index, return_inverse=True)
    return inverse if len(values) < len(index) else np.zeros_like(inverse)


def _sort_in_rows(scan: ScanData, frames: NDArray[np.int64], gridsize: int) -> NDArray[np.int64]:
    """Order each group's frames: rows by y, within a row by x."""
    y, x = scan.positions[frames].transpose(2, 0, 1)
    by_row = np.take_along_axis(frames, np.argsort(y, axis=1, kind="stable"), axis=1)
    x = scan.positions[by_row][..., 1].reshape(len(frames), gridsize, gridsize)
    rows = by_row.reshape(len(frames), gridsize, gridsize)
    order = np.argsort(x, axis=2, kind="stable")
    return np.take_along_axis(rows, order, axis=2).reshape(len(frames), gridsize**2)
