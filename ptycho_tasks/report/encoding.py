"""Arrays as short text for a page: few bits a value, deflated, in base64.

A value of b bits is a code: 0 where there is no value, else

    value = low + (code - 1) / (2**b - 2) * (high - low)

so that it is right to half of (high - low) / (2**b - 2). Codes of 16 bits lie as two planes, the
high bytes before the low ones, which deflates better.

Axis letters:  H, W image.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.results.pictures import Kind, centred_phase, colour_limits

LARGEST_SIDE = 1024
"""Pixels of a preview."""
Bits = Literal[8, 16]


@dataclass(frozen=True)
class Preview:
    """A complex image, as it is or as the means of square blocks of its pixels."""

    amplitude: NDArray[np.float32]
    """(H', W') mean modulus of the seen pixels of a block, NaN where there is none."""
    phase: NDArray[np.float32]
    """(H', W') phase of their mean, rad, the median of all seen pixels at zero."""
    phase_offset: float
    """What was taken off the phase to have it so, rad."""
    step: int
    """Pixels of the side of a block."""


def encode_values(values: NDArray[Any], bits: Bits) -> dict[str, Any]:
    """An array of any shape, flat in C order; what is not finite has no value."""
    is_value = np.isfinite(values)
    found = values[is_value]
    low, high = (float(found.min()), float(found.max())) if found.size else (0.0, 0.0)
    most = 2**bits - 2
    scale = most / (high - low) if high > low else 0.0
    codes = np.zeros(values.shape, dtype=np.uint16)
    codes[is_value] = np.rint((found.astype(np.float64) - low) * scale).astype(np.uint16) + 1
    planes = [codes >> 8, codes & 255] if bits == 16 else [codes]
    packed = zlib.compress(b"".join(plane.astype(np.uint8).tobytes() for plane in planes), 9)
    data = base64.b64encode(packed).decode()
    return {"bits": bits, "low": low, "high": high, "count": values.size, "data": data}


def encode_image(values: NDArray[Any], bits: Bits, kind: Kind, step: int = 1) -> dict[str, Any]:
    """A real image (H, W), with the limits that its colours have at first."""
    found = values[np.isfinite(values)]
    low, high = colour_limits(found, kind)
    shape = {"rows": values.shape[0], "columns": values.shape[1], "step": step}
    return {**encode_values(values, bits), **shape, "shown": [low, high]}


def encode_complex(
    image: NDArray[np.complex64], seen: NDArray[np.bool_], most_bytes: float
) -> dict[str, Any]:
    """A complex image as amplitude and phase, each as exact as the room allows.

    Args:
        image: (H, W).
        seen: (H, W); elsewhere there is no value.
        most_bytes: of both together, before they are deflated.
    """
    step, bits = choose_precision(image.shape, most_bytes / 2)
    preview = shrink(image, seen, step)
    return {
        "rows": image.shape[0],
        "columns": image.shape[1],
        "has_lost": bool(np.any(seen & ~np.isfinite(image))),
        "phase_offset": preview.phase_offset,
        "amplitude": encode_image(preview.amplitude, bits, "amplitude", step),
        "phase": encode_image(preview.phase, bits, "phase", step),
    }


def choose_precision(shape: tuple[int, ...], most_bytes: float) -> tuple[int, Bits]:
    """The least side of blocks, and the bits, with which an image of a shape fits some bytes."""
    pixels, side = math.prod(shape), max(shape)
    if side <= LARGEST_SIDE and 2 * pixels <= most_bytes:
        return 1, 16
    step = max(side / LARGEST_SIDE, math.sqrt(pixels / max(most_bytes, 1)))
    return min(math.ceil(step), side), 8


def shrink(image: NDArray[np.complex64], seen: NDArray[np.bool_], step: int) -> Preview:
    """The means of blocks of `step` x `step` pixels of an image (H, W)."""
    is_value = seen & np.isfinite(image)
    image = np.where(is_value, image, np.complex64(0))
    phase = centred_phase(image, is_value)
    brightest = np.unravel_index(np.argmax(np.where(is_value, np.abs(image), -1)), image.shape)
    offset = float(np.angle(image[brightest])) - float(phase[brightest]) if is_value.any() else 0.0
    turned = (np.abs(image) * np.exp(1j * phase)).astype(np.complex64)
    count = _sum_blocks(is_value.astype(np.float32), step)
    count[count == 0] = np.nan
    amplitude = _sum_blocks(np.abs(turned), step) / count
    means = _sum_blocks(turned, step)
    phase = np.where(np.isnan(count), np.nan, np.angle(means))
    return Preview(
        amplitude.astype(np.float32),
        phase.astype(np.float32),
        math.remainder(offset, 2 * math.pi),
        step,
    )


def _sum_blocks(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Sums over blocks; those at the end may be smaller."""
    sums: NDArray[Any] = values.copy()
    for axis in (0, 1) if step > 1 else ():
        sums = np.add.reduceat(sums, np.arange(0, sums.shape[axis], step), axis=axis)
    return sums
