"""Which pixels of a raw scan's frames are bad: the mask that is taken, the marks, the looks.

Axis letters:  M frames,  m frames of a part,  N detector pixels along one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.layout import is_mask_file
from ptycho_tasks.scan import evenly_spaced, release_pages
from ptycho_tasks.scans.any_file import open_layout
from ptycho_tasks.scans.bad_pixels import (
    FROM_FILE,
    IGNORE,
    ONLY_MARKED,
    SAMPLED,
    SEARCH,
    BadPixels,
    Mark,
    find_dead,
    find_glaring,
    find_hit,
    find_marks,
    read_mask,
    search_closely,
)
from ptycho_tasks.scans.content import Content
from ptycho_tasks.scans.frame_stack import FrameStack, check_room
from ptycho_tasks.scans.raw_scan import Keyed, RawScan, Reading, refused
from ptycho_tasks.scans.shaping import ShapedFrames, Window
from ptycho_tasks.system.files import file_stamp
from ptycho_tasks.system.large_arrays import row_chunks, stack_parts

BRIGHT = 0.95
"""Share of the pixels that are not the bright ones."""


@dataclass(frozen=True)
class Masking:
    """How bad pixels of frames are told, and those that were found."""

    found: BadPixels
    masks: Keyed | None
    """Of the shape of the frames: those of single frames; None where the file has none."""
    good_bits: int
    """See `RawScan.good_bits`."""

    def find(
        self, stack: FrameStack, numbers: NDArray[np.int64], frames: NDArray[Any]
    ) -> NDArray[np.bool_] | None:
        """(m, N, N) bad pixels of some frames of a stack; None if none is."""
        return self.found.find(frames, self._read_masks(stack, numbers))

    def find_masked(
        self, stack: FrameStack, numbers: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """The same by masks alone."""
        if self.found.mask is not None:
            return np.broadcast_to(self.found.mask, (len(numbers), *self.found.mask.shape))
        return self._read_masks(stack, numbers)

    def _read_masks(
        self, stack: FrameStack, numbers: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        if self.masks is None:
            return None
        return _as_mask(stack.read(numbers, self.masks), self.good_bits)


def settle_bad_pixels(
    raw: RawScan, stack: FrameStack, window: Window | None, reading: Reading, *, are_counts: bool
) -> Masking:
    """Decide how bad pixels are told.

    Raises:
        ScanError: there is no such mask, or none for these frames.
    """
    _choose_mask(raw, reading)
    _settle_sense(raw, reading.mask_marks)
    if window is not None:
        _cut_mask(raw, window, stack.axis)
    keyed = raw.bad_pixels
    mask = _take_whole_mask(raw, stack.shape[1])
    marks = _settle_marks(stack, reading, are_counts=are_counts)
    masking = Masking(BadPixels(stack.shape[1], mask, marks), raw.bad_pixels, raw.good_bits)
    if keyed is not None:
        _doubt_mask(raw, keyed, stack, masking, reading.mask_marks, are_counts=are_counts)
    return masking


def _doubt_mask(
    raw: RawScan,
    keyed: Keyed,
    stack: FrameStack,
    masking: Masking,
    marks: Literal["bad", "good"] | None,
    *,
    are_counts: bool,
) -> None:
    """Doubt a mask of bad pixels on which most of the light falls.

    Raises:
        ScanError: all of it does.
    """
    some = evenly_spaced(stack.shape[0], min(SAMPLED, stack.shape[0]))
    by_value = BadPixels(stack.shape[1], None, masking.found.marks)
    light, masked = (np.zeros(stack.shape[1:]) for _ in range(2))
    for number in some[:, None]:
        frames = np.asarray(stack.read(number), dtype=np.float64)
        dead = by_value.find(frames)
        frames = np.maximum(frames if dead is None else np.where(dead, 0, frames), 0)
        light += np.sqrt(frames[0]) if are_counts else frames[0]
        bad = masking.find_masked(stack, number)
        masked += 0 if bad is None else bad[0]
    # A few bright pixels, as a beam that is masked since it saturates, say nothing.
    light = np.minimum(light, np.quantile(light, BRIGHT) or np.inf)
    share = float((light * masked).sum() / (max(light.sum(), 1e-12) * len(some)))
    if not share > 0.5:
        return
    other = "bad" if marks == "good" else "good"
    found = (
        f"marks {100 * masked.mean() / len(some):.3g} % of the pixels as bad, and on these falls "
        f"{100 * share:.3g} % of the light"
    )
    advice = f"set source.mask_marks to {other} if it is true where pixels are {other}"
    if share > 1 - 1e-9:
        raise keyed.refused(found, "light on good pixels", advice)
    raw.doubts.append(f"{keyed.key}: {found}; {advice}")


def _settle_marks(stack: FrameStack, reading: Reading, *, are_counts: bool) -> list[Mark]:
    """The marks of bad pixels in the frames as they are read, in bins if these are asked for."""
    frames = stack.frames.array
    if not isinstance(frames, ShapedFrames) or not frames.has_bins:
        return _list_marks(stack, reading, are_counts=are_counts)
    pixels = replace(stack, frames=replace(stack.frames, array=frames.without_bins()))
    marks = _list_marks(pixels, reading, are_counts=are_counts)
    return frames.mark_bins(marks, clips=reading.negative_counts == "clip")


def _list_marks(stack: FrameStack, reading: Reading, *, are_counts: bool) -> list[Mark]:
    marks: list[Mark] = []
    if reading.bad_pixels not in (IGNORE, ONLY_MARKED):
        takes_negative = reading.negative_counts == "refuse"
        sample = stack.sample(SAMPLED)
        marks += find_marks(sample, holds_counts=are_counts, takes_negative=takes_negative)
    if reading.saturated is not None:
        # Single precision rounds a root up or down.
        least = reading.saturated if are_counts else (1 - 1e-6) * reading.saturated**0.5
        marks.append(Mark(f"saturated from {reading.saturated:g} counts on", least, np.inf))
    if reading.negative_counts == "mask":
        marks.append(Mark("negative", -np.inf, -np.finfo(np.float64).tiny))
    return marks


def _choose_mask(raw: RawScan, reading: Reading) -> None:
    """Take the mask that is to be used: the file's own, or the one that a setting names."""
    keyed, setting = raw.bad_pixels, reading.bad_pixels
    if setting == IGNORE:
        if keyed is not None and np.any(keyed.array[:]):
            raw.note(f"{keyed.key}: ignored, its bad pixels count as measured")
        raw.bad_pixels = None
    elif setting not in (FROM_FILE, ONLY_MARKED, SEARCH, keyed and keyed.key):
        find = _read_mask if is_mask_file(setting) else _find_mask
        raw.bad_pixels = find(raw, reading)
        raw.good_bits = 0


