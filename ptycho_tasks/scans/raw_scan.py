"""A scan as a file holds it, and how it is to be read; `conversion` makes a `ScanData` of it.

Every acceptance is noted in one sentence and logged; every refusal is a ScanError of one line
that names the file, the key, what was expected and what to do.

Axis letters:  M frames,  K frames taken,  N detector pixels along one side,  P probe modes.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError, one_line
from ptycho_tasks.options import OrientationOptions
from ptycho_tasks.scans.bad_pixels import (
    FROM_FILE,
)
from ptycho_tasks.system.files import FileStamp

Measurement = Literal["auto", "amplitude", "counts"]
FrameAxis = Literal["auto", "first", "last"]
Units = Literal["auto", "pixels", "m", "mm", "um", "nm"]
METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
"""What a unit of length is in metres."""
METRE_EV = 1.2398419843320026e-06
"""Wavelength in metres times photon energy in eV: Planck's constant times speed of light."""

WITHOUT_PROBE = "set source.probe to estimate to have one estimated from the frames"
"""What can be done where a scan has none."""

_NOISE = 2e-4
"""Relative: values that a monochromator reads back differ by less, and those of a spectrum by
more."""
_AS_IT_IS = OrientationOptions()
_LOG = logging.getLogger(__name__)


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

    def describe(self) -> str:
        """The type and the shape."""
        return f"{self.array.dtype} of shape {tuple(self.array.shape)}"


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
    mask_marks: Literal["bad", "good"] | None = None
    """What a mask is true for; None takes bad ones, unless these were more than half."""
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
    """Our keys to paths in a file of any layout; see `own_datasets`."""
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

    def __post_init__(self) -> None:
        """Take paths as text, too, as programs give them.

        Raises:
            ScanError: a setting has none of its values.
        """
        object.__setattr__(self, "follow", tuple(map(Path, self.follow)))
        for name, (values, takes_path) in _list_values().items():
            value = getattr(self, name)
            if not isinstance(value, str) or value in values:
                continue
            if not takes_path:
                raise ScanError(
                    f"source.{name}: expected {' or '.join(values)}, got {value!r}; correct it"
                )
            object.__setattr__(self, name, Path(value))

    @property
    def needs_positions(self) -> bool:
        """Whether the scan's own file must give the positions."""
        return not self.has_product and self.positions is None

    @property
    def own_datasets(self) -> dict[str, str]:
        """`datasets` in the scan's own file: where another holds the positions, `xcoords` and
        `ycoords` are columns of that."""
        elsewhere = () if self.positions is None else ("xcoords", "ycoords")
        return {key: at for key, at in (self.datasets or {}).items() if key not in elsewhere}

    @property
    def needs_probe(self) -> bool:
        """Whether the scan's own file must give the probe."""
        return not self.has_product and self.probe is None


@functools.cache
def _list_values() -> Mapping[str, tuple[tuple[str, ...], bool]]:
    """The words that a setting of `Reading` may be, and whether it may be a path; of those that may
    be either."""
    found = {}
    for name, kind in get_type_hints(Reading).items():
        parts = (kind, *get_args(kind))
        words = (get_args(part) for part in parts if get_origin(part) is Literal)
        found[name] = tuple(itertools.chain(*words)), Path in parts
    return {name: one for name, one in found.items() if any(one)}


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
        raise frames.refused(f"is {frames.describe()}", "three axes (M, N, N)", "correct the file")
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


def take_common(raw: RawScan, key: str, values: NDArray[Any]) -> float:
    """The number that an array holds, or the mean of several that are equal but for the noise of
    what measured them, as an energy for each frame is.

    Raises:
        ScanError: they differ, or one is no finite number.
    """
    numbers = np.ravel(values) if values.dtype.kind in "fiu" else np.empty(0)
    if not numbers.size or not np.isfinite(numbers).all():
        found = f"is {values.dtype} of shape {values.shape}, or not finite"
        raise refused(raw.path, key, found, "one finite number", "correct or remove it")
    mean, span = float(numbers.mean()), float(np.ptp(numbers))
    if span > _NOISE * abs(mean):
        raise refused(
            raw.path,
            key,
            f"holds {numbers.size} values from {numbers.min():.6g} to {numbers.max():.6g}",
            f"one for all frames, or values that differ by at most {_NOISE:g} of them",
            "give the frames of one alone, or set source.energy_ev, distance_m or pixel_size_m",
        )
    if span:
        raw.note(f"{key}: mean of {numbers.size} values from {numbers.min()} to {numbers.max()}")
    return float(numbers[0]) if not span else mean


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
        raise keyed.refused(f"is {keyed.describe()}", "(M,) float64", "correct the file")
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array(array[:], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise keyed.refused(
            f"has NaN or Inf (first at frame {bad[0]})", "finite coordinates", "correct the file"
        )
    return values


def ranges(numbers: NDArray[np.int64]) -> str:
    """Sorted numbers in a few words: `3, 7-9, 12`."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(words[:6]) + (", ..." if len(words) > 6 else "")


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

    def note_cast(self, keyed: Keyed, dtype: np.dtype[Any]) -> None:
        """Note that an array is taken in another type, if it is of one."""
        if keyed.array.dtype != dtype:
            self.note(f"{keyed.key}: {keyed.array.dtype} cast to {dtype}")

    def leave_out_object(self, reason: str) -> None:
        """Take no object, and note why."""
        if self.object is not None:
            self.note(f"{self.object.key}: left out: {reason}")
            self.object = None
