"""A scan as a file holds it, and the checks that turn it into a `ScanData`.

Every acceptance is noted in one sentence and logged; every refusal is a ScanError of one line
that names the file, the key, what was expected and what to do.

Axis letters:  M frames,  K frames taken,  N detector pixels along one side,  P probe modes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError, one_line
from ptycho_tasks.layout import is_mask_file
from ptycho_tasks.options import OrientationOptions
from ptycho_tasks.scan import ScanData, evenly_spaced, release_pages, take_frames
from ptycho_tasks.scans.bad_pixels import (
    FROM_FILE,
    IGNORE,
    ONLY_MARKED,
    SAMPLED,
    SEARCH,
    BadPixels,
    Mark,
    fill_nearest,
    find_glaring,
    find_marks,
    read_mask,
    search_closely,
)
from ptycho_tasks.scans.npz import row_chunks
from ptycho_tasks.scans.shaping import ShapedFrames, Window, choose_window, find_centre, orient
from ptycho_tasks.system.files import FileStamp, file_stamp
from ptycho_tasks.system.memory import available_bytes, format_gb, has_memory_for

Measurement = Literal["auto", "amplitude", "counts"]
FrameAxis = Literal["auto", "first", "last"]
Units = Literal["auto", "pixels", "m", "mm", "um", "nm"]
METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
"""What a unit of length is in metres."""

WITHOUT_PROBE = "set source.probe to estimate to have one estimated from the frames"
"""What can be done where a scan has none."""

_AS_IT_IS = OrientationOptions()
_LOG = logging.getLogger(__name__)
_LARGEST_OBJECT = 32768
"""Pixels along a side; some hundred times what is usual, and 8 GiB."""
_FARTHEST = 1e9
"""Pixels; positions stay exact to a fraction of a pixel, and their indices whole numbers."""
_FEWEST_PIXELS_A_FRAME = 0.25
"""Area of the object grid that a frame adds, on average; scans that people make add a pixel at
least, and positions in micrometres much less."""
_FAINTEST, _BRIGHTEST = 1e-9, 1e9
"""Between these is the largest amplitude of a scan; what lies beyond is no measurement, and its
square is lost in single precision soon."""
_SMALLEST_PROBE, _LARGEST_PROBE = 1e-12, 1e12
_FEW = 0.05
"""Of all frames: what lies apart and is no more than that was hardly meant."""


class Array(Protocol):
    """What a numpy array, a memory map and an HDF5 dataset have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an entry."""

    def __getitem__(self, item: Any) -> NDArray[Any]:
        """A part of the array, in memory or mapped."""


@dataclass(frozen=True)
class Keyed:
    """An array and where it stands, for messages."""

    path: Path
    key: str
    array: Array

    def refused(self, found: str, expected: str, advice: str) -> ScanError:
        """The error that says why this array cannot be used."""
        return refused(self.path, self.key, found, expected, advice)


@dataclass(frozen=True)
class Reading:
    """What the caller says about a scan; it goes before what the file says."""

    measurement: Measurement = "auto"
    """What the frames hold; auto takes NPZ as amplitude, CXI as counts."""
    frame_axis: FrameAxis = "auto"
    """Which axis numbers the frames; auto tells it from the number of positions."""
    units: Units = "auto"
    """Of the positions; auto takes NPZ as pixels, and what HDF5 says."""
    pixel_size_m: tuple[float, float] | None = None
    """(height, width) of an object pixel."""
    energy_ev: float = 0.0
    """Zero where not given."""
    distance_m: float = 0.0
    """Zero where not given."""
    scan_index: int | None = None
    """Which of the scans in the file is read; None takes the only one."""
    dark_frames: Literal["refuse", "drop"] = "refuse"
    """Frames without light, or of which a part was never written."""
    stray_frames: Literal["refuse", "drop", "keep"] = "refuse"
    """A few frames that lie far from all others."""
    bad_pixels: str = FROM_FILE
    """Which pixels are bad: see `source.bad_pixels` in ptycho_tasks/config/sections.py."""
    saturated: float | None = None
    """Counts from which on a pixel of a frame is bad."""
    negative_counts: Literal["refuse", "clip", "mask"] = "refuse"
    """Negative values that are no mark of a bad pixel."""
    probe: Literal["estimate"] | Path | None = None
    """Whether the probe is estimated from the frames, or the file that holds it; None takes that of
    the scan."""
    positions: Path | None = None
    """A file that holds the positions; None takes those of the scan."""
    datasets: Mapping[str, str] | None = None
    """Our keys to paths in an HDF5 file of any layout."""
    orientation: OrientationOptions = _AS_IT_IS
    """How the positions lie to the columns and rows of the frames."""
    centre: Literal["auto", "corner"] | Sequence[float] | None = None
    """[row, column] of the zero frequency in a frame of the file; auto finds it; None is the
    middle."""
    crop: int | None = None
    """Pixels along a side of the square around the centre that is taken; None takes all."""
    bin: int = 1
    """Pixels along a side that are read as one."""
    follow: tuple[Path, ...] = ()
    """Folders besides the scan's own that may hold a part of it."""
    reader: str | None = None
    """The name of the reader; None has the file recognised."""
    has_product: bool = False
    """Whether a product gives the positions, the probe and the object."""

    @property
    def needs_positions(self) -> bool:
        """Whether the scan's own file must give the positions."""
        return not self.has_product and self.positions is None

    @property
    def needs_probe(self) -> bool:
        """Whether the scan's own file must give the probe."""
        return not self.has_product and self.probe is None


def refused(path: Path, key: str, found: str, expected: str, advice: str) -> ScanError:
    """One line: file, key, what is wrong, what was expected, what to do."""
    return ScanError(one_line(f"{path}: key {key!r} {found}; expected {expected}; {advice}"))


