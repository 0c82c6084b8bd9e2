"""Which pixels of frames were not measured: by a mask, by marks among the values, by their looks.

Of frames in canonical form a bad pixel is NaN, in every frame or in one.

Axis letters:  M frames,  S frames of a sample,  N detector pixels along one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError, one_line

FROM_FILE, ONLY_MARKED, SEARCH, IGNORE = "file", "marked", "auto", "ignore"
"""What `source.bad_pixels` may say, besides a key or a file."""
CXI_GOOD_BITS = 0x20 | 0x800 | 0x2000 | 0x4000 | 0x10000
"""Bits of a CXI mask that say nothing bad: in a peak's mask, artefact corrected, a peak for a
hit finder, background corrected, has signal. (CXI file format, version 1.60, pixel masks; the
others stand for invalid, saturated, hot, dead, shadowed, to be ignored, missing, noisy, ...)"""
MAXIMA = tuple(2**bits - 1 for bits in (16, 20, 31, 32))
"""Values that detectors write where they measure nothing, also into wider types."""
NEGATIVE_MARKS = (-1, -2)
"""The same, of detectors that write signed numbers: a gap, a defect."""
SAMPLED = 16
"""Frames of which the marks are told."""
HOT = 10.0
"""Times its neighbours' counts: what no far field does. The support of a probe is at most some half
of the frame, so that neighbouring pixels have much in common."""
WARM = 3.0
"""Times its brightest neighbour's counts, over all frames: a spot that is smaller than the field of
view has no peak in the far field that its neighbours do not share, but for the direct beam."""
LEAST_FRAMES, FEWEST = 8, 3
"""With fewer, nothing is said by their looks; and where they are searched, only of pixels that are
brighter in each frame than their neighbours in any."""
HIT, SHARE_HIT = 30.0, 0.005
"""Photons that a ray leaves in a pixel of a frame, at least; and this over all light of a frame, of
less than which an image takes no harm."""
LIT = 10.0
"""Counts, in half of the frames: where a pixel that is always zero is dead."""
LIT_AROUND, LIT_LINE = 30.0, 100.0
"""Photons, of all frames, around a pixel without any that should have some; and on each of the
lines beside a dark one."""
FEW_FRAMES = 16
"""With fewer, all together do not tell that a pixel never changes, is dead, or is hot by its
mean."""
LEAST_SATURATED = 8
"""Pixels at the largest value of all that never change: they are saturated, and no longer single
ones at fault."""
BRIDGE = 7
"""Pixels across a gap in whose middle light would be expected."""


class Mark(NamedTuple):
    """Values that mean that a pixel is bad, from `low` to `high`."""

    reason: str
    low: float
    high: float


def read_mask(path: Path) -> tuple[str, NDArray[Any]]:
    """The key and the array of a mask in a file of its own: its only array, or `bad_pixels`.

    Raises:
        ScanError: the file cannot be read, or it is not clear which array is meant.
    """
    try:
        arrays = dict(_arrays_in(path))
    except FileNotFoundError:
        raise ScanError(f"source.bad_pixels: there is no {path}; correct the path") from None
    except (OSError, ValueError, KeyError, EOFError, ImportError) as error:
        # What numpy says of other files is how to load them unsafely.
        is_other = path.suffix.lower() in (".npy", ".npz") and isinstance(error, ValueError)
        reason = f"no {path.suffix[1:]} file of numbers" if is_other else error
        raise ScanError(
            one_line(f"source.bad_pixels: {path} cannot be read: {reason}; expected a mask (N, N)")
        ) from error
    key = "bad_pixels" if "bad_pixels" in arrays else next(iter(arrays), "")
    if key != "bad_pixels" and len(arrays) != 1:
        raise ScanError(
            f"source.bad_pixels: {path} holds {', '.join(arrays) or 'no array'}; expected one "
            "array, or one named 'bad_pixels'; write such a file"
        )
    return key or "array", arrays[key]


def _arrays_in(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    ending = path.suffix.lower()
    if ending == ".npz":
        with np.load(path, allow_pickle=False) as file:
            yield from ((key, file[key]) for key in file.files)
    elif ending == ".npy":
        yield "", np.load(path, allow_pickle=False)
    elif ending.startswith(".tif"):
        from tifffile import imread

        yield "", np.asarray(imread(path))
    else:
        import h5py

        found: list[tuple[str, Any]] = []
        with h5py.File(path, "r") as file:
            file.visititems(lambda key, item: found.append((key, item)))
            for key, item in found:
                if isinstance(item, h5py.Dataset) and item.ndim > 1:
                    yield key.rpartition("/")[2], item[()]


def find_marks(sample: NDArray[Any], *, holds_counts: bool, takes_negative: bool) -> Iterator[Mark]:
    """The marks of bad pixels among the values of a detector.

    Args:
        sample: (S, N, N) of the type of the file.
        holds_counts: whether they are counts; else their square roots.
        takes_negative: whether -1 and the like may be marks.
    """
    dtype = sample.dtype
    values = sample[np.isfinite(sample)] if dtype.kind == "f" else sample
    if not values.size:
        return
    if dtype.kind == "u":
        largest = int(np.iinfo(dtype).max)
        yield Mark(f"at {largest}, the largest {dtype}: dead or saturated", largest, largest)
    top = values.max()
    is_frequent = 2 * np.count_nonzero(values == top) >= len(sample)
    for count in MAXIMA:
        value = float(count) if holds_counts else float(np.sqrt(count))
        # In the file's own precision, in which 2^32 - 1 is 2^32.
        with np.errstate(over="ignore"):
            value = float(dtype.type(value)) if dtype.kind == "f" else value
        is_type_maximum = dtype.kind == "u" and count == np.iinfo(dtype).max
        if float(top) == value and is_frequent and not is_type_maximum:
            yield Mark(f"at {value:.10g}, a mark of dead or saturated pixels", value, value)
    if takes_negative and dtype.kind != "u" and _are_marks(sample, values):
        for value in NEGATIVE_MARKS:
            yield Mark(f"at {value}, the mark of a dead pixel", value, value)


def _are_marks(sample: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether negative values are marks, and no counts after a dark image was taken away."""
    negative = values[values < 0]
    if not np.isin(negative, NEGATIVE_MARKS).all():
        return False
    if sample.dtype.kind == "i":
        return True
    is_negative = sample < 0
    return bool(negative.size and (is_negative.any(axis=0) == is_negative.all(axis=0)).all())


