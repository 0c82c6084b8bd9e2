"""Frames of a dataset of Ptychodus as one array, of which a part is in memory at a time.

Axis letters:  M frames,  H, W rows and columns of the detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.reader import Reading
from ptycho_tasks.system.memory import available_bytes, format_gb, has_memory_for
from ptycho_tasks_ptychodus.opening import Opening


@dataclass(frozen=True)
class Window:
    """A part of the detector."""

    frame: tuple[int, int]
    """(H, W)."""
    corner: tuple[int, int]
    """(row, column) of its first pixel."""
    height: int
    width: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of it."""
        return (self.height, self.width) == self.frame

    def describe(self) -> str:
        """What was taken, for people."""
        (y, x), (rows, columns) = self.corner, self.frame
        return (
            f"{self.height} x {self.width} of {rows} x {columns} pixels taken, around (y, x) = "
            f"({y + self.height // 2}, {x + self.width // 2})"
        )

    def cut_mask(self, mask: NDArray[Any]) -> NDArray[Any]:
        """The part (height, width) of (H, W)."""
        y, x = self.corner
        return mask[y : y + self.height, x : x + self.width]


class Stack:
    """A window (M, height, width) of the frames of all files of a scan.

    Ptychodus reads a file at a time; the last one stays in memory.
    """

    def __init__(self, opening: Opening, dataset: Any, window: Window) -> None:
        """Take a window of the frames.

        Args:
            opening: in which files of them are read.
            dataset: Ptychodus' `DiffractionDataset`.
            window: what is read of each.
        """
        from ptychodus.api.diffraction import CropRegion

        self._opening = opening
        self._arrays = [array for array in dataset if len(array.get_indexes())]
        self._starts = np.cumsum([0, *(len(array.get_indexes()) for array in self._arrays)])
        y, x = window.corner
        self._region = CropRegion(x_range=(x, x + window.width), y_range=(y, y + window.height))
        self._last: tuple[int, NDArray[Any]] | None = None
        self.shape = (int(self._starts[-1]), window.height, window.width)
        self.dtype: np.dtype[Any] = np.dtype(dataset.get_metadata().pattern_dtype)

    def list_numbers(self) -> NDArray[np.int64]:
        """(M,) the numbers by which positions refer to the frames."""
        numbers = [np.asarray(array.get_indexes(), np.int64) for array in self._arrays]
        return np.concatenate(numbers) if numbers else np.empty(0, np.int64)

    def __getitem__(self, item: Any) -> NDArray[Any]:
        """Some of the frames, in memory.

        Raises:
            ScanError: a file does not hold what it said, or does not fit into memory.
        """
        places = np.atleast_1d(np.arange(self.shape[0])[item])
        out = np.empty((len(places), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._starts, places, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            out[mine] = self._read(int(owner))[places[mine] - self._starts[owner]]
        return out

    def _read(self, owner: int) -> NDArray[Any]:
        if self._last is not None and self._last[0] == owner:
            return self._last[1]
        self._last = None
        array = self._arrays[owner]
        shape = (len(array.get_indexes()), *self.shape[1:])
        needed = float(np.prod(shape)) * self.dtype.itemsize
        if not has_memory_for(needed):
            raise ScanError(
                f"{self._opening.path}: {array.get_label()} takes {format_gb(needed)} at once, of "
                f"which {format_gb(available_bytes())} fit into memory now; set source.crop"
            )
        with self._opening.read():
            patterns = np.asarray(array.get_patterns(read_region=self._region))
        if patterns.shape != shape:
            raise ScanError(
                f"{self._opening.path}: {array.get_label()} holds frames {patterns.shape}; "
                f"expected {shape}; copy it again, it may be truncated"
            )
        self._last = owner, patterns
        return patterns


def find_window(metadata: Any, reading: Reading) -> Window:
    """The largest square of even side around the beam, or as much of it as is asked for.

    Where the caller says where the zero frequency lies, in pixels of the detector, all of it is
    taken, and the core cuts.

    Args:
        metadata: Ptychodus' `DiffractionMetadata`; without a beam centre, the detector's middle
            counts.
        reading: what the caller says.

    Raises:
        ValueError: the beam is beside the detector.
    """
    extent, centre = metadata.detector_extent, metadata.beam_center
    height, width = extent.height_px, extent.width_px
    if reading.centre is not None:
        return Window((height, width), (0, 0), height, width)
    y, x = (height // 2, width // 2) if centre is None else (centre.y_px, centre.x_px)
    half = min(y, height - y, x, width - x)
    if half < 1:
        raise ValueError(
            f"the beam centre (y, x) = ({y}, {x}) is beside the detector of {height} x {width}"
        )
    half = min(half, (reading.crop or 2 * half) // 2)
    return Window((height, width), (y - half, x - half), 2 * half, 2 * half)
