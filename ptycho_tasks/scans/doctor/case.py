"""A scan as the doctor sees it: arrays that may be against the contract, and what mends them.

Axis letters:  M frames,  K frames kept,  N detector pixels along one side,  P probe modes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.physics.forward import LEAST_SHARE, share_of_light
from ptycho_tasks.scan import ScanData, release_pages
from ptycho_tasks.scans.doctor.orientation import AS_GIVEN, Orientation
from ptycho_tasks.scans.shaping import choose_window
from ptycho_tasks.system.large_arrays import row_chunks


@dataclass(frozen=True)
class Case:
    """Arrays of a scan, and how they are taken."""

    path: Path
    frames: NDArray[Any]
    """(M, N, N) real, as found; may be a memmap."""
    positions: NDArray[np.float64]
    """(M, 2) pixels (y, x), or what is taken for such."""
    probe: NDArray[np.complex64] | None
    """(P, N, N); None where the scan has none, or only an estimate."""
    keep: NDArray[np.int64]
    """(K,) frames that are taken."""
    bad: NDArray[np.bool_]
    """(N, N) pixels that are not to be trusted."""
    is_probe_estimated: bool = False
    """Whether the probe is an estimate that was made here."""
    power: float = 0.5
    """Of the frames, that gives amplitudes: 1/2 where they hold counts, else 1."""
    saturated: float = np.inf
    """Value of a frame from which on a pixel is not measured."""
    limits: NDArray[np.float64] | None = None
    """(N, N) values of a frame above which a pixel is not measured, each its own."""
    roll: tuple[int, int] = (0, 0)
    """Pixels (y, x) by which frames are rolled."""
    frame_axes: Orientation = AS_GIVEN
    """What is then done to the axes of the frames, about the zero frequency."""
    scan_index: NDArray[np.int64] | None = None
    """(M,) which scan a frame belongs to."""
    pixel_size_m: tuple[float, float] | None = None
    """(height, width) of an object pixel, where known."""
    has_metres: bool = False
    """Whether positions were converted from a unit of length by the size of a pixel."""
    mask_marks: Literal["bad", "good"] | None = None
    """What the mask seems to mark, where that is another than it is taken for."""
    cropped_from: tuple[int, int] | None = None
    """(height, width) of the frames, where these are no squares of an even size."""
    notes: tuple[str, ...] = ()
    """What was changed on reading, a sentence each."""
    doubts: tuple[str, ...] = ()
    """What was guessed on reading, a sentence each."""

    @property
    def size(self) -> int:
        """N."""
        return int(self.frames.shape[-1])

    def values(self, frames: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """(k, N, N) float64 values of some frames as found, NaN where they are not measured."""
        values = np.array(self.frames[frames], dtype=np.float64)
        values[..., self.bad] = np.nan
        values[is_marked(values, self.frames.dtype) | (values >= self.saturated)] = np.nan
        if self.limits is not None:
            values[values > self.limits] = np.nan
        return values

    def values_of(self, pixels: NDArray[np.int64]) -> NDArray[np.float64]:
        """(M, k) values of (k, 2) pixels in all frames, as found."""
        parts, (y, x) = [], pixels.T
        for part in row_chunks(self.frames.shape, self.frames.dtype):
            parts.append(np.array(self.frames[part][:, y, x], dtype=np.float64))
            release_pages(self.frames)
        values = np.concatenate(parts)
        values[is_marked(values, self.frames.dtype) | (values >= self.saturated)] = np.nan
        return values

    def amplitudes(self, frames: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """(k, N, N) float32 amplitudes, rolled; NaN where they are not measured."""
        values = np.maximum(self.values(frames), 0) ** self.power
        return self.turn(values).astype(np.float32)

    def turn(self, frames: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., N, N) frames rolled, and their axes exchanged and mirrored."""
        return self.frame_axes.apply_to_frames(np.roll(frames, self.roll, axis=(-2, -1)))

    @property
    def look(self) -> tuple[object, ...]:
        """What amplitudes are made of the frames by; equal where these are."""
        pixels = digest(self.bad), digest(self.limits)
        return (*pixels, self.power, self.saturated, self.roll, self.frame_axes)

    def cut_amplitudes(
        self, frames: NDArray[np.int64], size: int, every: int = 1
    ) -> NDArray[np.float32]:
        """(k, n, n) float32 amplitudes of some frames, to be tried.

        Args:
            frames: their indices.
            size: pixels along a side that are taken, around the zero frequency.
            every: of these, one in so many along each axis, which divides half the size. A wave
                that fits into the field of view that is left has these very amplitudes there.
        """
        window = choose_window((self.size, self.size), None, size, 1)
        amplitudes = self.amplitudes(frames)
        if not window.is_whole:
            amplitudes = window.cut(amplitudes)
        return np.ascontiguousarray(amplitudes[:, ::every, ::every])

    def place(
        self,
        frames: NDArray[np.int64],
        amplitudes: NDArray[np.float32],
        size: int,
        every: int = 1,
    ) -> ScanData:
        """A scan of what `cut_amplitudes` gives for the same arguments; there must be a probe."""
        assert self.probe is not None
        window = choose_window((self.size, self.size), None, size, 1)
        positions = self.positions[frames] * (size / self.size)
        probe = self.probe if window.is_whole else window.cut_probe(self.probe)
        if every > 1:
            inside = find_inside(size, every)
            probe = probe[:, inside, inside]
            size //= every
        is_whole = bool(np.isfinite(amplitudes).all())
        return ScanData(
            amplitudes,
            positions - positions.min(axis=0) + size,
            probe,
            bad_pixels=None if is_whole else np.asarray(np.isnan(amplitudes).all(axis=0)),
        )

    @cached_property
    def sample(self) -> NDArray[np.float64]:
        """(k, N, N) values of some of the frames that are kept, evenly spread."""
        every = max(1, len(self.keep) // 64)
        return self.values(self.keep[::every])

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """(N, N) mean counts of the sample, rolled; zero where nothing was measured."""
        counts = np.maximum(self.sample, 0) ** (2 * self.power)
        measured = np.isfinite(counts)
        total = np.where(measured, counts, 0).sum(axis=0)
        return self.turn(total / np.maximum(measured.sum(axis=0), 1))

    @cached_property
    def measured(self) -> NDArray[np.float64]:
        """(N, N) share of the sample in which a pixel was measured, rolled."""
        return self.turn(np.isfinite(self.sample).mean(axis=0))

    @property
    def is_hidden(self) -> bool:
        """Whether bad pixels hide nearly all of the probe's own light."""
        if self.probe is None or self.is_probe_estimated:
            return False
        return share_of_light(self.probe, self.measured) < LEAST_SHARE

    @property
    def places(self) -> NDArray[np.float64]:
        """(K, 2) positions of the frames that are kept."""
        return self.positions[self.keep]

    @property
    def is_spread(self) -> bool:
        """Whether there are a few places, along one axis at least."""
        return len(self.keep) >= 4 and bool(np.ptp(self.places, axis=0).any())

    def with_positions(self, positions: NDArray[np.float64]) -> Case:
        """The same with other positions."""
        return replace(self, positions=positions)


def digest(array: NDArray[Any] | None) -> bytes:
    """Equal for equal arrays of a shape and dtype; empty for none."""
    return b"" if array is None else hashlib.blake2b(array.tobytes(), digest_size=16).digest()


def find_inside(size: int, every: int) -> slice:
    """Of `size` pixels those in the middle, one in `every` of them."""
    half = size // every // 2
    return slice(size // 2 - half, size // 2 + half)


def is_marked(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Which values mark a pixel as not measured: NaN, Inf, or the largest value of a type.

    The largest 8-bit value is one that a detector counts up to.
    """
    marks = ~np.isfinite(values)
    if not values.max(initial=0.0, where=~marks) >= np.iinfo(np.int16).max:
        return marks
    tops = [2.0**32 - 1, 2.0**31 - 1, 2.0**16 - 1 if dtype.kind in "iu" else np.inf]
    for top in tops:
        marks |= values == np.float64(np.float32(top)) if dtype.kind == "f" else values == top
    if dtype.kind == "i" and dtype.itemsize == 2:
        marks |= values == 2.0**15 - 1
    return marks
