"""Frames and positions as settings ask for them: the detector around its zero frequency, binned,
and positions turned.

A smaller part of the detector has the same field of view in fewer, larger pixels of the object;
binned pixels have a smaller field of view in the same ones. So the probe is cut to the same
frequencies, or to the same field, and positions in pixels are scaled.

Axis letters:  M, m frames,  H, W rows and columns of the detector,  n pixels along a side after all
that,  P probe modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.options import OrientationOptions
from ptycho_tasks.scan import evenly_spaced
from ptycho_tasks.scans.bad_pixels import Mark, find_marks
from ptycho_tasks.scans.raw_scan import Array

_SAMPLE = 64
_DARK = 0.05
"""Of the brightest pixel: what is darker has no say in where the centre lies."""


@dataclass(frozen=True)
class Window:
    """A square part of the detector, which may reach beyond it."""

    frame: tuple[int, int]
    """(H, W)."""
    corner: tuple[int, int]
    """(row, column) of the first pixel; may be negative."""
    side: int
    """Pixels along a side before they are binned."""
    bin: int = 1
    from_corner: bool = False
    """Whether the zero frequency of (H, W) lies in the corner, and is moved to the middle first."""

    @property
    def size(self) -> int:
        """n."""
        return self.side // self.bin

    @property
    def is_whole(self) -> bool:
        """Whether nothing changes."""
        return (
            self.frame == (self.side, self.side)
            and self.corner == (0, 0)
            and (self.bin == 1 and not self.from_corner)
        )

    def cut(self, frames: NDArray[Any]) -> NDArray[Any]:
        """(m, side, side) of (m, H, W); zero beyond the detector."""
        out = np.zeros((len(frames), self.side, self.side), frames.dtype)
        (top, left), (height, width) = self.corner, self.frame
        rows = slice(max(0, top), max(0, min(height, top + self.side)))
        columns = slice(max(0, left), max(0, min(width, left + self.side)))
        moved = np.fft.fftshift(frames, axes=(1, 2)) if self.from_corner else frames
        part = moved[:, rows, columns]
        y, x = max(0, -top), max(0, -left)
        out[:, y : y + part.shape[1], x : x + part.shape[2]] = part
        return out

    def mask_outside(self) -> NDArray[np.bool_]:
        """(n, n) pixels of which a part lies beyond the detector."""
        outside = self.cut_masks(np.zeros((1, *self.frame), np.bool_))
        return np.asarray(outside[0], dtype=np.bool_)

    def cut_masks(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(m, n, n) of (m, H, W): a pixel is bad where one of those that it is made of is, or lies
        beyond the detector."""
        good = self.blocks(self.cut(~masks)).min(axis=(2, 4))
        return np.asarray(~good, dtype=np.bool_)

    def blocks(self, frames: NDArray[Any]) -> NDArray[Any]:
        """(m, n, bin, n, bin) of (m, side, side)."""
        return frames.reshape(len(frames), self.size, self.bin, self.size, self.bin)

    def cut_probe(self, probe: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """(P, n, n) of (P, N, N), where N pixels had the detector's field of view."""
        wave = np.fft.fftshift(np.fft.fft2(_to_corner(probe), norm="ortho"), axes=(1, 2))
        wave = cut_centre(wave, self.side)
        near = np.fft.ifft2(_to_corner(wave), norm="ortho")
        near = np.fft.fftshift(near, axes=(1, 2))
        return cut_centre(near, self.size).astype(np.complex64)


def choose_window(
    frame: tuple[int, int], centre: tuple[int, int] | None, crop: int | None, bin_: int
) -> Window:
    """The square around the zero frequency.

    Args:
        frame: (H, W).
        centre: (row, column) of the zero frequency; None is the middle.
        crop: pixels along a side; None takes as many as the frame has.
        bin_: pixels along a side that are read as one.

    Raises:
        ValueError: the detector has no such part; says why.
    """
    height, width = frame
    side = crop or min(frame)
    y, x = centre or (height // 2, width // 2)
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"no pixel ({y}, {x}), as source.centre says")
    if side > min(frame):
        raise ValueError(f"fewer than {side} pixels along a side, as source.crop asks for")
    if side % (2 * bin_):
        raise ValueError(f"{side} pixels along a side, which source.bin {bin_} does not divide")
    return Window(frame, (y - side // 2, x - side // 2), side, bin_)


def _to_corner(stack: NDArray[Any]) -> NDArray[Any]:
    return np.fft.ifftshift(stack, axes=(1, 2))


def cut_centre(stack: NDArray[Any], size: int) -> NDArray[Any]:
    """(m, size, size) around the pixel N // 2 of (m, N, N); zero beyond."""
    corner = stack.shape[-1] // 2 - size // 2
    return Window((stack.shape[-2], stack.shape[-1]), (corner, corner), size).cut(stack)


class ShapedFrames:
    """Frames of which a window is taken, and binned, when they are read."""

    def __init__(self, array: Array, axis: int, window: Window, *, are_counts: bool) -> None:
        """Take frames.

        Args:
            array: (M, H, W), or (H, W, M).
            axis: 0 or -1, which numbers the frames.
            window: what is taken of them.
            are_counts: whether binned pixels are sums, or roots of sums of squares.
        """
        self._array, self._axis, self._window = array, axis, window
        self._are_counts = are_counts
        self._marks: list[tuple[Mark, Any]] = []
        self._clips = False

    @property
    def has_bins(self) -> bool:
        """Whether several pixels are read as one."""
        return self._window.bin > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, n, n), or (n, n, M)."""
        count, n = self._array.shape[self._axis], self._window.size
        return (count, n, n) if self._axis == 0 else (n, n, count)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an entry: of sums of integers one that holds them."""
        dtype = self._array.dtype
        wide = {"i": np.dtype(np.int64), "u": np.dtype(np.uint64)}
        return dtype if self._window.bin == 1 else wide.get(dtype.kind, dtype)

    def __getitem__(self, item: Any) -> NDArray[Any]:
        """Some of the frames, in memory."""
        found = np.asarray(self._array[item])
        frames = found if self._axis == 0 else np.moveaxis(found, -1, 0)
        out = self._binned(self._window.cut(frames))
        return out if self._axis == 0 else np.moveaxis(out, 0, -1)

    def without_bins(self) -> ShapedFrames:
        """The same window of them, in the pixels of the detector."""
        window = replace(self._window, bin=1)
        return ShapedFrames(self._array, self._axis, window, are_counts=self._are_counts)

    def mark_bins(self, marks: Sequence[Mark], *, clips: bool) -> list[Mark]:
        """Have bins marked of which a pixel is bad: pixels are told by their values, which are
        lost in sums.

        Args:
            marks: values of bad pixels.
            clips: whether other negative values count as zero; else they stay, instead of a sum.

        Returns:
            The values of the bins, one for each mark.
        """
        largest = np.finfo(self.dtype).max if self.dtype.kind == "f" else np.iinfo(self.dtype).max
        self._clips = clips
        self._marks = [
            (mark, self.dtype.type(largest / 2**k if self.dtype.kind == "f" else largest - k))
            for k, mark in enumerate(marks)
        ]
        return [Mark(mark.reason, value, value) for mark, value in self._marks]

    def _binned(self, frames: NDArray[Any]) -> NDArray[Any]:
        if self._window.bin == 1:
            return frames
        blocks = self._window.blocks(frames)
        found = [(blocks >= mark.low) & (blocks <= mark.high) for mark, _ in self._marks]
        for one in found:
            blocks = np.where(one, frames.dtype.type(0), blocks)
        if self._clips:
            blocks = np.maximum(blocks, frames.dtype.type(0))
        out = self._sums(blocks)
        if (blocks < 0).any():
            least = blocks.min(axis=(2, 4))
            out = np.where(least < 0, least, out).astype(self.dtype)
        for one, (_, value) in reversed([*zip(found, self._marks, strict=True)]):
            out[one.any(axis=(2, 4))] = value
        return out

    def _sums(self, blocks: NDArray[Any]) -> NDArray[Any]:
        """(m, n, n) counts, or amplitudes, of (m, n, bin, n, bin)."""
        if self._are_counts:
            return np.asarray(blocks.sum(axis=(2, 4), dtype=self.dtype))
        root = np.sqrt(np.square(blocks, dtype=np.float64).sum(axis=(2, 4)))
        return np.asarray(root, dtype=self.dtype)


def _take(array: Array, axis: int, place: np.int64) -> NDArray[Any]:
    return np.asarray(array[int(place)] if axis == 0 else array[:, :, int(place)])


def find_centre(array: Array, axis: int, *, are_counts: bool) -> tuple[int, int]:
    """(row, column) of the zero frequency: the centre of the light in the mean frame.

    Args:
        array: (M, H, W), or (H, W, M).
        axis: 0 or -1, which numbers the frames.
        are_counts: whether it holds counts, or their square roots.
    """
    from scipy.ndimage import median_filter  # costs more to import than a scan to read

    total = np.zeros(array.shape[1:] if axis == 0 else array.shape[:2])
    places = evenly_spaced(array.shape[axis], min(_SAMPLE, array.shape[axis]))
    few = np.stack([_take(array, axis, place) for place in places[:: max(1, len(places) // 8)]])
    marks = [*find_marks(few, holds_counts=are_counts, takes_negative=False)]
    for place in places:
        frame = _take(array, axis, place)
        light = frame.astype(np.float64)
        marked = ~(light >= 0) | ~np.isfinite(light)
        for mark in marks:
            marked |= (frame >= mark.low) & (frame <= mark.high)
        light[marked] = 0.0
        total += light if are_counts else light**2
    smooth = median_filter(total, 3)  # of hot pixels nothing is left
    weights = np.clip(smooth - _DARK * smooth.max(), 0.0, None)
    if not weights.any():
        return total.shape[0] // 2, total.shape[1] // 2
    rows, columns = np.indices(total.shape)
    return (
        int(np.rint((weights * rows).sum() / weights.sum())),
        int(np.rint((weights * columns).sum() / weights.sum())),
    )


def orient(
    positions: NDArray[np.float64], orientation: OrientationOptions, among: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Positions with their axes exchanged, then mirrored, then turned from x (right) to y (down),
    then scaled.

    Args:
        positions: (m, 2) pixels, (y, x).
        orientation: what is done.
        among: (M, 2) those of the scan: mirrored within their range, turned and scaled about
            their mean.

    Returns:
        (m, 2).
    """
    if orientation == OrientationOptions():
        return positions
    if orientation.swap:
        positions, among = positions[:, ::-1], among[:, ::-1]
    mirrored = among.min(axis=0) + among.max(axis=0) - positions
    flips = np.array([orientation.flip_y, orientation.flip_x])
    middle = among.mean(axis=0)
    if flips.any():
        middle = np.where(flips, among.min(axis=0) + among.max(axis=0) - middle, middle)
    y, x = (np.where(flips, mirrored, positions) - middle).T
    angle = np.deg2rad(orientation.rotate_deg)
    turned = np.stack(
        [np.sin(angle) * x + np.cos(angle) * y, np.cos(angle) * x - np.sin(angle) * y]
    )
    scales = np.array([orientation.scale_y, orientation.scale_x])
    return np.ascontiguousarray(turned.T * scales + middle)