class BadPixels:
    """Finds bad pixels in frames as they are read, and counts them by reason."""

    def __init__(self, size: int, mask: NDArray[np.bool_] | None, marks: Sequence[Mark]) -> None:
        """Begin.

        Args:
            size: N.
            mask: (N, N) bad in every frame; None if no pixel is.
            marks: values that mean bad pixels; NaN always does.
        """
        self.mask = mask if mask is not None and mask.any() else None
        self.marks, self._frames = marks, 0
        self._tally: dict[str, NDArray[np.int64]] = {}
        self._size = size

    def find(
        self, frames: NDArray[Any], masks: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_] | None:
        """(m, N, N) which pixels of (m, N, N) frames are bad; None if none is.

        `masks` are (m, N, N) of the file's own for these frames.
        """
        found = [(reason, one) for reason, one in self._look(frames, masks) if one.any()]
        if not found:
            self._frames += len(frames)
            return None
        bad = np.logical_or.reduce([one for _, one in found])
        # A frame without any good pixel says nothing about its pixels.
        some = ~bad.all(axis=(1, 2))
        self._frames += int(some.sum())
        counted = np.zeros_like(bad)
        for reason, one in found:
            tally = self._tally.setdefault(reason, np.zeros((self._size,) * 2, np.int64))
            tally += (one & ~counted)[some].sum(axis=0)
            counted |= one
        return np.asarray(bad)

    def _look(
        self, frames: NDArray[Any], masks: NDArray[np.bool_] | None
    ) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        if self.mask is not None:
            yield "masked", np.broadcast_to(self.mask, frames.shape)
        if masks is not None:
            yield "masked", masks
        low, high = float(frames.min()), float(frames.max())
        if np.isnan(low):
            yield "NaN", np.isnan(frames)
            low, high = -np.inf, np.inf
        for mark in self.marks:
            if mark.low <= high and mark.high >= low:
                yield mark.reason, (frames >= mark.low) & (frames <= mark.high)

    def restart(self) -> None:
        """Forget what was counted."""
        self._frames, self._tally = 0, {}

    def add(self, reason: str, found: NDArray[np.bool_]) -> None:
        """Count (N, N) pixels as bad in every frame."""
        self.add_some(reason, np.where(found, self._frames, 0))

    def add_some(self, reason: str, frames: NDArray[np.int64]) -> None:
        """Count pixels as bad in so many frames, (N, N)."""
        if frames.any():
            self._tally[reason] = frames

    @property
    def everywhere(self) -> NDArray[np.bool_] | None:
        """(N, N) pixels that are bad in every frame; None where no pixel of any frame is bad."""
        if not self._tally:
            return None
        total = np.sum(list(self._tally.values()), axis=0)
        return np.asarray((total >= self._frames) & (self._frames > 0))

    def describe(self) -> Iterator[str]:
        """How many there are, a line for each reason."""
        for reason, tally in self._tally.items():
            always = tally >= self._frames
            parts = []
            if always.any():
                parts.append(f"{np.count_nonzero(always)} in every frame{_places(always)}")
            some = np.where(always, 0, tally)
            if some.sum() >= self._frames:
                parts.append(f"{some.sum() / self._frames:.3g} a frame in some")
            elif some.any():
                parts.append(f"{some.sum()} in single frames{_places(some > 0)}")
            if parts:
                yield f"bad pixels, {reason}: {', '.join(parts)}"