def check_stack(frames: Keyed) -> None:
    """Refuse frames that are not a stack of images with at least one pixel.

    Raises:
        ScanError: not three axes, or an empty one.
    """
    shape = frames.array.shape
    if len(shape) != 3:
        raise frames.refused(
            f"is {_described(frames.array)}", "three axes (M, N, N)", "correct the file"
        )
    if 0 in shape:
        raise frames.refused(f"is empty, {shape}", "(M, N, N)", "give a scan with frames")


def whole_numbers(keyed: Keyed) -> NDArray[np.int64]:
    """(M,) int64 copy of numbers of frames.

    Raises:
        ScanError: not one axis, or not whole numbers.
    """
    values = finite_column(keyed)
    if (values != np.rint(values)).any() or (np.abs(values) > 2**53).any():
        raise keyed.refused("has fractions or huge values", "(M,) frame numbers", "correct it")
    return values.astype(np.int64)


def frame_numbers(indexes: Keyed | None) -> NDArray[np.int64] | None:
    """(M,) the numbers that Ptychodus gives to frames, by which its products refer to them.

    Raises:
        ScanError: they are no numbers, or one stands twice.
    """
    if indexes is None:
        return None
    numbers = whole_numbers(indexes)
    values, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        raise indexes.refused(
            f"has the number {values[counts > 1][0]} twice", "a number a frame", "correct it"
        )
    return numbers


def first_variation(raw: RawScan, key: str, probe: Array) -> NDArray[Any]:
    """(N, N) or (P, N, N) of a probe that may have an axis of variations before that."""
    array: NDArray[Any] = np.asarray(probe[()])
    if array.ndim == 4 and len(array):
        if len(array) > 1:
            raw.note(f"{key}: first of {len(array)} probe variations taken")
        array = array[0]
    return array


