"""Small pictures of an object, for a terminal or a page.

Axis letters:  H, W object grid;  R, C rows and columns of a small picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.results.palette import encode_png, list_colours
from ptycho_tasks.results.pictures import Kind, centred_phase, colour_limits

_UNSEEN = 160
"""Grey of what was not seen, which has index 0."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture of few pixels and at most 256 colours."""

    pixels: NDArray[np.uint8]
    """(R, C) index into `colours`."""
    colours: NDArray[np.uint8]
    """(256, 3) red, green, blue."""
    low: float
    """The value of the first colour that stands for one: amplitude, or phase in rad."""
    high: float
    """That of the last."""

    def to_png(self) -> bytes:
        """A PNG file."""
        return encode_png(self.pixels, self.colours)


def make_thumbnails(
    image: NDArray[np.complex64], seen: NDArray[np.bool_], side: int
) -> dict[Kind, Thumbnail]:
    """Amplitude and phase of an object (H, W), each of its pixels the mean of a square block.

    Args:
        image: (H, W).
        seen: (H, W); the rest is grey.
        side: most pixels of a side.
    """
    seen = seen & np.isfinite(image)
    step = -(-max(image.shape) // side)
    count = _sum_blocks(seen.astype(np.float32), step)
    lit = count > 0
    amplitude = _sum_blocks(np.abs(np.where(seen, image, 0)), step) / np.maximum(count, 1)
    means = _sum_blocks(np.where(seen, image, 0), step).astype(np.complex64)
    return {
        "amplitude": _colour(amplitude, lit, "amplitude"),
        "phase": _colour(centred_phase(means, lit), lit, "phase"),
    }


def _colour(values: NDArray[np.floating[Any]], lit: NDArray[np.bool_], kind: Kind) -> Thumbnail:
    low, high = colour_limits(values[lit].astype(np.float32), kind)
    is_around = kind == "phase" and high - low >= 2 * np.pi
    share = np.clip((values - low) / (high - low), 0, 1)
    pixels = np.where(lit, 1 + np.rint(254 * share), 0).astype(np.uint8)
    return Thumbnail(pixels, _list_colours("phase" if is_around else "viridis"), low, high)


@cache
def _list_colours(name: str) -> NDArray[np.uint8]:
    return np.concatenate([np.full((1, 3), _UNSEEN, np.uint8), list_colours(name, 255)])


def _sum_blocks(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Sums over blocks of `step` x `step` pixels; those at the end may be smaller."""
    for axis in (0, 1) if step > 1 else ():
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], step), axis=axis)
    return values
