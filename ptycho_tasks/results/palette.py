"""Colour maps, and PNG files of pictures with at most 256 colours.

Axis letters:  R, C rows and columns of a picture;  K colours.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

_MAPS = {
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "phase": "e2d9e2 9ebbc9 6785be 5e43a5 421257 2f1436 701a4a a9445c c68f78 d9ccc4 e2d9e2",
}
"""Anchors of the colours, evenly spaced."""


@cache
def list_colours(name: str, count: int) -> NDArray[np.uint8]:
    """(count, 3) red, green and blue of a map, `viridis` or the cyclic `phase`, evenly spaced."""
    text = _MAPS[name].replace(" ", "")
    anchors = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3).astype(float)
    at = np.linspace(0, len(anchors) - 1, count)
    columns = [np.interp(at, np.arange(len(anchors)), column) for column in anchors.T]
    return np.asarray(np.rint(np.stack(columns, axis=1)), np.uint8)


def encode_png(
    pixels: NDArray[np.uint8], colours: NDArray[np.uint8], software: str | None = None
) -> bytes:
    """A PNG file; equal content gives equal bytes.

    Args:
        pixels: (R, C) index into `colours`.
        colours: (K, 3) red, green, blue; K is at most 256.
        software: what it names as its maker.
    """
    R, C = pixels.shape
    lines = np.zeros((R, C + 1), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels
    maker = b"" if software is None else b"Software\0" + software.encode("latin-1")
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", C, R, 8, 3, 0, 0, 0)),
        *([(b"tEXt", maker)] if maker else []),
        (b"PLTE", colours.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_make_chunk(*part) for part in parts)


def _make_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
