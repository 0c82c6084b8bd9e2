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
    """What a file holds."""

    datasets: tuple[Listed, ...]
    """The largest first."""
    links: tuple[str, ...] = ()
    """Names that lead to other files."""

    def find_frames(self) -> Listed | None:
        """The largest stack of real images."""
        stacks = (one for one in self.datasets if len(one.shape) == 3 and one.kind in "fiu")
        return next(stacks, None)

    def describe(self) -> str:
        """The datasets with their shapes and types, and the links, in a line."""
        shown = [
            f"{one.name} ({' x '.join(map(str, one.shape)) or 'one'} {one.dtype})"
            for one in self.datasets[:_MOST]
        ]
        shown += [f"{name} (in another file)" for name in self.links[: _MOST - len(shown)]]
        more = len(self.datasets) + len(self.links) - len(shown)
        return (", ".join(shown) or "no dataset") + (f" and {more} more" if more > 0 else "")


def list_datasets(path: Path) -> Content:
    """The datasets of an HDF5 file, and its links to others; none of one that is damaged."""
    found: list[Listed] = []
    links: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            try:
                found.append(Listed(name, item.shape, str(item.dtype), item.dtype.kind))
            except TypeError:  # of a type that numpy has no name for
                found.append(Listed(name, item.shape, "unknown type", "V"))

    def note_link(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            links.append(name)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
            file.visititems_links(note_link)
    except DAMAGE:
        return Content(())
    datasets = sorted(found, key=lambda one: -math.prod(one.shape))
    return Content(tuple(datasets), tuple(links))
