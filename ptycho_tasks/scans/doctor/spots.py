"""How large the spot is, and how close the frames lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DENSE, SPARSE = 0.05, 2.4
"""Side of the square that a frame has for itself, in radii of the spot: less than the first nobody
measures, and at more than the second neighbours share hardly any light."""


def spot_radius(probe: NDArray[np.complex64]) -> float:
    """Root mean square radius of a (P, N, N) probe's light, pixels; at least that of a pixel."""
    light = np.square(np.abs(probe), dtype=np.float64).sum(axis=0)
    along = np.arange(len(light))
    parts = [light.sum(axis=1 - axis) / light.sum() for axis in (0, 1)]
    squares = [(part * along**2).sum() - (part * along).sum() ** 2 for part in parts]
    return float(np.sqrt(max(sum(squares), 1 / 6)))


def find_spacing(places: NDArray[np.float64]) -> float:
    """Side of the square that a frame has for itself; along a line, the distance of neighbours."""
    spans = np.ptp(places, axis=0)
    distinct = np.unique(np.round(places / spans.max(), 6), axis=0)
    if spans.min() <= 1e-3 * spans.max():
        return float(spans.max() / max(len(distinct) - 1, 1))
    # Half a step is missing at each side of a raster.
    root = np.sqrt(len(distinct))
    return float(np.sqrt(spans.prod() / len(distinct)) * root / max(root - 1, 1))