def _places(found: NDArray[np.bool_]) -> str:
    """Where a few pixels are, in words."""
    places = np.argwhere(found)
    if len(places) <= 6:
        return ", at (row, column) " + ", ".join(f"({y}, {x})" for y, x in places)
    (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0)
    return f", rows {top}-{bottom}, columns {left}-{right}"


def find_glaring(sample: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N, N) pixels of (S, N, N) amplitudes that are far brighter in every frame than their
    neighbours in any; not in the middle, where the direct beam may fall."""
    if len(sample) < LEAST_FRAMES:
        return np.zeros(sample.shape[1:], np.bool_)
    least, most = (np.square(one.reduce(sample, axis=0), dtype=float) for one in (np.fmin, np.fmax))
    # What is seldom measured is compared with nothing.
    most[np.isnan(sample).sum(axis=0) > len(sample) / 2] = np.nan
    return _off_middle((least > HOT * _neighbours(most)) & ~np.isnan(most))


def search_closely(sample: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N, N) hot pixels and (N, N) dead ones of (S, N, N) amplitudes, by medians over frames.

    A hot pixel may also hold the same counts in every frame, which only many together do that are
    saturated. A dead pixel is always zero, and lies between lit ones, or in a line of such that
    runs across the detector.
    """
    nothing = np.zeros(sample.shape[1:], np.bool_)
    if len(sample) < FEWEST:
        return nothing, nothing
    if len(sample) < LEAST_FRAMES:
        least, most = (
            np.square(one.reduce(sample, axis=0), dtype=float) for one in (np.fmin, np.fmax)
        )
        return _off_middle(least > WARM * brightest_around(np.nan_to_num(most)) + HOT), nothing
    # Of a pixel that is seldom measured this is NaN, which sorts last.
    level = np.square(np.sort(sample, axis=0)[len(sample) // 2], dtype=np.float64)
    dark = np.fmax.reduce(sample, axis=0) == 0
    stuck = _find_stuck(sample)
    dead = _find_dark_between(dark, (level > LIT) & ~stuck & ~_exceeds_neighbours(level))
    # Beside a dead pixel, one that is right looks bright.
    level[dead] = np.nan
    return _exceeds_neighbours(level) | stuck, dead


def find_dead(
    total: NDArray[np.float64], measured: NDArray[np.int64], photon: float
) -> NDArray[np.bool_]:
    """(N, N) pixels that are dark in all frames although there is light around them.

    Args:
        total: (N, N) counts of each pixel in all frames.
        measured: (N, N) in how many frames it was measured.
        photon: counts that one stands for.
    """
    from scipy.ndimage import binary_dilation, label

    dark = (total <= 0) & (measured > 0)
    photons = total / photon
    dead = np.zeros_like(dark)
    if measured.max(initial=0) < FEW_FRAMES:
        return dead
    for axis in (0, 1):
        whole = np.asarray(dark.all(axis=axis))
        part = photons.sum(axis=axis)
        for first, last in _runs(whole):
            if first > 0 and last < len(whole) and min(part[first - 1], part[last]) > LIT_LINE:
                span = slice(first, last)
                dead[(slice(None), span) if axis == 0 else (span, slice(None))] = True
    groups, count = label(dark & ~dead, np.ones((3, 3)))
    for number in range(1, count + 1):
        group = groups == number
        ring = binary_dilation(group, np.ones((3, 3))) & ~group & ~dead
        if ring.any() and np.quantile(photons[ring], 0.25) > LIT_AROUND:
            dead |= group
    return dead


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def find_hit(
    highest: NDArray[np.float64],
    total: NDArray[np.float64],
    measured: NDArray[np.int64],
    photon: float,
) -> NDArray[np.float64]:
    """(N, N) counts above which a ray hit a pixel in a frame, or it was read wrongly there; Inf for
    all pixels of which none is.

    Such a pixel holds far more than its neighbours in any frame, and than itself in the others; not
    in the middle, where the direct beam may fall.

    Args:
        highest: (N, N) counts of each pixel in the frame where they are most, NaN for pixels that
            say nothing.
        total: (N, N) counts of each in all frames.
        measured: (N, N) in how many frames it was measured.
        photon: counts that one stands for.
    """
    if measured.max(initial=0) < FEWEST:
        return np.full(highest.shape, np.inf)
    others = np.maximum(total - np.nan_to_num(highest), 0) / np.maximum(measured - 1, 1)
    least = max(HIT * photon, SHARE_HIT * float(others.sum()))
    limits = np.asarray(HOT * np.fmax(_neighbours(highest), others) + least)
    return np.where(_off_middle(highest > limits), limits, np.inf)


def _exceeds_neighbours(level: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N, N) hot pixels, from (N, N) counts."""
    far = level > HOT * _neighbours(level) + HOT
    brightest = brightest_around(np.nan_to_num(level))
    return _off_middle(far | (level > WARM * brightest + HOT))


def _find_dark_between(dark: NDArray[np.bool_], lit: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N, N) pixels that are always dark and lie between lit ones, or in a line of such."""
    from scipy.ndimage import binary_closing

    between = np.zeros_like(dark)
    for shape in ((1, BRIDGE), (BRIDGE, 1)):
        between |= binary_closing(np.pad(lit, BRIDGE), np.ones(shape))[
            BRIDGE:-BRIDGE, BRIDGE:-BRIDGE
        ]
    dead = dark & between
    for axis in (0, 1):
        crosses = np.asarray(dark.all(axis=axis) & dead.any(axis=axis))
        dead |= np.expand_dims(crosses, axis)
    return np.asarray(dead)


def _find_stuck(sample: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N, N) pixels of (S, N, N) amplitudes that never change although they hold counts."""
    least, most = np.fmin.reduce(sample, axis=0), np.fmax.reduce(sample, axis=0)
    stuck = (least == most) & (np.square(most, dtype=np.float64) >= LIT)
    at_top = most == np.fmax.reduce(most, axis=None)
    if np.count_nonzero(stuck & at_top) >= LEAST_SATURATED:
        stuck &= ~at_top
    return np.asarray(stuck & (np.isfinite(sample).sum(axis=0) >= LEAST_FRAMES))


def _neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, N) the upper median of the eight neighbours, NaN left out; a pair or triple of bad
    neighbours does not raise it. NaN where fewer than three are known."""
    around = np.sort(_list_neighbours(np.pad(values, 1, mode="reflect")), axis=0)
    known = np.isfinite(around).sum(axis=0)
    middle = np.take_along_axis(around, known[None] // 2, axis=0)[0]
    return np.where(known < 3, np.nan, middle)


def brightest_around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, N) the largest of the eight neighbours."""
    return np.asarray(np.max(_list_neighbours(np.pad(values, 1)), axis=0))


def _list_neighbours(padded: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Eight times (N, N), of values with one pixel more at each side."""
    N = len(padded) - 2
    shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    return [padded[y : y + N, x : x + N] for y, x in shifts]


def middle_of(frame: NDArray[Any]) -> tuple[slice, slice]:
    """Where in (N, N) the direct beam may fall."""
    middle = slice(len(frame) // 2 - 1, len(frame) // 2 + 2)
    return middle, middle


def _off_middle(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    found[middle_of(found)] = False
    return found


def fill_nearest(image: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, N) an image that has, where it is not known, the value of the nearest known pixel."""
    if known.all() or not known.any():
        return image
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(image[rows, columns])
