"""The frames of a raw scan as a stack: which axis numbers them, what they hold, and how
a part of them is read.

Axis letters:  M frames,  K frames taken,  m frames of a part,  N detector pixels along one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import evenly_spaced, release_pages
from ptycho_tasks.scans.raw_scan import FrameAxis, Keyed, Measurement, RawScan, check_stack
from ptycho_tasks.system.large_arrays import has_room_for, row_chunks, scratch_folder
from ptycho_tasks.system.memory import format_gb


def choose_axis(raw: RawScan, frame_axis: FrameAxis, count: int) -> int:
    """Which axis numbers the frames: 0 or -1. Leaves `raw.rows` only where they are not all.

    Raises:
        ScanError: no stack, as many frames as there are no positions, or an order that cannot be
            told.
    """
    check_stack(raw.frames)
    shape = raw.frames.array.shape
    said = raw.frame_axis if frame_axis == "auto" else frame_axis
    axis = {"auto": _told_axis(raw, count), "first": 0, "last": -1}[said]
    if axis is None:
        raise raw.frames.refused(
            f"has shape {shape}, so that the order of its axes cannot be told",
            "to be told which axis is that of the frames",
            "set source.frame_axis to first or last",
        )
    _check_count(raw, axis, count)
    _settle_rows(raw, axis)
    if axis == -1:
        raw.note(f"{raw.frames.key}: frames moved from the last axis to the first")
    return axis


def _told_axis(raw: RawScan, count: int) -> int | None:
    """The axis that the shape tells of; None where either may be it."""
    first, middle, last = raw.frames.array.shape
    from_positions = raw.rows is None
    as_first = middle == last and (first == count or not from_positions)
    as_last = first == middle and (last == count or not from_positions)
    if as_first and as_last:
        return None
    if as_first or as_last:
        return 0 if as_first else -1
    # Neither fits: choose the order in which the message says most.
    return -1 if first != count and (last == count or first == middle) else 0


def _check_count(raw: RawScan, axis: int, count: int) -> None:
    shape = raw.frames.array.shape
    if raw.rows is None and shape[axis] != count:
        position_key = raw.x.key if raw.x else "positions"
        is_beside = raw.x is not None and raw.x.path != raw.frames.path
        place = f" of {raw.x.path}" if raw.x is not None and is_beside else ""
        what = "that file" if is_beside else "the file"
        raise raw.frames.refused(
            f"has {shape[axis]} frames (shape {shape}) but {position_key!r}{place} has {count}",
            "one position a frame",
            f"correct {what}, or set source.frame_axis if the order is another",
        )
    if raw.numbers is not None and len(raw.numbers) != shape[axis]:
        raise raw.frames.refused(
            f"has {shape[axis]} frames (shape {shape}) but {len(raw.numbers)} frame numbers",
            "one number a frame",
            "correct the file, or set source.frame_axis if the order is another",
        )
    if raw.rows is not None and raw.rows[-1] >= shape[axis]:
        raise raw.frames.refused(
            f"has {shape[axis]} frames, but the product has a position for frame {raw.rows[-1]}",
            "the frames that the product was made from",
            "give the product's own frames",
        )


def _settle_rows(raw: RawScan, axis: int) -> None:
    if raw.rows is None:
        return
    total, taken = raw.frames.array.shape[axis], len(raw.rows)
    if taken == total:
        raw.rows = None
    else:
        raw.note(f"{raw.frames.key}: {total - taken} of {total} frames have no position")


def read_size(raw: RawScan, axis: int) -> int:
    """N.

    Raises:
        ScanError: the frames are not square, or of an odd size.
    """
    shape = raw.frames.array.shape
    height, width = shape[1:] if axis == 0 else shape[:2]
    if height != width:
        raise raw.frames.refused(
            f"has frames of {height} x {width} pixels (shape {shape})",
            "square frames",
            f"set source.crop to {min(height, width) // 2 * 2} or less, and source.centre to "
            "the zero frequency where that is not in the middle",
        )
    if height % 2:
        raise raw.frames.refused(
            f"has frames of {height} x {width} pixels",
            "an even size",
            f"set source.crop to {height - 1} or less",
        )
    return int(height)


def are_counts(raw: RawScan, measurement: Measurement) -> bool:
    """Whether the frames are counts, else amplitudes.

    Raises:
        ScanError: they are no real numbers, or nothing says what they are.
    """
    dtype = raw.frames.array.dtype
    if dtype.kind not in "fiu":
        raise raw.frames.refused(
            f"is {raw.frames.describe()}",
            "real numbers (amplitude or counts)",
            "give the measured frames, not a wave field",
        )
    if measurement != "auto":
        return measurement == "counts"
    if raw.holds_counts is None and dtype.kind in "iu":
        raise raw.frames.refused(
            f"holds integers ({dtype})",
            "float32 amplitude, the square root of counts",
            "set source.measurement to counts, and the square root is taken",
        )
    return bool(raw.holds_counts)


def check_room(frames: Keyed, pixels: int) -> None:
    """Refuse frames for whose amplitudes there is no place.

    Raises:
        ScanError: so many pixels fit neither into a temporary file nor into memory.
    """
    needed = 4.0 * pixels
    if not has_room_for(needed):
        raise frames.refused(
            f"is {frames.describe()}, {format_gb(needed)} of amplitudes, for which neither "
            f"{scratch_folder()} nor memory has room now",
            "frames that fit",
            "set TMPDIR to a folder on a disk with more room, or take fewer frames into a file",
        )


@dataclass(frozen=True)
class FrameStack:
    """The frames of a raw scan that are taken, in their file."""

    frames: Keyed
    """(M, N, N), or (N, N, M)."""
    axis: int
    """0 or -1, which numbers the frames."""
    rows: NDArray[np.int64] | None
    """(K,) sorted frames that are taken; None takes all."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, N, N)."""
        shape = self.frames.array.shape
        count = shape[self.axis] if self.rows is None else len(self.rows)
        return count, shape[1], shape[1]

    def places(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) where some of the frames taken stand in the file."""
        return frames if self.rows is None else self.rows[frames]

    def read(self, frames: NDArray[np.int64], keyed: Keyed | None = None) -> NDArray[Any]:
        """(m, N, N) some of the frames taken, or what another stack of the file holds for them.

        Raises:
            ScanError: they cannot be read.
        """
        keyed = keyed or self.frames
        wanted = _as_slice(self.places(frames))
        try:
            found = np.asarray(keyed.array[wanted] if self.axis == 0 else keyed.array[:, :, wanted])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise keyed.refused(
                f"cannot be read: {' '.join(str(error).split())}",
                "a complete file, with compression that h5py knows",
                "copy it again, install hdf5plugin, or rewrite it with h5repack",
            ) from error
        return found if self.axis == 0 else np.moveaxis(found, -1, 0)

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Pairs of (m,) numbers among the frames taken and these (m, N, N) frames."""
        for part in row_chunks(self.shape, self.frames.array.dtype):
            numbers = np.arange(part.start, part.stop)
            yield numbers, self.read(numbers)
            release_pages(self.frames.array)

    def sample(self, most: int) -> NDArray[Any]:
        """At most so many frames, as the file holds them."""
        count = self.shape[0]
        some = evenly_spaced(count, min(most, count))
        # One by one: HDF5 reads lists of frames slowly, and of damaged virtual datasets not at all.
        return np.concatenate([self.read(one) for one in some[:, None]])

    def refuse_frame(self, number: int, found: str, expected: str, advice: str) -> ScanError:
        """The error that says what is wrong with one of the frames taken."""
        place = int(self.places(np.array([number]))[0])
        return self.frames.refused(f"has {found} (first at frame {place})", expected, advice)


def _as_slice(rows: NDArray[np.int64]) -> Any:
    """Neighbouring rows as a slice, which files read faster than a list of rows."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