def _settle_sense(raw: RawScan, marks: Literal["bad", "good"] | None) -> None:
    """Have the mask mark bad pixels. Many programs write the opposite: what leaves less than half
    of a detector is not believed.

    Raises:
        ScanError: such a mask, and no setting says what it marks.
    """
    keyed = raw.bad_pixels
    if keyed is None or keyed.array.dtype.kind not in "biuf":
        return
    if marks == "good":
        values = np.asarray(keyed.array[:])
        raw.bad_pixels, raw.good_bits = replace(keyed, array=values == 0), 0
    elif marks is None and len(keyed.array.shape) == 2:
        share = _as_mask(np.asarray(keyed.array[:]), raw.good_bits).mean()
        if 0.5 < share < 1.0:
            raise keyed.refused(
                f"marks {100 * share:.3g} % of the pixels as bad",
                "a mask that is true, or not zero, where a pixel is bad",
                "set source.mask_marks to good if it is true where pixels are good, or to bad if "
                "it is right",
            )


def _read_mask(raw: RawScan, reading: Reading) -> Keyed:
    """The mask in a file of its own.

    Raises:
        ScanError: there is no such file, or it has no mask.
    """
    path = Path(reading.bad_pixels)
    key, array = read_mask(path)
    stamp = file_stamp(path)
    raw.files |= {} if stamp is None else {path: stamp}
    return Keyed(path, key, array)


def _find_mask(raw: RawScan, reading: Reading) -> Keyed:
    """The mask that lies in the scan's file, under a key that its reader does not know.

    Raises:
        ScanError: there is no such key.
    """
    path, key, content = raw.path, reading.bad_pixels, Content(())
    with open_layout(path, reading) as file:
        if file is not None:
            keyed = file.array(key)
            if keyed is not None:
                raw.note_files(path, file.stamps())
                return replace(keyed, array=np.asarray(keyed.array[()]))
            content = file.content()
    raise refused(
        path,
        key,
        "is missing",
        "the mask that source.bad_pixels names",
        f"name a key of the file, which holds {content.describe()}; another file (npy, npz, h5, "
        "tif); or auto, marked or ignore",
    )


def _take_whole_mask(raw: RawScan, size: int) -> NDArray[np.bool_] | None:
    """(N, N) pixels that the mask says are bad in every frame; leaves one of single frames."""
    keyed = raw.bad_pixels
    if keyed is None:
        return None
    shape, whole = tuple(keyed.array.shape), (size, size)
    if keyed.array.dtype.kind not in "biuf" or shape not in (whole, raw.frames.array.shape):
        raise keyed.refused(
            f"is {keyed.describe()}",
            f"({size}, {size}) bool, or one for each frame",
            "give a mask of that shape, or set source.bad_pixels to ignore",
        )
    if shape != whole:
        return None
    raw.bad_pixels = None
    mask = _as_mask(np.asarray(keyed.array[:]), raw.good_bits)
    if mask.all():
        raise keyed.refused(
            f"marks all {mask.size} pixels as bad",
            "a detector that measures",
            "set source.mask_marks to good if it is true where pixels are good, or correct it",
        )
    return mask


def _as_mask(values: NDArray[Any], good_bits: int) -> NDArray[np.bool_]:
    """True where values of a mask mean a bad pixel."""
    if values.dtype.kind in "iu" and good_bits:
        values = values.astype(np.int64) & ~good_bits
    return np.asarray(values != 0)


