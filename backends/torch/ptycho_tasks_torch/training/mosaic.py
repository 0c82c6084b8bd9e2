"""The object as a training sees it: that of the blocks which it is validated with.

It costs nothing to have, since validation finds these objects anyway, and it draws no random
numbers: a training that is watched ends at the same bytes.

Axis letters: B blocks, S, T rows and columns of a block's canvas, H, W object rows and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_MOST_PIXELS = 1 << 22
"""Of all blocks that are kept; of more, every second one is."""


class Mosaic:
    """Objects of blocks that lie beside and upon each other."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count, self._every = 0, 1
        self._is_whole = False

    def add(self, origins: Tensor, objects: Tensor, light: Tensor) -> None:
        """Keep the objects of some blocks; after `finish`, in place of those before.

        Args:
            origins: (B, 2) int64 of the canvases on the object grid.
            objects: (B, S, T) complex64.
            light: (B, S, T) float32.
        """
        if self._is_whole:
            self._batches, self._count, self._is_whole = [], 0, False
        if self._count % self._every == 0:
            self._batches.append((origins.detach(), objects.detach(), light.detach()))
        self._count += 1
        while sum(batch[1].numel() for batch in self._batches) > _MOST_PIXELS > objects.numel():
            self._batches, self._every = self._batches[::2], 2 * self._every

    def finish(self) -> None:
        """All blocks of an epoch are there."""
        self._is_whole = True

    def lay(self) -> NDArray[np.complex64]:
        """(H, W) complex64 mean of the blocks, with their light as weight, each turned to agree
        with those before it; zero where there is none."""
        origins, objects, lights = (
            [array.cpu().numpy() for batch in part for array in batch]
            for part in zip(*self._batches, strict=True)
        )
        first = np.min(origins, axis=0)
        sides = [corner - first + one.shape for corner, one in zip(origins, objects, strict=True)]
        total = np.zeros(np.max(sides, axis=0), np.complex64)
        weight = np.zeros(total.shape, np.float32)
        for (top, left), one, light in zip(np.array(origins) - first, objects, lights, strict=True):
            place = slice(top, top + one.shape[0]), slice(left, left + one.shape[1])
            product = np.vdot(one * light, total[place])
            turn = product / abs(product) if product else 1
            total[place] += (turn * one * light).astype(np.complex64)
            weight[place] += light
        is_lit = weight > 1e-2 * weight.max()
        mean = np.where(is_lit, total / np.where(is_lit, weight, 1), 0).astype(np.complex64)
        rows, columns = (np.flatnonzero(is_lit.any(axis=axis)) for axis in (1, 0))
        return np.asarray(mean[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
