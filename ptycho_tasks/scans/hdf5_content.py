"""What an HDF5 file holds, for people who are to say which of it is what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py

from ptycho_tasks.scans.linked_files import DAMAGE

_MOST = 12


class Listed(NamedTuple):
    """A dataset of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    """As numpy's dtypes have it: `f` for floats, `c` for complex."""


@dataclass(frozen=True)
class Content:
    """The datasets of a file, the largest first."""

    datasets: tuple[Listed, ...]

    def find_frames(self) -> Listed | None:
        """The largest stack of real images."""
        stacks = (one for one in self.datasets if len(one.shape) == 3 and one.kind in "fiu")
        return next(stacks, None)

    def describe(self) -> str:
        """The datasets with their shapes and types, in a line."""
        shown = [
            f"{one.name} ({' x '.join(map(str, one.shape)) or 'one'} {one.dtype})"
            for one in self.datasets[:_MOST]
        ]
        more = len(self.datasets) - _MOST
        return (", ".join(shown) or "no dataset") + (f" and {more} more" if more > 0 else "")


def list_datasets(path: Path) -> Content:
    """The datasets of an HDF5 file, those behind links aside; none of one that is damaged."""
    found: list[Listed] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            try:
                found.append(Listed(name, item.shape, str(item.dtype), item.dtype.kind))
            except TypeError:  # of a type that numpy has no name for
                found.append(Listed(name, item.shape, "unknown type", "V"))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
    except DAMAGE:
        return Content(())
    return Content(tuple(sorted(found, key=lambda one: -math.prod(one.shape))))