def _cut_mask(raw: RawScan, window: Window, axis: int) -> None:
    """Cut the mask as the frames; what lies beyond the detector is bad."""
    keyed = raw.bad_pixels
    if keyed is None:
        outside = window.mask_outside()
        if outside.any():
            raw.bad_pixels = Keyed(raw.path, "source.centre", outside)
        return
    shape = tuple(keyed.array.shape)
    frame = shape[1:] if axis == 0 or len(shape) == 2 else shape[:2]
    if (shape if len(shape) == 2 else frame) != window.frame:
        return
    values = _as_mask(np.asarray(keyed.array[:]), raw.good_bits)
    raw.good_bits = 0
    if len(shape) == 2:
        cut = window.cut_masks(values[None])[0]
    elif axis == 0:
        cut = window.cut_masks(values)
    else:
        cut = np.moveaxis(window.cut_masks(np.moveaxis(values, -1, 0)), 0, -1)
    raw.bad_pixels = replace(keyed, array=cut)


def leave_out_unlikely(
    raw: RawScan, diffraction: NDArray[np.float32], found_bad: BadPixels, setting: str
) -> NDArray[np.float32]:
    """(M, N, N) frames with NaN in pixels that only look bad; these are added to what was found."""
    if setting in (IGNORE, ONLY_MARKED):
        return diffraction
    some = evenly_spaced(len(diffraction), min(SAMPLED, len(diffraction)))
    sample = np.asarray(diffraction[some])
    found = {"hot": find_glaring(sample)}
    if setting == SEARCH:
        highest, total, measured, photon = _count(diffraction)
        hot, dead = search_closely(sample)
        # In all frames: those of a sample leave pixels dark that others light.
        dead = (dead & (total <= 0)) | find_dead(total, measured, photon)
        found = {"hot": found["hot"] | hot, "dead": dead}
    elif found["hot"].any():
        raw.doubts.append(
            f"{raw.frames.key}: pixels far brighter than their neighbours in every frame are taken "
            f"as bad: {np.count_nonzero(found['hot'])}; set source.bad_pixels to marked if they "
            "are right, as sharp peaks of a periodic object may be, or to auto to look closely"
        )
    for reason, pixels in found.items():
        found_bad.add(reason, pixels)
    # Amplitudes above which a pixel is bad.
    limits = np.where(np.logical_or.reduce([*found.values()]), -1.0, np.inf).astype(np.float32)
    if setting == SEARCH:
        highest[(limits < 0) | (measured == 0)] = np.nan
        hit = find_hit(highest, total, measured, photon)
        limits = np.minimum(limits, np.sqrt(hit).astype(np.float32))
        found_bad.add_some("hit by a ray", _count_above(diffraction, limits))
    if np.isinf(limits).all():
        return diffraction
    if diffraction.flags.writeable:
        diffraction[diffraction > limits] = np.nan
        return diffraction
    check_room(raw.frames, diffraction.size)
    return stack_parts(diffraction.shape, diffraction.dtype, _without(diffraction, limits))


class _Tally(NamedTuple):
    """What the pixels of all frames hold, where it is a number."""

    highest: NDArray[np.float64]
    """(N, N) counts of each in the frame where they are most."""
    total: NDArray[np.float64]
    """(N, N) counts of each in all frames."""
    measured: NDArray[np.int64]
    """(N, N) in how many frames."""
    photon: float
    """Counts that one stands for."""


def _count(diffraction: NDArray[np.float32]) -> _Tally:
    """What (M, N, N) amplitudes hold."""
    highest, total = (np.zeros(diffraction.shape[1:]) for _ in range(2))
    measured, photon = np.zeros(diffraction.shape[1:], np.int64), np.inf
    for part in row_chunks(diffraction.shape, np.dtype(np.float64)):
        frames = np.array(diffraction[part], dtype=np.float64)
        release_pages(diffraction)
        measured += np.isfinite(frames).sum(axis=0)
        counts = np.square(np.nan_to_num(frames, copy=False), out=frames)
        highest = np.maximum(highest, counts.max(axis=0))
        total += counts.sum(axis=0)
        photon = min(photon, counts.min(initial=np.inf, where=counts > 0))
    photon = max(photon, 1.0) if np.isfinite(photon) else 1.0
    return _Tally(highest, total, measured, photon)


def _count_above(
    diffraction: NDArray[np.float32], limits: NDArray[np.float32]
) -> NDArray[np.int64]:
    """(N, N) in how many frames a pixel is above a limit that is no negative one."""
    counted = np.zeros(limits.shape, np.int64)
    pixels = np.isfinite(limits) & (limits > 0)
    if pixels.any():
        for part in row_chunks(diffraction.shape, diffraction.dtype):
            counted[pixels] += (diffraction[part][:, pixels] > limits[pixels]).sum(axis=0)
            release_pages(diffraction)
    return counted


def _without(
    diffraction: NDArray[np.float32], limits: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    for part in row_chunks(diffraction.shape, diffraction.dtype):
        frames = np.array(diffraction[part])
        release_pages(diffraction)
        frames[frames > limits] = np.nan
        yield frames
