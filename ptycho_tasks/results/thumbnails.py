"""Small pictures of an object, for a terminal or a page: no matplotlib, which takes its time.

Axis letters:  H, W object grid;  R, C rows and columns of a small picture.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.results.pictures import Kind, centred_phase, colour_limits

_MAPS = {
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "phase": "e2d9e2 9ebbc9 6785be 5e43a5 421257 2f1436 701a4a a9445c c68f78 d9ccc4 e2d9e2",
}
"""Anchors of the colours, evenly spaced."""
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

    def to_png(self, *, is_clear: bool = False) -> bytes:
        """A PNG file.

        Args:
            is_clear: whether what was not seen is transparent, and not grey.
        """
        R, C = self.pixels.shape
        lines = np.zeros((R, C + 1), np.uint8)  # each begins with its filter: none
        lines[:, 1:] = self.pixels
        head = struct.pack(">IIBBBBB", C, R, 8, 3, 0, 0, 0)
        parts = (
            (b"IHDR", head),
            (b"PLTE", self.colours.tobytes()),
            *([(b"tRNS", b"\0")] if is_clear else []),
            (b"IDAT", zlib.compress(lines.tobytes(), 6)),
            (b"IEND", b""),
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(_make_chunk(*part) for part in parts)


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
    text = _MAPS[name].replace(" ", "")
    anchors = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3).astype(float)
    at = np.linspace(0, len(anchors) - 1, 255)
    columns = [np.interp(at, np.arange(len(anchors)), column) for column in anchors.T]
    colours = np.full((256, 3), _UNSEEN, np.uint8)
    colours[1:] = np.rint(np.stack(columns, axis=1))
    return colours


def _sum_blocks(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Sums over blocks of `step` x `step` pixels; those at the end may be smaller."""
    for axis in (0, 1) if step > 1 else ():
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], step), axis=axis)
    return values


def _make_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