def finite_column(keyed: Keyed) -> NDArray[np.float64]:
    """(M,) float64 copy of coordinates.

    Raises:
        ScanError: not one axis, not real numbers, NaN or Inf.
    """
    array = keyed.array
    if array.dtype.kind not in "fiu" or len(array.shape) != 1:
        raise keyed.refused(f"is {_described(array)}", "(M,) float64", "correct the file")
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array(array[:], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise keyed.refused(
            f"has NaN or Inf (first at frame {bad[0]})", "finite coordinates", "correct the file"
        )
    return values


@dataclass
class RawScan:
    """The arrays of one scan as found, before any check of their shapes and values.

    Whoever fills it sets at least `x`, `y` and `probe`, from the frames' file or from a product.
    """

    path: Path
    frames: Keyed
    """(M, N, N) or (N, N, M) real."""
    holds_counts: bool | None = None
    """Whether the format says that frames are counts; None leaves it to dtype and user."""
    x: Keyed | None = None
    """(M,) pixels."""
    y: Keyed | None = None
    """(M,) pixels."""
    probe: Keyed | None = None
    """(N, N) or (P, N, N) complex; None where it is to be estimated."""
    is_probe_estimated: bool = False
    """Whether the file says that its probe is an estimate."""
    object: Keyed | None = None
    """(H, W) complex."""
    scan_index: Keyed | None = None
    """(M,) integers."""
    positions_are_pixels: bool = False
    """Whether the reader has converted them, from units that the file says."""
    unit_m: float | None = None
    """What the unit of the positions is in metres, where the file says it; None: they are pixels.
    What the user says goes before it."""
    start_x: Keyed | None = None
    """(M,) pixels."""
    start_y: Keyed | None = None
    """(M,) pixels."""
    grid: int | None = None
    """Pixels along a side of the frames that `pixel_size_m` and positions in pixels are of; None:
    those of the scan's own probe, or else of its frames."""
    frame_axis: FrameAxis = "auto"
    """What the file says about the order of its axes."""
    rows: NDArray[np.int64] | None = None
    """(K,) sorted frames that positions exist for; None where each frame has one."""
    numbers: NDArray[np.int64] | None = None
    """(M,) frame numbers by which a product refers to the frames; None means 0, 1, ..."""
    pixel_size_m: tuple[float, float] | None = None
    energy_ev: float = 0.0
    distance_m: float = 0.0
    exposure_s: float = 0.0
    bad_pixels: Keyed | None = None
    """(N, N), or of the shape of the frames: not zero where the detector is not to be trusted."""
    good_bits: int = 0
    """Bits of an integer `bad_pixels` that say nothing bad."""
    unwritten: Callable[[int], NDArray[np.int64]] | None = None
    """Gives the frames, along an axis, of which a part was never written."""
    files: dict[Path, FileStamp] = field(default_factory=dict)
    """Further files that hold a part of the scan, and what they were when they were opened."""
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    """What looks as if it were not what it is taken for, in a sentence each."""
    _taken_window: Window | None = None
    """The part of the detector that is taken, where that is not all of it."""
    _bad: BadPixels = field(default_factory=lambda: BadPixels(0, None, ()))
    _clips: bool = False
    """Whether negative values are taken as zero."""
    _largest: float = 0.0
    """Amplitude."""
    _lit: list[NDArray[np.bool_]] = field(default_factory=list)
    """Whether a frame holds light, in the order in which they were read."""
    _measured: list[NDArray[np.bool_]] = field(default_factory=list)
    """Whether a frame has a good pixel, in the same order."""

    def note(self, sentence: str) -> None:
        """Keep and log what was changed on reading."""
        self.notes.append(one_line(sentence))
        _LOG.info("%s: %s", self.path, self.notes[-1])

    def note_files(self, path: Path, stamps: Mapping[Path, FileStamp]) -> None:
        """Note the files behind links in a file, of which the scan is read too."""
        if stamps:
            names = [file.name for file in stamps]
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            self.note(f"{len(names)} further files hold a part of {path.name}: {shown}")
        self.files |= stamps

    def checked(self, reading: Reading) -> ScanData:
        """Check everything, cheap checks first, and convert to canonical order and dtypes.

        Raises:
            ScanError: anything breaks the raw-scan contract.
        """
        assert self.x is not None
        assert self.y is not None
        positions = self._positions(self.x, self.y)
        axis = self._axis(reading.frame_axis, len(positions))
        scale = self._shape(axis, reading)
        size = self._size(axis)
        factor = self._pixels_a_unit(self.x, reading, scale)
        positions = positions * factor
        start = self._start_positions(len(positions))
        start = None if start is None else orient(start * factor, reading.orientation, positions)
        positions = orient(positions, reading.orientation, positions)
        index = self._scan_index(len(positions))
        keep = self._frames_of_scan(index, reading.scan_index, len(positions))
        keep = self._without_strays(positions, keep, size, reading.stray_frames)
        self._check_span(self.y, positions[:, 0], keep, size)
        self._check_span(self.x, positions[:, 1], keep, size)
        self._check_spread(positions[keep], explicit=reading.units != "auto")
        root = self._is_counts(reading.measurement)
        self._settle_bad_pixels(reading, axis, size, root)
        estimates = reading.probe == "estimate"
        scan = ScanData(
            positions=positions,
            probe=np.zeros((1, size, size), np.complex64) if estimates else self._probe(size),
            is_probe_estimated=estimates or self.is_probe_estimated,
            object=self._object(),
            scan_index=index,
            start_positions=start,
            diffraction=self._without_unlikely(self._diffraction(axis, root), reading.bad_pixels),
            bad_pixels=self._bad.everywhere,
            pixel_size_m=self.pixel_size_m,
            energy_ev=self.energy_ev,
            distance_m=self.distance_m,
            exposure_s=self.exposure_s,
            name=self.path.stem,
        )
        keep = self._without_dark(keep, axis, reading.dark_frames)
        if not _FAINTEST <= self._largest <= _BRIGHTEST:
            raise self.frames.refused(
                f"has {self._largest:.3g} as its largest amplitude",
                f"amplitudes of {_FAINTEST:g} to {_BRIGHTEST:g}, the square roots of counts",
                "scale the frames",
            )
        if len(keep) < scan.frame_count:
            scan = take_frames(scan, keep)
        if estimates:
            scan = replace(scan, probe=estimate_probe(scan.diffraction))
            self.note("probe: estimated from the mean frame: in focus, centred")
        for line in self._bad.describe():
            self.note(f"{self.frames.key}: {line}")
        return replace(scan, notes=tuple(self.notes), files=self.files, doubts=tuple(self.doubts))

    def _positions(self, x: Keyed, y: Keyed) -> NDArray[np.float64]:
        columns = [self._column(y), self._column(x)]
        if len(columns[0]) != len(columns[1]):
            raise x.refused(
                f"has {len(columns[1])} entries but {y.key!r} has {len(columns[0])}",
                "one position a frame in both",
                "correct the file",
            )
        return np.stack(columns, axis=1)

    def _column(self, keyed: Keyed) -> NDArray[np.float64]:
        values = finite_column(keyed)
        self._note_cast(keyed, np.dtype(np.float64))
        return values

    def _axis(self, frame_axis: FrameAxis, count: int) -> int:
        """Which axis numbers the frames: 0 or -1."""
        check_stack(self.frames)
        shape = self.frames.array.shape
        said = self.frame_axis if frame_axis == "auto" else frame_axis
        axis = {"auto": self._told_axis(count), "first": 0, "last": -1}[said]
        if axis is None:
            raise self.frames.refused(
                f"has shape {shape}, so that the order of its axes cannot be told",
                "a config that says it",
                "set frame_axis to first or last",
            )
        self._check_count(axis, count)
        self._settle_rows(axis)
        if axis == -1:
            self.note(f"{self.frames.key}: frames moved from the last axis to the first")
        return axis

    def _told_axis(self, count: int) -> int | None:
        first, middle, last = self.frames.array.shape
        from_positions = self.rows is None
        as_first = middle == last and (first == count or not from_positions)
        as_last = first == middle and (last == count or not from_positions)
        if as_first and as_last:
            return None
        if as_first or as_last:
            return 0 if as_first else -1
        # Neither fits: choose the order in which the message says most.
        return -1 if first != count and (last == count or first == middle) else 0

    def _check_count(self, axis: int, count: int) -> None:
        shape = self.frames.array.shape
        if self.rows is None and shape[axis] != count:
            position_key = self.x.key if self.x else "positions"
            raise self.frames.refused(
                f"has {shape[axis]} frames (shape {shape}) but {position_key!r} has {count}",
                "one position a frame",
                "correct the file, or set frame_axis if the order is another",
            )
        if self.numbers is not None and len(self.numbers) != shape[axis]:
            raise self.frames.refused(
                f"has {shape[axis]} frames (shape {shape}) but {len(self.numbers)} frame numbers",
                "one number a frame",
                "correct the file, or set frame_axis if the order is another",
            )
        if self.rows is not None and self.rows[-1] >= shape[axis]:
            raise self.frames.refused(
                f"has {shape[axis]} frames, but the product has a position for frame "
                f"{self.rows[-1]}",
                "the frames that the product was made from",
                "give the product's own frames",
            )

    def _settle_rows(self, axis: int) -> None:
        if self.rows is None:
            return
        total, taken = self.frames.array.shape[axis], len(self.rows)
        if taken == total:
            self.rows = None
        else:
            self.note(f"{self.frames.key}: {total - taken} of {total} frames have no position")

    def _shape(self, axis: int, reading: Reading) -> float:
        """Take the part of each frame that is asked for, and of the probe what belongs to it.

        Returns:
            What positions in pixels are to be multiplied by.
        """
        if reading.orientation != _AS_IT_IS:
            self._leave_out_object("orientation moves positions on it")
        if reading.centre is None and reading.crop is None and reading.bin == 1:
            return 1.0
        window = self._window(axis, reading)
        if window is None:  # `_size` says what is wrong
            return 1.0
        grid = self.grid or self._probe_side(reading) or window.frame[0]
        if grid == window.size:  # as it is to be
            grid = window.side
        scale = window.side / grid
        if not window.is_whole:
            self._cut(axis, window, scale, reading)
        return scale

    def _window(self, axis: int, reading: Reading) -> Window | None:
        """The part of the detector that is asked for; None where it cannot be told.

        Raises:
            ScanError: the detector has no such part.
        """
        shape = self.frames.array.shape
        frame = (shape[1], shape[2]) if axis == 0 else (shape[0], shape[1])
        if reading.crop is None and (frame[0] != frame[1] or frame[0] % 2):
            return None
        try:
            window = choose_window(frame, self._centre(axis, reading), reading.crop, reading.bin)
            return replace(window, from_corner=reading.centre == "corner")
        except ValueError as error:
            raise self.frames.refused(
                f"has frames of {frame[0]} x {frame[1]} pixels: {error}",
                "an even number of pixels after source.crop and source.bin, within the frames",
                "correct the setting",
            ) from error

    def _cut(self, axis: int, window: Window, scale: float, reading: Reading) -> None:
        """Take a part of each frame, and what belongs to it of all else."""
        are_counts = self._is_counts(reading.measurement)
        frames = ShapedFrames(self.frames.array, axis, window, are_counts=are_counts)
        self.frames = replace(self.frames, array=frames)
        self._cut_probe(window)
        self._taken_window = window
        if scale != 1.0:
            self._leave_out_object("crop changes its pixels")
            if self.pixel_size_m is not None:
                height, width = self.pixel_size_m
                self.pixel_size_m = height / scale, width / scale
        y, x = window.corner
        side, (rows, columns) = window.side, window.frame
        binned = f", {window.bin} x {window.bin} pixels as one" if window.bin > 1 else ""
        binned += ", zero frequency moved from the corner to the middle" * window.from_corner
        self.note(
            f"{self.frames.key}: {side} x {side} of {rows} x {columns} pixels taken, from ({y}, "
            f"{x}){binned}"
        )

    def _centre(self, axis: int, reading: Reading) -> tuple[int, int] | None:
        """The pixel where the zero frequency lies; None is the middle."""
        if reading.centre is None or reading.centre == "corner":
            return None
        if reading.centre == "auto":
            are_counts = self._is_counts(reading.measurement)
            y, x = find_centre(self.frames.array, axis, are_counts=are_counts)
            self.note(f"{self.frames.key}: zero frequency found at pixel ({y}, {x})")
        else:
            y, x = (int(np.rint(value)) for value in reading.centre)
        return y, x

    def _probe_side(self, reading: Reading) -> int | None:
        """N of the scan's own probe."""
        if self.probe is None or reading.probe is not None or not self.probe.array.shape:
            return None
        return int(self.probe.array.shape[-1])

    def _cut_probe(self, window: Window) -> None:
        """Cut the probe as the frames, where it is not so already."""
        probe = self.probe
        if probe is None or probe.array.shape[-1] == window.size:
            return
        values = self._complex(probe)
        if values.ndim in (2, 3) and values.shape[-1] == values.shape[-2]:
            cut = window.cut_probe(values.reshape(-1, *values.shape[-2:]))
            self.probe = replace(probe, array=cut)

    def _cut_mask(self, keyed: Keyed | None, axis: int) -> Keyed | None:
        """Cut a mask of the detector as the frames; what lies beyond it is bad."""
        window = self._taken_window
        if window is None:
            return keyed
        if keyed is None:
            outside = window.mask_outside()
            found = Keyed(self.path, "source.centre", outside)
            return found if outside.any() else None
        shape = tuple(keyed.array.shape)
        frame = shape[1:] if axis == 0 or len(shape) == 2 else shape[:2]
        if (shape if len(shape) == 2 else frame) != window.frame:
            return keyed
        values = self._as_mask(np.asarray(keyed.array[:]))
        self.good_bits = 0
        if len(shape) == 2:
            return replace(keyed, array=window.cut_masks(values[None])[0])
        cut = window.cut_masks(values if axis == 0 else np.moveaxis(values, -1, 0))
        return replace(keyed, array=cut if axis == 0 else np.moveaxis(cut, 0, -1))

    def _leave_out_object(self, reason: str) -> None:
        if self.object is not None:
            self.note(f"{self.object.key}: left out: {reason}")
            self.object = None

    def _size(self, axis: int) -> int:
        shape = self.frames.array.shape
        height, width = shape[1:] if axis == 0 else shape[:2]
        if height != width:
            raise self.frames.refused(
                f"has frames of {height} x {width} pixels (shape {shape})",
                "square frames",
                f"set source.crop to {min(height, width) // 2 * 2} or less, and source.centre to "
                "the zero frequency where that is not in the middle",
            )
        if height % 2:
            raise self.frames.refused(
                f"has frames of {height} x {width} pixels",
                "an even size",
                f"set source.crop to {height - 1} or less",
            )
        return int(height)

    def _pixels_a_unit(self, x: Keyed, reading: Reading, scale: float) -> NDArray[np.float64]:
        """(2,) what a unit of (y, x) is in pixels; `scale` is what one of the file is."""
        metres = self.unit_m if reading.units == "auto" else METRES.get(reading.units)
        if metres is None or self.positions_are_pixels:
            return np.full(2, scale)
        unit = f"a unit of {metres:g} m" if reading.units == "auto" else reading.units
        if self.pixel_size_m is None:
            says = "as source.units says" if reading.units != "auto" else "as the file says"
            raise x.refused(
                f"is in {unit}, {says}, and the size of a pixel is unknown",
                "the size of an object pixel",
                "set source.pixel_size_m",
            )
        self.note(f"{x.key}: {unit} converted to pixels")
        return metres / np.array(self.pixel_size_m)

    def _frames_of_scan(
        self, index: NDArray[np.int64] | None, wanted: int | None, count: int
    ) -> NDArray[np.int64]:
        """(K,) frames of the scan that is wanted; all where none is named.

        Raises:
            ScanError: there is no such scan.
        """
        if wanted is None:
            return np.arange(count)
        of_frame = np.zeros(count, np.int64) if index is None else index
        values = np.unique(of_frame)
        if wanted not in values:
            raise (self.scan_index or self.frames).refused(
                f"holds no scan {wanted} (scans: {ranges(values)})",
                "one that is there",
                "correct source.scan_index",
            )
        if len(values) > 1:
            self.note(f"scan_index: scan {wanted} of {len(values)} taken")
        return np.flatnonzero(of_frame == wanted)

    def _without_strays(
        self, positions: NDArray[np.float64], keep: NDArray[np.int64], size: int, do: str
    ) -> NDArray[np.int64]:
        """The frames without the few that lie far from all others, where that is wanted."""
        if do == "keep" or len(keep) < 2:
            return keep
        astray = _astray(positions[keep], size)
        if not astray.any():
            return keep
        numbers = self._numbered(keep[astray])
        y, x = positions[keep[astray][0]]
        middle = np.median(positions[keep], axis=0)
        column = self.x if abs(x - middle[1]) > abs(y - middle[0]) else self.y
        assert column is not None
        with_all, without = (_extent(positions[one], size) for one in (keep, keep[~astray]))
        found = (
            f"puts {numbers} far from all others (the first at y {y:.6g}, x {x:.6g}), which would "
            f"make the object {with_all} pixels instead of {without}"
        )
        if do == "drop":
            self.note(f"{column.key}: left out {numbers}, far from all others")
            return keep[~astray]
        raise column.refused(
            found,
            "frames that overlap",
            "correct the positions, or set source.stray_frames to drop or keep",
        )

    def _numbered(self, frames: NDArray[np.int64]) -> str:
        """Frames by their place in the file, in words."""
        places = frames if self.rows is None else self.rows[frames]
        return f"frame{'s' if len(places) > 1 else ''} {ranges(places)}"

    def _check_span(
        self, keyed: Keyed, column: NDArray[np.float64], keep: NDArray[np.int64], size: int
    ) -> None:
        """Refuse positions that ask for an object that no memory holds."""
        values = column[keep]
        with np.errstate(over="ignore"):
            span = np.ptp(values) + size
            place = int(np.argmax(np.abs(values - np.sort(values)[len(values) // 2])))
        if span > _LARGEST_OBJECT or np.abs(values).max() > _FARTHEST:
            raise keyed.refused(
                f"has {values[place]:g} at {self._numbered(keep[place : place + 1])}",
                f"pixels, at most {_LARGEST_OBJECT - size} apart and not beyond {_FARTHEST:g}",
                "correct it, or " + self._advice_on_units(),
            )

    def _check_spread(self, positions: NDArray[np.float64], *, explicit: bool) -> None:
        """Refuse positions that hardly differ: they are in another unit, or missing."""
        if len(positions) < 2:
            return
        assert self.x is not None
        spans = np.ptp(positions, axis=0)
        if not spans.any():
            raise self.x.refused(
                f"and the other axis put all {len(positions)} frames in one place",
                "frames at different places, which overlap",
                "correct the positions",
            )
        places = len(np.unique(np.round(positions, 6), axis=0))
        dense = spans.min() > 0 and spans.prod() < _FEWEST_PIXELS_A_FRAME * places
        if not explicit and (spans.max() < 1 or dense):
            raise self.x.refused(
                f"and the other axis span {spans[1]:.3g} x {spans[0]:.3g} pixels (x, y) with "
                f"{len(positions)} frames",
                "positions in pixels of the object",
                self._advice_on_units(),
            )

    def _advice_on_units(self) -> str:
        if self.positions_are_pixels:
            return "set source.pixel_size_m, energy_ev or distance_m if what the file says is wrong"
        return (
            "set source.units (and source.pixel_size_m) if they are in metres or the like, or "
            "units: pixels if they are right"
        )

    def _settle_bad_pixels(self, reading: Reading, axis: int, size: int, root: bool) -> None:
        """Decide how bad pixels are told."""
        self._choose_mask(reading.bad_pixels)
        self.bad_pixels = self._cut_mask(self.bad_pixels, axis)
        mask = self._take_whole_mask(size)
        marks: list[Mark] = []
        if reading.bad_pixels not in (IGNORE, ONLY_MARKED):
            takes_negative = reading.negative_counts == "refuse"
            sample = self._sample(axis)
            marks += find_marks(sample, holds_counts=root, takes_negative=takes_negative)
        if reading.saturated is not None:
            # Single precision rounds a root up or down.
            least = reading.saturated if root else (1 - 1e-6) * reading.saturated**0.5
            marks.append(Mark(f"saturated from {reading.saturated:g} counts on", least, np.inf))
        if reading.negative_counts == "mask":
            marks.append(Mark("negative", -np.inf, -np.finfo(np.float64).tiny))
        self._clips = reading.negative_counts == "clip"
        self._bad = BadPixels(size, mask, marks)

    def _choose_mask(self, setting: str) -> None:
        """Take the mask that is to be used: the file's own, or the one that a setting names."""
        keyed = self.bad_pixels
        if setting == IGNORE:
            if keyed is not None and np.any(keyed.array[:]):
                self.note(f"{keyed.key}: ignored, its bad pixels count as measured")
            self.bad_pixels = None
        elif setting not in (FROM_FILE, ONLY_MARKED, SEARCH, keyed and keyed.key):
            self.bad_pixels = self._read_mask(setting)
            self.good_bits = 0

    def _read_mask(self, setting: str) -> Keyed:
        """The mask in a file of its own.

        Raises:
            ScanError: it is no file, or one without a mask.
        """
        if not is_mask_file(setting):
            raise refused(
                self.path,
                setting,
                "is missing",
                "the mask that source.bad_pixels names",
                "name a key of the file, a file (npy, npz, h5, tif), or auto, marked or ignore",
            )
        path = Path(setting)
        key, array = read_mask(path)
        stamp = file_stamp(path)
        self.files |= {} if stamp is None else {path: stamp}
        return Keyed(path, key, array)

    def _take_whole_mask(self, size: int) -> NDArray[np.bool_] | None:
        """(N, N) pixels that the mask says are bad in every frame; leaves one of single frames."""
        keyed = self.bad_pixels
        if keyed is None:
            return None
        shape, whole = tuple(keyed.array.shape), (size, size)
        if keyed.array.dtype.kind not in "biuf" or shape not in (whole, self.frames.array.shape):
            raise keyed.refused(
                f"is {_described(keyed.array)}",
                f"({size}, {size}) bool, or one for each frame",
                "correct or remove it, or set source.bad_pixels",
            )
        if shape != whole:
            return None
        self.bad_pixels = None
        mask = self._as_mask(keyed.array[:])
        if mask.all():
            raise keyed.refused(
                f"marks all {mask.size} pixels as bad",
                "a detector that measures",
                "correct it (true, or not zero, is bad), or set source.bad_pixels",
            )
        return mask

    def _as_mask(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """True where values of a mask mean a bad pixel."""
        if values.dtype.kind in "iu" and self.good_bits:
            values = values.astype(np.int64) & ~self.good_bits
        return np.asarray(values != 0)

    def _sample(self, axis: int) -> NDArray[Any]:
        """Some frames, as the file holds them."""
        count = self._taken(axis)
        some = evenly_spaced(count, min(SAMPLED, count))
        rows = some if self.rows is None else self.rows[some]
        # One by one: HDF5 reads lists of frames slowly, and of damaged virtual datasets not at all.
        return np.concatenate([self._part(self.frames, one, axis) for one in rows[:, None]])

    def _find_bad(self, frames: NDArray[Any], first: int, axis: int) -> NDArray[np.bool_] | None:
        """(m, N, N) bad pixels of frames of which the first has this place; None if none is."""
        masks = None
        if self.bad_pixels is not None:
            places = np.arange(first, first + len(frames))
            rows = places if self.rows is None else self.rows[places]
            masks = self._as_mask(self._part(self.bad_pixels, rows, axis))
        return self._bad.find(frames, masks)

    def _without_unlikely(
        self, diffraction: NDArray[np.float32], setting: str
    ) -> NDArray[np.float32]:
        """Frames without pixels that only look bad."""
        if setting in (IGNORE, ONLY_MARKED):
            return diffraction
        some = evenly_spaced(len(diffraction), min(SAMPLED, len(diffraction)))
        sample = np.asarray(diffraction[some])
        found = {"hot": find_glaring(sample)}
        if setting == SEARCH:
            hot, dead = search_closely(sample)
            found = {"hot": found["hot"] | hot, "dead": dead & _is_always_dark(diffraction, dead)}
        elif found["hot"].any():
            self.doubts.append(
                f"{self.frames.key}: {np.count_nonzero(found['hot'])} pixels far brighter than "
                "their neighbours in every frame are taken as bad; set source.bad_pixels to marked "
                "if they are right, or to auto to look closely"
            )
        unlikely = np.logical_or.reduce([*found.values()])
        if not unlikely.any():
            return diffraction
        for reason, pixels in found.items():
            self._bad.add(reason, pixels)
        if not diffraction.flags.writeable:
            self._refuse_too_large(diffraction.size)
            diffraction = np.array(diffraction)
        diffraction[:, unlikely] = np.nan
        return diffraction

    def _without_dark(self, keep: NDArray[np.int64], axis: int, do: str) -> NDArray[np.int64]:
        """The frames without those that hold no light, or were not written whole."""
        lit, measured = (np.concatenate(one)[keep] for one in (self._lit, self._measured))
        places = keep if self.rows is None else self.rows[keep]
        whole = ~np.isin(places, self.unwritten(axis) if self.unwritten else [])
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
            raise self.frames.refused(
                f"is dark: {found}", "frames with light", "give a complete scan"
            )
        if do == "drop":
            self.note(f"{self.frames.key}: left out, with their positions: {found}")
            return keep[lit & whole]
        raise self.frames.refused(
            f"is dark in part: {found}",
            "light in every frame",
            "set source.dark_frames to drop to leave them out",
        )

    def _is_counts(self, measurement: Measurement) -> bool:
        dtype = self.frames.array.dtype
        if dtype.kind not in "fiu":
            raise self.frames.refused(
                f"is {_described(self.frames.array)}",
                "real numbers (amplitude or counts)",
                "give the measured frames, not a wave field",
            )
        if measurement != "auto":
            return measurement == "counts"
        if self.holds_counts is None and dtype.kind in "iu":
            raise self.frames.refused(
                f"holds integers ({dtype})",
                "float32 amplitude, the square root of counts",
                "set measurement to counts, and the square root is taken",
            )
        return bool(self.holds_counts)

    def _diffraction(self, axis: int, root: bool) -> NDArray[np.float32]:
        array = self.frames.array
        if root:
            self.note(f"{self.frames.key}: square root of counts taken")
        self._note_cast(self.frames, np.dtype(np.float32))
        canonical = array.dtype == np.float32 and axis == 0 and not root and self.rows is None
        if canonical and isinstance(array, np.ndarray) and array.flags.c_contiguous:
            if self._is_canonical(axis):
                return array
            self._bad.restart()
            self._lit.clear()
            self._measured.clear()
        self._refuse_too_large(self._taken(axis) * array.shape[1] ** 2)
        return self._converted(axis, root)

    def _is_canonical(self, axis: int) -> bool:
        """Whether frames are as they are to be: every bad pixel is NaN already."""
        for first, frames in self._frames(axis):
            bad = self._find_bad(frames, first, axis)
            if bad is not None and not np.isnan(frames[bad]).all():
                return False
            if self._clips and (frames < 0).any():
                return False
            self._check_values(frames, bad, first)
            self._note_light(frames, bad)
        return True

    def _refuse_too_large(self, pixels: int) -> None:
        needed = 4.0 * pixels
        if not has_memory_for(needed):
            raise self.frames.refused(
                f"is {_described(self.frames.array)}, {format_gb(needed)} of amplitudes, of which "
                f"{format_gb(available_bytes())} fit into memory now",
                "frames that fit",
                "take fewer of them into a file, or an uncompressed NPZ of float32 amplitudes "
                "with NaN where pixels are bad, which is memory-mapped",
            )

    def _note_light(self, frames: NDArray[Any], bad: NDArray[np.bool_] | None) -> None:
        """Note which frames hold light and which have good pixels, of canonical frames."""
        largest = np.asarray((np.max if bad is None else np.fmax.reduce)(frames, axis=(1, 2)))
        self._largest = max(self._largest, float(np.nan_to_num(largest).max()))
        self._lit.append(largest > 0)
        self._measured.append(~np.isnan(largest))

    def _converted(self, axis: int, root: bool) -> NDArray[np.float32]:
        shape, count = self.frames.array.shape, self._taken(axis)
        out = np.empty((count, shape[1], shape[1]), dtype=np.float32)
        done = 0
        for first, frames in self._frames(axis):
            bad = self._find_bad(frames, first, axis)
            self._check_values(frames, bad, first)
            if self._clips and frames.dtype.kind != "u":
                frames = np.maximum(frames, 0)
            part = out[done : done + len(frames)]
            with np.errstate(over="ignore", invalid="ignore"):
                part[...] = np.sqrt(frames, dtype=_root_dtype(frames)) if root else frames
            if frames.dtype.itemsize > part.dtype.itemsize:
                self._check_values(part, bad, first)
            if bad is not None:
                part[bad] = np.nan
            self._note_light(part, bad)
            done += len(frames)
        return out

    def _taken(self, axis: int) -> int:
        return self.frames.array.shape[axis] if self.rows is None else len(self.rows)

    def _frames(self, axis: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Pairs of first frame's place in the scan and (m, N, N) frames, a chunk at a time."""
        array = self.frames.array
        shape = (self._taken(axis), array.shape[1], array.shape[1])
        for part in row_chunks(shape, array.dtype):
            rows = np.arange(part.start, part.stop) if self.rows is None else self.rows[part]
            yield part.start, self._part(self.frames, rows, axis)
            release_pages(array)

    @staticmethod
    def _part(keyed: Keyed, rows: NDArray[np.int64], axis: int) -> NDArray[Any]:
        """(m, N, N) some frames of a stack, or their masks."""
        wanted = _as_slice(rows)
        try:
            frames = np.asarray(keyed.array[wanted] if axis == 0 else keyed.array[:, :, wanted])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise keyed.refused(
                f"cannot be read: {' '.join(str(error).split())}",
                "a complete file, with compression that h5py knows",
                "copy it again, install hdf5plugin, or rewrite it with h5repack",
            ) from error
        return frames if axis == 0 else np.moveaxis(frames, -1, 0)

    def _check_values(
        self, frames: NDArray[Any], bad: NDArray[np.bool_] | None, first: int
    ) -> None:
        """Refuse values of good pixels that are no measurement."""
        if bad is not None:
            frames = np.where(bad, frames.dtype.type(0), frames)
        if frames.dtype.kind == "f" and max(frames.max(), -frames.min()) == np.inf:
            place = int(np.argmax(np.isinf(frames).any(axis=(1, 2))))
            found = "Inf, or values beyond single precision"
            advice = "correct it, or write NaN where a pixel is bad"
            raise self._bad_frame(first + place, found, "finite values", advice)
        if frames.dtype.kind != "u" and frames.min() < 0 and not self._clips:
            place = int(np.argmax(frames.min(axis=(1, 2)) < 0))
            raise self._bad_frame(
                first + place,
                f"negative values, down to {frames.min():.3g}",
                "values of at least zero",
                "set source.negative_counts to clip (to zero) or mask, if a dark image was "
                "subtracted",
            )

    def _bad_frame(self, place: int, found: str, expected: str, advice: str) -> ScanError:
        frame = place if self.rows is None else int(self.rows[place])
        return self.frames.refused(f"has {found} (first at frame {frame})", expected, advice)

    def _probe(self, size: int) -> NDArray[np.complex64]:
        keyed = self.probe
        assert keyed is not None
        shape = keyed.array.shape
        if len(shape) not in (2, 3) or keyed.array.dtype.kind not in "cf" or 0 in shape:
            raise keyed.refused(
                f"is {_described(keyed.array)}", "(N, N) or (P, N, N) complex64", "correct the file"
            )
        if shape[-2:] != (size, size):
            raise keyed.refused(
                f"has shape {shape} but frames are {size} x {size}",
                f"({size}, {size}) or (P, {size}, {size})",
                "crop or pad the probe",
            )
        if keyed.array.dtype.kind == "f":
            self.doubts.append(
                f"{keyed.key}: holds real numbers, and is taken as a wave without a phase; give a "
                "complex probe if this is an intensity or a modulus"
            )
        probe = self._complex(keyed)
        if not probe.any():
            raise keyed.refused("is zero everywhere", "an illumination", "give a probe guess")
        largest = float(np.abs(probe).max())
        if not _SMALLEST_PROBE <= largest <= _LARGEST_PROBE:
            raise keyed.refused(
                f"has {largest:.3g} as its largest modulus",
                f"{_SMALLEST_PROBE:g} to {_LARGEST_PROBE:g}, the square root of counts",
                "scale the probe",
            )
        return probe.reshape(-1, size, size)

    def _object(self) -> NDArray[np.complex64] | None:
        keyed = self.object
        if keyed is None:
            return None
        shape = keyed.array.shape
        if len(shape) != 2 or keyed.array.dtype.kind not in "cf" or 0 in shape:
            raise keyed.refused(
                f"is {_described(keyed.array)}", "(H, W) complex64", "correct or remove it"
            )
        return self._complex(keyed)

    def _complex(self, keyed: Keyed) -> NDArray[np.complex64]:
        self._note_cast(keyed, np.dtype(np.complex64))
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.array(keyed.array[:], dtype=np.complex64)
        if not np.isfinite(values).all():
            raise keyed.refused("has NaN or Inf", "finite values", "correct the file")
        return values

    def _scan_index(self, count: int) -> NDArray[np.int64] | None:
        keyed = self.scan_index
        if keyed is None:
            return None
        array = keyed.array
        if array.dtype.kind not in "iu" or tuple(array.shape) != (count,):
            raise keyed.refused(
                f"is {_described(array)}", f"({count},) int64, one a frame", "correct or remove it"
            )
        values = array[:]
        if len(values) and int(values.max()) > np.iinfo(np.int64).max:
            raise keyed.refused(
                f"holds {int(values.max())}", "numbers below 2^63", "correct or remove it"
            )
        self._note_cast(keyed, np.dtype(np.int64))
        return np.array(values, dtype=np.int64)

    def _start_positions(self, count: int) -> NDArray[np.float64] | None:
        present = self.start_x or self.start_y
        if present is None:
            return None
        if self.start_x is None or self.start_y is None:
            raise present.refused(
                "stands alone", "both xcoords_start and ycoords_start", "add or remove one"
            )
        start = self._positions(self.start_x, self.start_y)
        if len(start) != count:
            raise present.refused(
                f"has {len(start)} entries", f"{count}, one a frame", "correct or remove it"
            )
        return start

    def _note_cast(self, keyed: Keyed, dtype: np.dtype[Any]) -> None:
        if keyed.array.dtype != dtype:
            self.note(f"{keyed.key}: {keyed.array.dtype} cast to {dtype}")


def estimate_probe(diffraction: NDArray[np.float32]) -> NDArray[np.complex64]:
    """A first guess of a probe, from the frames alone: in focus, centred, of their mean counts.

    The mean frame is about the light in the aperture, blurred by what the object scatters. Of its
    phase nothing is known but that most of it is defocus, which can be searched: it is flat here.

    Args:
        diffraction: (M, N, N) amplitude, zero frequency at index N//2; may be a memmap.

    Returns:
        (1, N, N).
    """
    total, count = (np.zeros(diffraction.shape[1:]) for _ in range(2))
    for part in row_chunks(diffraction.shape, diffraction.dtype):
        counts = np.square(diffraction[part], dtype=np.float64)
        total += np.nansum(counts, axis=0)
        count += np.isfinite(counts).sum(axis=0)
        release_pages(diffraction)
    aperture = np.fft.ifftshift(np.sqrt(fill_nearest(total / np.maximum(count, 1), count > 0)))
    focus = np.fft.fftshift(np.fft.ifft2(aperture, norm="ortho"))
    return focus[None].astype(np.complex64)


def _is_always_dark(
    diffraction: NDArray[np.float32], pixels: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N, N) which of some pixels are zero in every frame."""
    dark = pixels.copy()
    if pixels.any():
        for part in row_chunks(diffraction.shape, diffraction.dtype):
            dark[pixels] &= ~(diffraction[part][:, pixels] > 0).any(axis=0)
            release_pages(diffraction)
    return np.asarray(dark)


def ranges(numbers: NDArray[np.int64]) -> str:
    """Sorted numbers in a few words: `3, 7-9, 12`."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(words[:6]) + (", ..." if len(words) > 6 else "")


def _extent(positions: NDArray[np.float64], size: int) -> str:
    rows, columns = np.ptp(positions, axis=0) + size
    return f"{rows:.0f} x {columns:.0f}"


def _astray(positions: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """(M,) frames in small groups whose patches are a patch or more away from all others.

    Positions are gathered in cells of N pixels; cells that touch belong together. A scan that
    falls into many such groups, or into large ones, was meant so.
    """
    cells, of_frame = np.unique(np.floor(positions / size), axis=0, return_inverse=True)
    group = _touching([(row, column) for row, column in cells.tolist()])[of_frame.reshape(-1)]
    counts = np.bincount(group)
    few = max(1.0, _FEW * len(positions))
    astray = (counts <= few)[group] & (counts.max() > few)
    return astray if np.count_nonzero(astray) <= few else np.zeros_like(astray)


def _touching(cells: list[tuple[float, float]]) -> NDArray[np.int64]:
    """(C,) the number of the group of each cell; cells that touch, at a corner too, are in one."""
    left = {cell: index for index, cell in enumerate(cells)}
    group = np.zeros(len(cells), dtype=np.int64)
    number = -1
    while left:
        number += 1
        reached = [next(iter(left))]
        group[left.pop(reached[0])] = number
        while reached:
            row, column = reached.pop()
            for cell in ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
                if cell in left:
                    group[left.pop(cell)] = number
                    reached.append(cell)
    return group


def _described(array: Array) -> str:
    return f"{array.dtype} of shape {tuple(array.shape)}"


def _root_dtype(frames: NDArray[Any]) -> np.dtype[Any]:
    # Integers have no square root in their own type; 64 bits keep every count exact.
    return frames.dtype if frames.dtype.kind == "f" else np.dtype(np.float64)


def _as_slice(rows: NDArray[np.int64]) -> Any:
    """Neighbouring rows as a slice, which files read faster than a list of rows."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
