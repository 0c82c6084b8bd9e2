"""Positions of frames, matched by number.

Axis letters:  M frames,  K frames with a position,  L positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FEW = 0.05
"""Of the frames, or of the positions: what lacks its partner and is no more than that was lost."""


class Places(NamedTuple):
    """Where frames were taken."""

    rows: NDArray[np.int64]
    """(K,) sorted frames with a position."""
    x_m: NDArray[np.float64]
    """(K,) metres."""
    y_m: NDArray[np.float64]
    """(K,) metres."""
    spare: int
    """How many numbered positions have no frame."""

    def is_plausible(self, count: int) -> bool:
        """Whether the numbers mean the same of frames, M of them, and positions.

        A detector may drop frames, and a stage may be read where none is taken; but where many of
        either lack a partner, they were numbered in different ways.
        """
        lacking = count - len(self.rows)
        both = len(self.rows) + self.spare
        return len(self.rows) > 0 and (lacking <= _FEW * count or self.spare <= _FEW * both)


def match_positions(
    frames: NDArray[np.int64],
    numbers: NDArray[np.int64],
    x_m: NDArray[np.float64],
    y_m: NDArray[np.float64],
) -> Places:
    """The position of each frame whose number has one; those of one number are averaged.

    Args:
        frames: (M,) numbers of the frames.
        numbers: (L,) numbers of the positions.
        x_m: (L,) metres.
        y_m: (L,) metres.
    """
    unique, inverse = np.unique(numbers, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(unique))
    rows = np.flatnonzero(np.isin(frames, unique))
    places = np.searchsorted(unique, frames[rows])
    x, y = (
        (np.bincount(inverse, weights=values, minlength=len(unique)) / counts)[places]
        for values in (x_m, y_m)
    )
    return Places(rows, x, y, len(unique) - len(np.unique(places)))
