"""The amplitudes of a raw scan's frames: checked, of counts the root, NaN where a pixel is bad.

Axis letters:  M frames,  m frames of a part,  K frames taken,  N detector pixels along one side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.scans.frame_stack import FrameStack, check_room
from ptycho_tasks.scans.masking import Masking
from ptycho_tasks.scans.raw_scan import RawScan, ranges
from ptycho_tasks.system.large_arrays import stack_parts

_FAINTEST, _BRIGHTEST = 1e-9, 1e9
"""Between these is the largest amplitude of a scan; what lies beyond is no measurement, and its
square is lost in single precision soon."""


@dataclass
class Light:
    """What was seen of the frames, in the order in which they were read."""

    largest: float = 0.0
    """Amplitude."""
    lit: list[NDArray[np.bool_]] = field(default_factory=list)
    """(m,) whether a frame holds light."""
    measured: list[NDArray[np.bool_]] = field(default_factory=list)
    """(m,) whether a frame has a good pixel."""

    def note(self, frames: NDArray[np.float32], bad: NDArray[np.bool_] | None) -> None:
        """Note what (m, N, N) canonical frames hold."""
        largest = np.asarray((np.max if bad is None else np.fmax.reduce)(frames, axis=(1, 2)))
        self.largest = max(self.largest, float(np.nan_to_num(largest).max()))
        self.lit.append(largest > 0)
        self.measured.append(~np.isnan(largest))


def read_amplitudes(
    raw: RawScan, stack: FrameStack, masking: Masking, *, are_counts: bool, clips: bool
) -> tuple[NDArray[np.float32], Light]:
    """(K, N, N) amplitudes, and their light.

    They are mapped where the file holds them as they are to be, else see `stack_parts`.

    Args:
        raw: for notes.
        stack: frames of the file.
        masking: how bad pixels are told.
        are_counts: whether the square root is taken.
        clips: whether negative values are taken as zero.

    Raises:
        ScanError: values that are no measurement, or too many of them for the memory.
    """
    array = stack.frames.array
    if are_counts:
        raw.note(f"{stack.frames.key}: square root of counts taken")
    raw.note_cast(stack.frames, np.dtype(np.float32))
    is_plain = array.dtype == np.float32 and stack.axis == 0 and stack.rows is None
    if is_plain and not are_counts and isinstance(array, np.ndarray) and array.flags.c_contiguous:
        light = _find_light(stack, masking, clips=clips)
        if light is not None:
            return array, light
        masking.found.restart()
    check_room(stack.frames, math.prod(stack.shape))
    light = Light()
    parts = _convert(stack, masking, light, are_counts=are_counts, clips=clips)
    return stack_parts(stack.shape, np.dtype(np.float32), parts), light


def _find_light(stack: FrameStack, masking: Masking, *, clips: bool) -> Light | None:
    """The light of frames that are as they are to be, each bad pixel NaN already; else None."""
    light = Light()
    for numbers, frames in stack.chunks():
        bad = masking.find(stack, numbers, frames)
        if bad is not None and not np.isnan(frames[bad]).all():
            return None
        if clips and (frames < 0).any():
            return None
        _check_values(stack, int(numbers[0]), frames, bad, clips)
        light.note(frames, bad)
    return light


def _convert(
    stack: FrameStack, masking: Masking, light: Light, *, are_counts: bool, clips: bool
) -> Iterator[NDArray[np.float32]]:
    """(m, N, N) amplitudes, part by part, whose light is noted."""
    for numbers, frames in stack.chunks():
        first = int(numbers[0])
        bad = masking.find(stack, numbers, frames)
        _check_values(stack, first, frames, bad, clips)
        if clips and frames.dtype.kind != "u":
            frames = np.maximum(frames, 0)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.sqrt(frames, dtype=_root_dtype(frames)) if are_counts else frames
            part = np.array(values, dtype=np.float32)
        if frames.dtype.itemsize > part.dtype.itemsize:
            _check_values(stack, first, part, bad, clips)
        if bad is not None:
            part[bad] = np.nan
        light.note(part, bad)
        yield part


def _root_dtype(frames: NDArray[Any]) -> np.dtype[Any]:
    # Integers have no square root in their own type; 64 bits keep every count exact.
    return frames.dtype if frames.dtype.kind == "f" else np.dtype(np.float64)


def _check_values(
    stack: FrameStack, first: int, frames: NDArray[Any], bad: NDArray[np.bool_] | None, clips: bool
) -> None:
    """Refuse values of good pixels that are no measurement."""
    if bad is not None:
        frames = np.where(bad, frames.dtype.type(0), frames)
    if frames.dtype.kind == "f" and max(frames.max(), -frames.min()) == np.inf:
        place = int(np.argmax(np.isinf(frames).any(axis=(1, 2))))
        found = "Inf, or values beyond single precision"
        advice = "correct it, or write NaN where a pixel is bad"
        raise stack.refuse_frame(first + place, found, "finite values", advice)
    if frames.dtype.kind != "u" and frames.min() < 0 and not clips:
        place = int(np.argmax(frames.min(axis=(1, 2)) < 0))
        raise stack.refuse_frame(
            first + place,
            f"negative values, down to {frames.min():.3g}",
            "values of at least zero",
            "set source.negative_counts to clip (to zero), if a dark image was subtracted, or to "
            "mask, if pixels below zero are bad ones",
        )


def check_brightness(raw: RawScan, light: Light) -> None:
    """Refuse frames that are far too faint or bright.

    Raises:
        ScanError: they are no amplitudes.
    """
    if not _FAINTEST <= light.largest <= _BRIGHTEST:
        raise raw.frames.refused(
            f"has {light.largest:.3g} as its largest amplitude",
            f"amplitudes of {_FAINTEST:g} to {_BRIGHTEST:g}, the square roots of counts",
            "scale the frames",
        )


def leave_out_dark(
    raw: RawScan, stack: FrameStack, light: Light, keep: NDArray[np.int64], do: str
) -> NDArray[np.int64]:
    """The frames without those that hold no light, or were not written whole.

    Raises:
        ScanError: there are such frames, and `do` is not to drop them; or no others.
    """
    lit, measured = (np.concatenate(one)[keep] for one in (light.lit, light.measured))
    places = stack.places(keep)
    whole = ~np.isin(places, raw.unwritten(stack.axis) if raw.unwritten else [])
    if (lit & whole).all():
        return keep
    parts = [
        f"{np.count_nonzero(~good)} of {len(keep)} frames {what} ({ranges(places[~good])})"
        for good, what in (
            (whole, "were never written"),
            (measured | ~whole, "have no good pixel"),
            (lit | ~measured | ~whole, "hold no light"),
        )
        if not good.all()
    ]
    found = "; ".join(parts)
    if not (lit & whole).any():
        raise raw.frames.refused(f"is dark: {found}", "frames with light", "give a complete scan")
    if do == "drop":
        raw.note(f"{raw.frames.key}: left out, with their positions: {found}")
        return keep[lit & whole]
    raise raw.frames.refused(
        f"is dark in part: {found}",
        "light in every frame",
        "set source.dark_frames to drop to leave them out",
    )
