"""Groups of neighbouring frames, and the one place where offsets are made.

Axis letters: M frames, G groups, C frames in a group (gridsize squared), K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData, corners_and_fractions

NO_TIE = 0.4999
"""Largest sub-pixel rest, pixels: a half would be rounded one way here and another way there."""


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
        return place(scan, anchors[:, None])
    where = _coordinates(scan)
    rows = []
    for anchor, nearest in zip(anchors, neighbours(where[anchors], where[pool], C), strict=True):
        others = [frame for frame in pool[nearest] if frame != anchor][: C - 1]
        rows.append([anchor, *others])
    frames = np.array(rows, dtype=np.int64)
    if not np.all(_scan_of(scan)[frames] == _scan_of(scan)[frames[:, :1]]):
        raise ScanError(
            f"{scan.name}: one of its scans has fewer than {C} frames, too few for a group of "
            f"gridsize {gridsize}; take gridsize 1, or more frames"
        )
    return place(scan, _arranged(scan, frames, gridsize))


def covering_groups(scan: ScanData, gridsize: int) -> Groups:
    """Groups of neighbours such that every frame is in at least one; about M / 2 for gridsize 2.

    Raises:
        ScanError: too few frames for a group.
    """
    everything = np.arange(scan.frame_count)
    groups = make_groups(scan, everything, everything, gridsize)
    covered = np.zeros(scan.frame_count, dtype=bool)
    chosen = []
    # By place, so that the order of the frames does not decide which groups are taken.
    for index in np.lexsort(_coordinates(scan).T):
        if not covered[index]:
            covered[groups.frames[index]] = True
            chosen.append(index)
    return groups.take(np.array(chosen))


def place(scan: ScanData, frames: NDArray[np.int64]) -> Groups:
    """Offsets and corners of groups (G, C) of frames."""
    N = scan.size
    corners, fractions = corners_and_fractions(scan.positions, N)
    corners, fractions = corners[frames], np.clip(fractions[frames], -NO_TIE, NO_TIE)
    reference = np.rint(corners.mean(axis=1, keepdims=True))
    relative = (corners - reference + fractions).astype(np.float32)
    return Groups(frames, relative[:, :, None, :], corners)


def group_neighbours(scan: ScanData, of: Groups, among: Groups, count: int) -> NDArray[np.int64]:
    """(G, K) indices into `among` of the groups nearest to each group in `of`; K <= count."""

    def centres(groups: Groups) -> NDArray[np.float64]:
        return np.asarray(_coordinates(scan)[groups.frames].mean(axis=1))

    return neighbours(centres(of), centres(among), min(count, len(among)))


def neighbours(
    of: NDArray[np.float64], among: NDArray[np.float64], count: int
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
    _, found = cKDTree(among).query(of, k=count)
    return np.asarray(found, dtype=np.int64).reshape(len(of), count)


def _coordinates(scan: ScanData) -> NDArray[np.float64]:
    """(M, 3): y, x, and a third axis that keeps different scans far apart."""
    reach = np.ptp(scan.positions, axis=0).sum() + 1
    return np.column_stack([scan.positions, 10 * reach * _scan_of(scan)])


def _scan_of(scan: ScanData) -> NDArray[np.int64]:
    """(M,) which scan a frame belongs to; an index that never repeats is a mere frame number."""
    index = scan.scan_index
    if index is None:
        return np.zeros(scan.frame_count, dtype=np.int64)
    values, inverse = np.unique(index, return_inverse=True)
    return inverse if len(values) < len(index) else np.zeros_like(inverse)


def _arranged(scan: ScanData, frames: NDArray[np.int64], gridsize: int) -> NDArray[np.int64]:
    """Order each group's frames: rows by y, within a row by x."""
    y, x = scan.positions[frames].transpose(2, 0, 1)
    by_row = np.take_along_axis(frames, np.argsort(y, axis=1, kind="stable"), axis=1)
    x = scan.positions[by_row][..., 1].reshape(len(frames), gridsize, gridsize)
    rows = by_row.reshape(len(frames), gridsize, gridsize)
    order = np.argsort(x, axis=2, kind="stable")
    return np.take_along_axis(rows, order, axis=2).reshape(len(frames), gridsize**2)
